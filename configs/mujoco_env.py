"""A MuJoCo environment with rewards of about 1, whatever the task: `NormalizeReward`, and a clip.

PPO's value function learns returns; those of HalfCheetah grow from -300 to thousands while it
learns. So the field divides rewards by the running standard deviation of the discounted return and
clips them (Engstrom et al. 2020, "Implementation Matters in Deep RL"; Stable-Baselines3's
VecNormalize, Gymnasium's NormalizeReward). Each environment has its own running statistics here;
they are part of its snapshot, so a continued run goes on with the same ones.

What an episode was worth is then no longer its return: `raw_return` in its last `info` says it. For
evaluation, `gamma: null` gives the rewards as they are.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym


class RawReturn(gym.Wrapper):
    """Puts the sum of the rewards below it into the last `info` of an episode."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.raw_return = 0.0

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        self.raw_return = 0.0
        return self.env.reset(**arguments)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.raw_return += float(reward)
        if terminated or truncated:
            info = {**info, "raw_return": self.raw_return}
        return observation, reward, terminated, truncated, info


def make(env: str, gamma: float | None = None, clip: float = 10.0) -> gym.Env:
    """`env` is a Gymnasium id; `gamma` is `training.gamma`, or None for rewards as they are."""
    made: gym.Env = RawReturn(gym.make(env))
    if gamma is None:
        return made
    return gym.wrappers.ClipReward(gym.wrappers.NormalizeReward(made, gamma=gamma), -clip, clip)
