"""Trials that no node can carry: the person is told, and told again when one can.

A cluster whose last node was taken away has nothing wrong with it: Tune keeps the trials until a node
joins, but says nothing that a person would understand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import ray

from raytrain import _ray

_PATIENCE_S = 3.0
_LOOK_EVERY_S = 1.0
_AGAIN_S = 300.0


class PendingTrials:
    """Asked now and then with the experiment's trials."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked = 0.0
        self._since: float | None = None
        self._told: float | None = None

    def look(self, trials: list[Any]) -> list[str]:
        """Sentences to say."""
        now = self._clock()
        if now - self._looked < _LOOK_EVERY_S:
            return []
        self._looked = now
        idle = [trial for trial in trials if trial.status in ("PENDING", "PAUSED")]
        running = any(trial.status == "RUNNING" for trial in trials)
        nodes = [] if running or not idle else _nodes()
        if running or not idle or any(_fits(trial, nodes) for trial in idle):
            was_told, self._since, self._told = self._told, None, None
            return ["There is a node again; the run goes on."] if was_told and idle else []
        self._since = self._since or now
        if now - self._since < _PATIENCE_S or (self._told and now - self._told < _AGAIN_S):
            return []
        self._told = now
        needs = _text(_sum(_ray.cluster.trial_resources(idle[0])))
        found = "; ".join(f"{node['address']}: {_text(node['resources'])}" for node in nodes)
        return [
            f"No node can carry {idle[0]}, which needs {needs} (there are: {found or 'none'}). Nothing is "
            "lost: the run waits for a node to join, and goes on by itself."
        ]


def _nodes() -> list[dict[str, Any]]:
    """Nodes that work can be put on, with all that they have, free or not."""
    draining = _ray.cluster.draining_nodes()
    return [
        {"address": node["NodeManagerAddress"], "resources": node["Resources"]}
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in draining
    ]


def _fits(trial: Any, nodes: list[dict[str, Any]]) -> bool:
    """Whether a trial's processes, the first fit for each, find room on the empty nodes."""
    free = [dict(node["resources"]) for node in nodes]
    for bundle in _ray.cluster.trial_resources(trial):
        for room in free:
            if all(room.get(name, 0.0) >= amount for name, amount in bundle.items()):
                for name, amount in bundle.items():
                    room[name] = room.get(name, 0.0) - amount
                break
        else:
            return False
    return True


def _sum(bundles: Iterable[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def _text(resources: dict[str, float]) -> str:
    """`2 CPU, 1 GPU`; what Ray adds of its own (memory, addresses) is left out."""
    own = {
        name: amount
        for name, amount in resources.items()
        if amount and "memory" not in name and ":" not in name
    }
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(own.items())) or "nothing"
