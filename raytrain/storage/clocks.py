"""Clocks for durations. The wall clock is for dates only: it may be set while a program runs.

time.monotonic()    never goes back, and stops while the machine sleeps
seconds_passed()    never goes back, and counts the machine's sleep (suspension, hibernation)
"""

from __future__ import annotations

import time
from collections.abc import Callable

_SHORTEST_S = 1.0
# Linux has a clock for it; on macOS CLOCK_MONOTONIC counts sleep where `time.monotonic` does not.
_WITH_SLEEP = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def seconds_passed() -> float:
    """Seconds since some moment in the past, including the machine's sleep."""
    return time.clock_gettime(_WITH_SLEEP)


class MachineSleep:
    """Finds out whether the machine slept, by the difference of the two clocks."""

    def __init__(
        self,
        awake: Callable[[], float] = time.monotonic,
        passed: Callable[[], float] = seconds_passed,
    ) -> None:
        self._awake = awake
        self._passed = passed
        self._before = passed() - awake()

    def seconds(self) -> float:
        """Seconds of sleep since the last call, or since `__init__`; 0 if less than one."""
        now = self._passed() - self._awake()
        slept = now - self._before
        if slept < _SHORTEST_S:
            return 0.0
        self._before = now
        return slept
