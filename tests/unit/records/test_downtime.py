"""The time that a trial lost between its attempts."""

from __future__ import annotations

from support.checkpoint_children import manifest

from raytrain.checkpoint import Manifest
from raytrain.records.downtime import TimeLost, time_lost


def saved(kind: str, iteration: int, seconds: float) -> Manifest:
    return manifest(iteration, kind=kind, metrics={"time_total_s": seconds})


def test_time_lost() -> None:
    row = {"training_iteration": 8, "time_total_s": 80.0, "timestamp": 1000}
    assert time_lost(row, saved("periodic", 6, 60.0), attempt=1, now=1030.0) is None
    assert time_lost(row, saved("periodic", 6, 60.0), attempt=2, now=1030.0) == TimeLost(20.0, 30.0)
    assert time_lost(row, None, attempt=2, now=1030.0) == TimeLost(80.0, 30.0)
    assert time_lost(None, None, attempt=2, now=1030.0) == TimeLost(0.0, 0.0)
    # Saved to the last iteration and left: nobody failed. Unless more was trained since.
    assert time_lost(row, saved("interrupted", 8, 80.0), attempt=2, now=9e9) is None
    assert time_lost(row, saved("final", 8, 80.0), attempt=2, now=9e9) is None
    assert time_lost(row, saved("interrupted", 7, 75.0), attempt=3, now=1001) == TimeLost(5.0, 1.0)
    assert time_lost(row, saved("periodic", 8, 80.0), attempt=2, now=1001.0) == TimeLost(0.0, 1.0)
