"""Other runs of a script, compared operation by operation with what the first run returned."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from raytrain.rng import RngStreams
from raytrain.rollout.env_snapshots.base import SnapshotError, Snapshotter, Strategy, user_code
from raytrain.rollout.env_snapshots.fingerprint import Frame, difference
from raytrain.rollout.env_snapshots.script import Script, perform
from raytrain.rollout.env_snapshots.strategies import snapshotter

MakeEnv = Callable[[], Any]


class Differs(SnapshotError):
    """An environment returned something else than in the first run; the message says where."""


@dataclass(frozen=True)
class Taken:
    """A snapshot as storage would hold it, the streams at that moment, and the operation before."""

    index: int
    pickled: bytes
    streams: dict[str, Any]


@dataclass
class Copy:
    """A restored environment, its streams, the operation before its snapshot, and the next one."""

    env: Any
    streams: RngStreams
    start: int
    next: int

    def step(self, script: Script) -> bool:
        """One operation, compared; False at the end of the script.

        Raises:
            SnapshotError: the result differs, or the environment raised.
        """
        if self.next >= len(script.operations):
            return False
        where = f"(snapshot {script.moments[self.start]})"
        with self.streams.active(), user_code(f"after restoring {where}, the environment"):
            frame = perform(self.env, script.operations[self.next], script.draws_torch)
        different = difference(script.frames[self.next], frame)
        if different:
            raise Differs(f"after restoring {where}, {different} at step {self.next - self.start}")
        self.next += 1
        return True


def make(make_env: MakeEnv) -> Any:
    with user_code("making the environment"):
        return make_env()


def close(env: Any) -> None:
    """Close a scratch environment; whatever `close()` raises is ignored."""
    with suppress(SnapshotError), user_code("close()"):
        env.close()


def restore(make_env: MakeEnv, own: Snapshotter, taken: Taken, script: Script) -> Copy:
    """A copy in the state of a snapshot. Call this on other streams than those of the original: the
    process that restores has drawn other numbers."""
    with user_code("making the environment"):
        fresh = own.wrap(make_env())
    with user_code(f"restoring a snapshot (taken {script.moments[taken.index]})"):
        env = own.restore(fresh, pickle.loads(taken.pickled))
    return Copy(env, script.streams(taken.streams), taken.index, taken.index + 1)


def continue_all(
    make_env: MakeEnv, strategy: Strategy, script: Script, taken: Sequence[Taken]
) -> None:
    """Restore all snapshots and run each copy to the script's end, in turn, as a
    vector environment does.

    Raises:
        SnapshotError: a copy differs from the first run, or the environment raised.
    """
    own = snapshotter(strategy)
    copies = [restore(make_env, own, snapshot, script) for snapshot in taken]
    while copies:
        copies = [copy for copy in copies if copy.step(script)]


def frames_from_start(
    make_env: MakeEnv, script: Script, streams: dict[str, Any], *, to_end: bool = True
) -> list[Frame]:
    """What the script's operations return in a new environment; without `to_end` only up to the
    first frame that is not the script's."""
    frames: list[Frame] = []
    with script.streams(streams).active():
        env = make(make_env)
        for operation, expected in zip(script.operations, script.frames, strict=True):
            frames.append(perform(env, operation, script.draws_torch))
            if frames[-1] != expected and not to_end:
                break
        close(env)
    return frames
