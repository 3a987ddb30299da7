"""CartPole whose rewards depend, late, on the order in which a set of words is gone through."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

LATE = 300  # steps; the trial of how an environment can be saved ends before


class HashOrder(gym.Wrapper[Any, Any, Any, Any]):
    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.steps = 0

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, infos = super().step(action)
        self.steps += 1
        if self.steps > LATE:
            first = next(iter({f"word {number}" for number in range(100)}))
            reward = float(first.removeprefix("word "))
        return observation, reward, terminated, truncated, infos


def make() -> gym.Env[Any, Any]:
    return HashOrder(gym.make("CartPole-v1"))
