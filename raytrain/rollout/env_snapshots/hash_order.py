"""Whether what an environment does depends on the hash order of strings.

Python hashes strings with another key in each process, so `list({"left", "right"})` has another
order with every start; PYTHONHASHSEED fixes it. The script is run in new processes that differ in
it, which import while the caller tries the environment:

    the run's seed, other seeds             all the same, and as here: it depends on nothing
    if not: the run's seed, several times   all the same: on hash order alone
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any, Literal, TypeAlias

from raytrain.rollout.env_snapshots.base import SnapshotError
from raytrain.rollout.env_snapshots.comparison import MakeEnv, frames_from_start
from raytrain.rollout.env_snapshots.fingerprint import Frame
from raytrain.rollout.env_snapshots.fresh_process import FreshProcess, fresh_processes
from raytrain.rollout.env_snapshots.script import Script

Effect: TypeAlias = Literal["none", "order", "chance"]

_OTHERS = 5
_MORE = 8
_REPEATS = 3


class HashOrders:
    """`with HashOrders(hash_seed) as orders: ...; orders.begin(...); ...; orders.effect()`"""

    def __init__(self, hash_seed: int) -> None:
        """`hash_seed`: the run's PYTHONHASHSEED."""
        self._own = hash_seed
        self._others = [(hash_seed + number) % 2**32 for number in range(1, 1 + _OTHERS + _MORE)]
        self._stack = ExitStack()
        self._begun = False
        self._processes: list[FreshProcess] = []

    def __enter__(self) -> HashOrders:
        started = fresh_processes([self._own, *self._others[:_OTHERS]])
        self._processes = self._stack.enter_context(started)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def begin(self, make_env: MakeEnv, script: Script, streams: dict[str, Any]) -> None:
        """Run the script in the processes. `streams`: a `RngStreams.to_state()` to begin with."""
        early = script.for_fresh_process().early()
        self._task = make_env, early, streams
        self._here = list(early.frames)
        # If it cannot be sent there, no strategy works, and says so.
        with suppress(SnapshotError):
            _begin(self._processes, self._task)
            self._begun = True

    def effect(self) -> Effect:
        """What the orders change: "none"; "order": the environment is the same each time
        under one of them; "chance": it is not."""
        if not self._begun:
            return "none"
        own, *others = _ended(self._processes)
        if all(other == own for other in others):
            if own == self._here:
                return "none"
            # This process has another hash order, or other state.
            others = self._again(self._others[_OTHERS:])
            if all(other == own for other in others):
                return "none"
        repeated = self._again([self._own] * _REPEATS)
        return "order" if all(again == own for again in repeated) else "chance"

    def _again(self, hash_seeds: Sequence[int]) -> list[list[Frame] | None]:
        with fresh_processes(hash_seeds) as processes:
            _begin(processes, self._task)
            return _ended(processes)


def _begin(processes: Sequence[FreshProcess], task: tuple[MakeEnv, Script, dict[str, Any]]) -> None:
    for process in processes:
        process.call(frames_from_start, *task)


def _ended(processes: Sequence[FreshProcess]) -> list[list[Frame] | None]:
    """The frames of each, None where the environment does not run there."""
    results: list[list[Frame] | None] = []
    for process in processes:
        try:
            results.append(process.result())
        except SnapshotError:
            results.append(None)
    return results
