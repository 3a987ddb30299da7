"""An environment that can be held: a run goes as far as a test needs it, and waits there until the
test has acted. It is copied beside a run's YAML file (`running.Holds`)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gymnasium as gym


class Held(gym.Wrapper[Any, Any, Any, Any]):
    """`holds`: a path, and the number of steps after which the next one waits while that
    file is there."""

    def __init__(self, env: gym.Env[Any, Any], holds: dict[str, int]) -> None:
        super().__init__(env)
        self._holds = sorted((after, path) for path, after in holds.items())
        self._steps = 0

    def step(self, action: Any) -> Any:
        while self._holds and self._steps >= self._holds[0][0]:
            if Path(self._holds[0][1]).exists():
                time.sleep(0.01)
            else:
                self._holds.pop(0)
        self._steps += 1
        return super().step(action)


def make(
    holds: dict[str, int] | None = None, name: str = "CartPole-v1", **arguments: Any
) -> gym.Env[Any, Any]:
    return Held(gym.make(name, **arguments), holds or {})


gym.register("Held-v0", entry_point=make)
