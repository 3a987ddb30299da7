"""How long something may take before it counts as hung, learned from how long it took before."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable

_FIRST_FACTOR = 10.0


class AdaptiveTimeout:
    """Allows `factor` times the usual duration, and at least `floor_s` seconds.

    The usual duration is the `statistic` of the last `window` durations. The first run of its kind
    also imports and compiles: it may take ten times the floor.
    """

    def __init__(
        self,
        factor: float,
        floor_s: float,
        *,
        window: int = 31,
        statistic: Callable[[Iterable[float]], float] = statistics.median,
    ) -> None:
        self._factor = factor
        self._floor_s = floor_s
        self._statistic = statistic
        self._durations: deque[float] = deque(maxlen=window)

    def add(self, seconds: float) -> None:
        """Record the duration of a run that ended."""
        self._durations.append(seconds)

    @property
    def usual_s(self) -> float | None:
        """The usual duration in seconds; None before the first run ended."""
        return self._statistic(self._durations) if self._durations else None

    @property
    def limit_s(self) -> float:
        """How many seconds the next run may take."""
        usual = self.usual_s
        if usual is None:
            return _FIRST_FACTOR * self._floor_s
        return max(self._floor_s, self._factor * usual)
