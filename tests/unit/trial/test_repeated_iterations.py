"""Which of the rows that were recorded before count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raytrain.records.row_files import rows_after
from raytrain.storage import Location
from raytrain.trial.repeated_iterations import RepeatedIterations


def row(iteration: int, weights: str, **more: Any) -> dict[str, Any]:
    return {"training_iteration": iteration, "weights_sha256": weights, "exact": True, **more}


def test_a_difference_names_both_digests() -> None:
    repeated = RepeatedIterations([row(8, "b" * 64), row(7, "a" * 64)])
    assert repeated.difference(7, "a" * 64) is None
    different = repeated.difference(8, "c" * 64)
    assert different is not None
    assert "iteration 8" in different
    assert "weights cccccccccccc, before bbbbbbbbbbbb" in different
    assert repeated.difference(9, "d" * 64) is None


def test_only_rows_of_an_exact_run_count() -> None:
    """Those of an attempt that had lost its exactness, and of raytrain versions without `exact`."""
    former = row(8, "b")
    del former["exact"]
    repeated = RepeatedIterations([row(9, "b", exact=False), former])
    assert repeated.difference(8, "c") is None
    assert repeated.difference(9, "c") is None


def test_rows_are_read_back_to_the_checkpoint(tmp_path: Path) -> None:
    results = Location.of(tmp_path / "result.json")
    assert list(rows_after(results, 0)) == []
    lines = [json.dumps(row(iteration, "a")) + "\n" for iteration in range(1, 9)]
    (tmp_path / "result.json").write_text("".join(lines) + '{"training_iteration": 9, "wei')
    assert [each["training_iteration"] for each in rows_after(results, 6)] == [8, 7]
