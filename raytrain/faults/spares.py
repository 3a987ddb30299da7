"""Worker processes that have imported everything and wait for work.

A trial that starts again on another node would spend most of its time with imports: seconds for its
own process, and as many again for each that it starts. So an idle worker is kept on every node that
has room. A task that needs no CPU is run there now and then: Ray gives it to the idle worker if there
is one, and starts a new one otherwise; the import then takes no time, or makes the new one a spare.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from raytrain import _ray_cluster

_LOOK_EVERY_S = 10.0
_OVERLAP_S = 0.3


class Spares:
    """`count` on each node; none if `module`, which they import, is None."""

    def __init__(
        self, module: str | None, count: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._module = module
        self._count = count if module is not None else 0
        self._clock = clock
        self._looked = clock()
        self._running: dict[str, list[Any]] = {}
        self._pids: dict[str, set[int]] = {}
        self._given_up: set[str] = set()

    def keep(self) -> None:
        """Look after them; called again and again, and returns at once."""
        now = self._clock()
        if not self._count or now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        free = _ray_cluster.free_cpus()
        for node in free.keys() - _ray_cluster.draining_nodes().keys():
            if self._settled(node, free[node]):
                self._running[node] = [self._warm(node) for _ in range(self._count)]

    def _settled(self, node: str, free: float) -> bool:
        """Whether to ask a node (again)."""
        running = self._running.get(node, [])
        done, waiting = (
            ray.wait(running, num_returns=len(running), timeout=0) if running else ([], [])
        )
        if waiting:
            return False
        pids = _answers(done)
        before, self._pids[node] = self._pids.get(node), pids
        if free >= 1:
            self._given_up.discard(node)
        elif before and pids and not before & pids:
            # Ray ends idle workers of a node whose CPUs are all taken: new ones would be in vain.
            self._given_up.add(node)
        return node not in self._given_up

    def _warm(self, node: str) -> Any:
        strategy = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        task = ray.remote(_import).options(
            num_cpus=0, max_retries=0, scheduling_strategy=strategy, name="spare"
        )
        # Several at once must not be given to one worker in turn.
        return task.remote(self._module, _OVERLAP_S if self._count > 1 else 0.0)


def import_beside(module: str, bundles: Iterable[int]) -> None:
    """Have workers import `module` where bundles of this process's placement group are, while this
    process builds something else. RLlib starts learners only when its env runners are there."""
    group = ray.util.get_current_placement_group()
    if group is None:
        return
    for index in bundles:
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        task = ray.remote(_import).options(
            num_cpus=0, max_retries=0, scheduling_strategy=strategy, name="import"
        )
        task.remote(module, _OVERLAP_S)


def _import(module: str, stay_s: float) -> int:
    importlib.import_module(module)
    time.sleep(stay_s)
    return os.getpid()


def _answers(references: list[Any]) -> set[int]:
    pids = set()
    for reference in references:
        try:
            pids.add(int(ray.get(reference)))
        except RayError:
            continue  # The node or the worker is gone: there is no spare.
    return pids
