"""Clocks for spans of time. The wall clock is for dates: somebody may set it while a program runs.

time.monotonic()    never goes back, and stands still while the machine sleeps
seconds_passed()    never goes back, and counts the machine's sleep (suspension, hibernation)
"""

from __future__ import annotations

import time
from collections.abc import Callable

_NOTICED_S = 1.0
# Linux has a clock of its own for it; that of macOS counts sleep where `time.monotonic` does not.
_WITH_SLEEP = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def seconds_passed() -> float:
    """Seconds since a moment in the past, the machine's sleep included."""
    return time.clock_gettime(_WITH_SLEEP)


class MachineSleep:
    """Notices that the machine slept, by the difference of the two clocks."""

    def __init__(
        self,
        awake: Callable[[], float] = time.monotonic,
        passed: Callable[[], float] = seconds_passed,
    ) -> None:
        self._awake = awake
        self._passed = passed
        self._before = passed() - awake()

    def lately(self) -> float:
        """Seconds of sleep since the last call (or since this was made); 0 if it was less than one."""
        now = self._passed() - self._awake()
        slept = now - self._before
        if slept < _NOTICED_S:
            return 0.0
        self._before = now
        return slept
