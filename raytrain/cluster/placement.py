"""Where bundles of resources fit, and whether another placement group waits for resources.

Tune reserves a trial's resources as a placement group, which Ray places as a whole. Env runners
beyond `env_runners.min_actors` are outside of it and use what is left over, which must not keep
another placement group (the next trial's, or one that lost a node) from being placed. Whether one
could be placed is computed here from what Ray publishes:

    nodes   {node: its resources}   less the bundles that are placed there   = the unreserved
    a group waits for resources if its unplaced bundles fit into the unreserved ones, first fit
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray.util import get_current_placement_group, placement_group_table

Resources = Mapping[str, float]


def another_group_waits() -> bool:
    """Whether another placement group is waiting that would fit into the unreserved resources."""
    own = get_current_placement_group()
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    table = placement_group_table()
    groups = {name: group for name, group in table.items() if group["state"] != "REMOVED"}
    unreserved, waiting = unplaced(nodes, groups)
    if own is not None:
        waiting.pop(own.id.hex(), None)
    return any(fits(bundles, unreserved) for bundles in waiting.values())


def unplaced(
    nodes: Mapping[str, Resources], groups: Mapping[str, Mapping[str, Any]]
) -> tuple[list[dict[str, float]], dict[str, list[Resources]]]:
    """The unreserved resources of each node, and the bundles on no node by placement group."""
    left = {name: dict(resources) for name, resources in nodes.items()}
    waiting: dict[str, list[Resources]] = {}
    for name, group in groups.items():
        for index, bundle in group["bundles"].items():
            node = group["bundles_to_node_id"].get(index)
            if node in left:
                _take(left[node], bundle)
            else:
                waiting.setdefault(name, []).append(bundle)
    return list(left.values()), waiting


def fits(bundles: Iterable[Resources], nodes: Iterable[Resources]) -> bool:
    """Whether all bundles fit, the largest first, each on the first node that has the resources."""
    left = [dict(node) for node in nodes]
    for bundle in sorted(bundles, key=lambda bundle: -sum(bundle.values())):
        node = next((node for node in left if _has(node, bundle)), None)
        if node is None:
            return False
        _take(node, bundle)
    return True


def _has(node: Resources, bundle: Resources) -> bool:
    return all(node.get(name, 0.0) >= need for name, need in bundle.items())


def _take(node: dict[str, float], bundle: Resources) -> None:
    for name, need in bundle.items():
        node[name] = node.get(name, 0.0) - need
