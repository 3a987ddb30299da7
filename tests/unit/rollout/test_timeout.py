"""How long a fragment may take, and where a step that hangs stands."""

from __future__ import annotations

import threading
from typing import Any

import gymnasium as gym

from raytrain.rollout.timeout import RolloutTimeout, reporting_stalls


def test_the_timeout_follows_the_longest_recent_fragment() -> None:
    patience = RolloutTimeout("auto")
    assert patience.limit_s() == 600
    patience.add(0.2)
    assert patience.limit_s() == 60
    patience.add(30.0)
    assert patience.limit_s() == 150
    assert RolloutTimeout(7.0).limit_s() == 7
    assert RolloutTimeout(None).limit_s() is None


class Slow(gym.Env[Any, Any]):
    def step(self, action: Any) -> Any:
        action.wait(600)


def test_a_step_that_hangs_is_reported_with_its_line() -> None:
    said: list[str] = []
    heard = threading.Event()

    def report(text: str) -> None:
        said.append(text)
        heard.set()

    for _ in range(3):  # What ends in time is not reported, nor is a later deadline waited for.
        with reporting_stalls(report, 60):
            pass
    with reporting_stalls(report, 0.05):
        Slow().step(heard)
    line = Slow.step.__code__.co_firstlineno + 1
    assert said[0].startswith(f"in Slow.step (test_timeout.py, line {line}), there in wait (thread")
    with reporting_stalls(report, None):
        pass
    assert len(said) == 1
