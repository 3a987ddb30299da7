"""Clocks that a sleeping machine does not stop."""

from __future__ import annotations

import time

import pytest

from raytrain.storage.clocks import MachineSleep, seconds_passed


def test_sleep_of_the_machine_is_noticed_once() -> None:
    now, asleep = [100.0], [5.0]
    sleep = MachineSleep(awake=lambda: now[0], passed=lambda: now[0] + asleep[0])
    assert sleep.seconds() == 0.0
    now[0] += 10.0
    asleep[0] += 0.001  # The two clocks are not read at once.
    assert sleep.seconds() == 0.0
    asleep[0] += 7200.0
    assert sleep.seconds() == pytest.approx(7200.0, abs=0.01)
    now[0] += 10.0
    assert sleep.seconds() == 0.0


def test_the_clock_that_counts_sleep_is_not_behind() -> None:
    before = time.monotonic(), seconds_passed()
    after = time.monotonic(), seconds_passed()
    assert after[0] >= before[0] and after[1] >= before[1]
    assert MachineSleep().seconds() == 0.0
