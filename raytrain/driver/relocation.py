"""Trials that leave a node, since it computes differently from the one that they began on.

Ray gives every node a label with its id. The placement group of a trial that is started again
excludes the nodes that it has left. If no other has its resources, it may go back (unless it has to
wait for one), and is then not exact any more.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import ray
from ray.tune import PlacementGroupFactory
from ray.util.placement_group import NODE_ID_LABEL_KEY

from raytrain._ray import actors as _ray_actors
from raytrain._ray import cluster as _ray_cluster
from raytrain.cluster.placement import fits
from raytrain.trial.trainable import stay_key


class Relocations:
    """`policy`: fault_tolerance.on_other_arithmetic."""

    def __init__(self, policy: str) -> None:
        self._waits = policy == "wait"
        self._left: dict[str, set[str]] = {}

    def leave(self, trial: Any, nodes: Collection[str]) -> str:
        """Start the trial elsewhere next time. Returns the end of a sentence about it."""
        left = self._left.setdefault(trial.trial_id, set())
        left.update(nodes)
        if self._waits or _others_fit(trial.placement_group_factory.bundles, left):
            trial.placement_group_factory = _without(trial.placement_group_factory, left)
            if self._waits:
                return "it waits for another node"
            return "it is started on another node"
        left.clear()
        trial.placement_group_factory = _without(trial.placement_group_factory, left)
        _ray_actors.leave_message(stay_key(trial.trial_id), "stay")
        return "no other node has the resources, so it continues there and is not exact any more"


def _others_fit(bundles: list[dict[str, float]], left: Collection[str]) -> bool:
    draining = _ray_cluster.draining_nodes()
    others = [
        node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in draining and node["NodeID"] not in left
    ]
    return fits(bundles, others)


def _without(request: PlacementGroupFactory, nodes: Collection[str]) -> PlacementGroupFactory:
    """The same resources, on other nodes than these."""
    selector = {NODE_ID_LABEL_KEY: f"!in({','.join(sorted(nodes))})"} if nodes else {}
    selectors = {"bundle_label_selector": [selector] * len(request.bundles)} if nodes else {}
    return PlacementGroupFactory(request.bundles, request.strategy, **selectors)
