"""What a failure cost, computed by the attempt that follows it from the records that it left.

    attempt 1   ... checkpoint 6 ... row of iteration 8 |        died
    attempt 2                                                          continues from 6
                    <------- trained again ------------> <--- away --->

The previous attempt failed unless its last checkpoint has the state after all that it trained and
is of kind `interrupted` or `final`. On object storage its rows are known up to its last checkpoint
only, so training after that counts as time away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raytrain.checkpoint import Manifest

RECOVERED = "recovered"
"""Kind of the event that reports the recovery from a failure."""
_SAVED_ALL = frozenset({"interrupted", "final"})


@dataclass(frozen=True)
class TimeLost:
    """Seconds of training that are repeated, and seconds without training."""

    redone_s: float
    away_s: float

    def text(self) -> str:
        return (
            f"The previous attempt ended without saving: {self.redone_s:.1f} s of training are "
            f"repeated, after {self.away_s:.1f} s without training."
        )


def time_lost(
    row: Mapping[str, Any] | None, manifest: Manifest | None, *, attempt: int, now: float
) -> TimeLost | None:
    """The time lost when attempt number `attempt` continues; None if nothing failed.

    `row` is the last row recorded so far, `manifest` that of the checkpoint (None: the attempt
    starts from the beginning), `now` in seconds since 1970.
    """
    if attempt <= 1:
        return None
    reached = 0 if row is None else int(row.get("training_iteration", 0))
    if manifest is not None and manifest.kind in _SAVED_ALL and reached <= manifest.iteration:
        return None
    if row is None:
        return TimeLost(0.0, 0.0)
    saved_s = 0.0 if manifest is None else manifest.time_s
    return TimeLost(
        max(0.0, float(row.get("time_total_s", 0.0)) - saved_s),
        max(0.0, now - float(row.get("timestamp", now))),
    )
