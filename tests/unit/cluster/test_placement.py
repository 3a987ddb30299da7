"""What room a cluster has, and who waits for it."""

from __future__ import annotations

from raytrain.cluster.placement import fits, unplaced


def test_free_resources_are_those_that_no_placement_group_reserves() -> None:
    nodes = {"a": {"CPU": 4.0}, "b": {"CPU": 2.0, "GPU": 1.0}}
    groups = {
        "placed": {"bundles": {0: {"CPU": 1.0}, 1: {"CPU": 2.0}}, "bundles_to_node_id": {0: "a",
            1: "a"}},
        # One of its nodes is gone.
        "half": {"bundles": {0: {"CPU": 1.0}, 1: {"CPU": 2.0}}, "bundles_to_node_id": {0: "b",
            1: "z"}},
        "new": {"bundles": {0: {"GPU": 1.0}}, "bundles_to_node_id": {0: ""}},
    }  # fmt: skip
    left, waiting = unplaced(nodes, groups)
    assert left == [{"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}]
    assert waiting == {"half": [{"CPU": 2.0}], "new": [{"GPU": 1.0}]}
    assert fits(waiting["new"], left)
    assert not fits(waiting["half"], left)
    assert fits([{"CPU": 1.0}, {"CPU": 1.0}], left)
    assert not fits([{"CPU": 1.0}, {"CPU": 1.0}, {"CPU": 1.0}], left)
