"""What a failure cost: told by the attempt that follows it, from what the one before left behind.

    attempt 1   ... checkpoint 6 ... row of iteration 8 |        died
    attempt 2                                                          continues from 6
                    <------- trained again ------------> <--- away --->

The attempt before failed unless it had saved all that it trained, and said so (kind `interrupted` or
`final`). On object storage its rows are only known up to its last checkpoint: there, what was trained
after it is part of the time away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raytrain.checkpoint import Manifest

RECOVERED = "recovered"
"""The kind of the event that tells of a failure survived."""
_SAVED_ALL = frozenset({"interrupted", "final"})


@dataclass(frozen=True)
class TimeLost:
    """Seconds of training that are done again, and seconds in which nothing was trained."""

    redone_s: float
    away_s: float

    @property
    def total_s(self) -> float:
        return self.redone_s + self.away_s

    def text(self) -> str:
        return (
            f"The attempt before ended without saving: {self.redone_s:.1f} s of training are done "
            f"again, after {self.away_s:.1f} s away."
        )


def time_lost(
    before: Mapping[str, Any] | None, kept: Manifest | None, *, attempt: int, now: float
) -> TimeLost | None:
    """What is lost when attempt number `attempt` goes on from `kept` (the manifest of its checkpoint,
    or None: from the beginning). `before` is the last row that was recorded, `now` seconds since
    1970. None if nothing failed."""
    if attempt <= 1:
        return None
    reached = 0 if before is None else int(before.get("training_iteration", 0))
    if kept is not None and kept.kind in _SAVED_ALL and reached <= kept.iteration:
        return None
    if before is None:
        return TimeLost(0.0, 0.0)
    kept_s = 0.0 if kept is None else float(kept.metrics.get("time_total_s", 0.0))
    return TimeLost(
        max(0.0, float(before.get("time_total_s", 0.0)) - kept_s),
        max(0.0, now - float(before.get("timestamp", now))),
    )
