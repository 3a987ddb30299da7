"""CartPole that fails once in its life: the first process to reach a step leaves a
marker and raises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym


class StumblesOnce(gym.Wrapper):
    """Raises in step number `at` of its whole life, unless `marker` is there."""

    def __init__(self, env: gym.Env[Any, Any], marker: str, at: int) -> None:
        super().__init__(env)
        self.marker, self.at, self.steps = marker, at, 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == self.at and not Path(self.marker).exists():
            Path(self.marker).touch()
            raise RuntimeError("the simulator went away")
        return self.env.step(action)


def make(marker: str, at: int = 450, render_mode: str | None = None) -> gym.Env[Any, Any]:
    return StumblesOnce(gym.make("CartPole-v1", render_mode=render_mode), marker, at)


def make_blind(marker: str, at: int = 450) -> gym.Env[Any, Any]:
    """It cannot be drawn."""
    return make(marker, at)
