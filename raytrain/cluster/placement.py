"""Whether another placement group is waiting for resources that a trial holds beyond what it reserved.

Tune reserves a trial's resources as a placement group, which Ray places as a whole. Env runners beyond
`env_runners.min_actors` lie outside of it and take what is left over, which must not keep a placement group
(the next trial's, or one that lost a node) from being placed. Whether one could be is computed here
from what Ray publishes:

    nodes   {node: its resources}   less the bundles that lie there   = what nobody has reserved
    a group that waits is wanted room for if its unplaced bundles fit there, first come, first served
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray.util import get_current_placement_group, placement_group_table

Resources = Mapping[str, float]

_GONE = ("REMOVED",)


def another_group_waits() -> bool:
    """Whether another placement group is waiting that would fit on what nobody has reserved."""
    own = get_current_placement_group()
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    groups = {
        name: group
        for name, group in placement_group_table().items()
        if group["state"] not in _GONE
    }
    unreserved, waiting = unplaced(nodes, groups)
    if own is not None:
        waiting.pop(own.id.hex(), None)
    return any(fits(bundles, unreserved) for bundles in waiting.values())


def unplaced(
    nodes: Mapping[str, Resources], groups: Mapping[str, Mapping[str, Any]]
) -> tuple[list[dict[str, float]], dict[str, list[Resources]]]:
    """What is not reserved on each node, and the bundles that lie on no node, by placement group."""
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
    """Whether all bundles find a place, the largest first, each on the first node that has room."""
    left = [dict(node) for node in nodes]
    for bundle in sorted(bundles, key=lambda each: -sum(each.values())):
        place = next((node for node in left if _has(node, bundle)), None)
        if place is None:
            return False
        _take(place, bundle)
    return True


def _has(node: Resources, bundle: Resources) -> bool:
    return all(node.get(name, 0.0) >= need for name, need in bundle.items())


def _take(node: dict[str, float], bundle: Resources) -> None:
    for name, need in bundle.items():
        node[name] = node.get(name, 0.0) - need
