"""CartPole with a reward from a module beside it, for runs whose code changes. Both files are
copied beside the run's YAML file."""

from __future__ import annotations

from typing import Any

import gymnasium as gym


class Rewarded(gym.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        from edited_reward import reward  # Only now, so nothing has imported it before.

        observation, _, terminated, truncated, info = super().step(action)
        return observation, reward(observation), terminated, truncated, info


def make(data: str = "") -> gym.Env[Any, Any]:
    return Rewarded(gym.make("CartPole-v1"))
