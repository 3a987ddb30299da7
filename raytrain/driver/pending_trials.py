"""Trials that no node has the resources for: a message when there are some, and when that is over.

A cluster whose last node was removed has nothing wrong with it: Tune keeps the trials until a node
joins, but prints no message that explains it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import ray

from raytrain import _ray
from raytrain.cluster.placement import fits

_PATIENCE_S = 3.0
_REPEAT_S = 300.0


class PendingTrials:
    """`look` is called again and again with the experiment's trials."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self._reported: float | None = None

    def look(self, trials: list[Any]) -> list[str]:
        """The messages to print."""
        now = self._clock()
        idle = [trial for trial in trials if trial.status in ("PENDING", "PAUSED")]
        waits = bool(idle) and all(trial.status != "RUNNING" for trial in trials)
        nodes = _nodes() if waits else []
        resources = [has for _, has in nodes]
        if not waits or any(fits(t.placement_group_factory.bundles, resources) for t in idle):
            was_reported, self._since, self._reported = self._reported, None, None
            if was_reported and idle:
                return ["A node with the resources is available again; the run continues."]
            return []
        self._since = self._since or now
        recently = self._reported is not None and now - self._reported < _REPEAT_S
        if now - self._since < _PATIENCE_S or recently:
            return []
        self._reported = now
        bundles = idle[0].placement_group_factory.bundles
        names = {name for bundle in bundles for name in bundle}
        total = {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in names}
        present = "; ".join(f"{address}: {_text(has)}" for address, has in nodes) or "none"
        return [
            f"No node has the resources that {idle[0]} needs: {_text(total)} (nodes: {present}). "
            "Nothing is lost: the run waits for a node to join, and then continues."
        ]


def _nodes() -> list[tuple[str, dict[str, float]]]:
    """Address and all resources, free or not, of the nodes that accept work."""
    draining = _ray.cluster.draining_nodes()
    return [
        (node["NodeManagerAddress"], node["Resources"])
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in draining
    ]


def _text(resources: Mapping[str, float]) -> str:
    """`2 CPU, 1 GPU`; the resources that Ray adds itself (memory, addresses) are left out."""
    own = {
        name: amount
        for name, amount in resources.items()
        if amount and "memory" not in name and ":" not in name
    }
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(own.items())) or "nothing"
