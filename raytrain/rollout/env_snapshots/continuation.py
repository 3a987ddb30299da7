"""Restored copies that go on side by side, each compared with what the original did then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from raytrain.rng import RngStreams
from raytrain.rollout.env_snapshots.fingerprint import difference
from raytrain.rollout.env_snapshots.protocol import SnapshotError, Snapshotter
from raytrain.rollout.env_snapshots.rehearsal import Rehearsal, perform, user_code

MakeEnv = Callable[[], Any]


class Differs(SnapshotError):
    """The restored environment went another way; the message says where."""


@dataclass
class Copy:
    """A restored environment, its streams, its next operation, and its snapshot's moment."""

    env: Any
    streams: RngStreams
    start: int
    next: int
    moment: str

    def step(self, rehearsal: Rehearsal) -> bool:
        """One operation, compared; False when the rehearsal is at its end.

        Raises:
            SnapshotError: the result differs, or the environment raised.
        """
        if self.next >= len(rehearsal.operations):
            return False
        where = f"(snapshot {self.moment})"
        with self.streams.active(), user_code(f"after restoring {where}, the environment"):
            found = perform(self.env, rehearsal.operations[self.next], rehearsal.draws_torch)
        different = difference(rehearsal.frames[self.next], found)
        if different:
            raise Differs(f"after restoring {where}, {different} at step {self.next - self.start}")
        self.next += 1
        return True


def make(make_env: MakeEnv, snapshotter: Snapshotter) -> Any:
    with user_code("making the environment"):
        return snapshotter.wrap(make_env())


def restore(
    make_env: MakeEnv,
    snapshotter: Snapshotter,
    snapshot: dict[str, Any],
    streams: RngStreams,
    *,
    index: int,
    rehearsal: Rehearsal,
) -> Copy:
    """A copy in the state after operation `index`. Call it on other streams than the original's:
    the process that restores has drawn other numbers."""
    moment = rehearsal.moments[index]
    fresh = make(make_env, snapshotter)
    with user_code(f"restoring a snapshot (taken {moment})"):
        env = snapshotter.restore(fresh, snapshot)
    return Copy(env, streams, index, index + 1, moment)


def go_on(copies: list[Copy], rehearsal: Rehearsal) -> None:
    """All copies to the end, one operation of each in turn, as a vector environment does."""
    going = copies
    while going:
        going = [each for each in going if each.step(rehearsal)]


def close(env: Any) -> None:
    """Scratch environments are closed; one that cannot close itself is left to the collector."""
    # Whatever it raises: nothing is asked of it any more.
    with suppress(SnapshotError), user_code("close()"):
        env.close()
