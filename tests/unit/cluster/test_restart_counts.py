"""Restarts are counted over the life of a trial."""

from __future__ import annotations

from pathlib import Path

from raytrain.cluster.restart_counts import RestartCounts
from raytrain.storage import Location


def test_restarts_are_counted_over_the_life_of_a_trial(tmp_path: Path) -> None:
    losses = RestartCounts(Location.of(tmp_path))
    assert losses.text() == ""
    for kind in ("failure", "lost_node", "lost_node"):
        losses.add(kind)
    again = RestartCounts(Location.of(tmp_path))
    again.add("preemption")
    assert again.text() == "1 failure, 2 lost nodes, 1 preemption"
    (tmp_path / "losses.json").write_text('{"failure": 1, "lo')
    assert RestartCounts(Location.of(tmp_path)).text() == ""
