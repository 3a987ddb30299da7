"""An error that comes again at the same iteration is recognised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raytrain.cluster.failures import may_retry
from raytrain.storage import Location
from raytrain.trial.last_failure import RepeatedFailure, repeated_failure


def test_the_same_error_at_the_same_iteration_is_repeated(tmp_path: Any) -> None:
    def fails(iteration: int, error: Exception) -> RepeatedFailure | None:
        return repeated_failure(Location.of(tmp_path), iteration, error)

    assert fails(7, ValueError("object at 0x7f00aa")) is None
    assert fails(8, ValueError("object at 0x7f00aa")) is None
    assert fails(8, ValueError("another")) is None
    repeated = fails(8, ValueError("another"))
    assert isinstance(repeated, RepeatedFailure)
    assert "Iteration 8 failed again with the same error" in str(repeated)
    assert not may_retry(repeated)


def test_addresses_do_not_make_errors_different(tmp_path: Any) -> None:
    trial = Location.of(tmp_path)
    assert repeated_failure(trial, 3, KeyError("<Thing at 0x7f0011>")) is None
    assert repeated_failure(trial, 3, KeyError("<Thing at 0x7f9922>")) is not None


def test_a_damaged_memory_remembers_nothing(tmp_path: Path) -> None:
    (tmp_path / "last_failure.json").write_text('{"iteration": 3, "err')
    assert repeated_failure(Location.of(tmp_path), 3, KeyError("x")) is None
