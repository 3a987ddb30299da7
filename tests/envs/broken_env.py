"""An environment that breaks after a while: `what` is nan (reward) or raise."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class BrokenEnv(gym.Env[np.ndarray, int]):
    observation_space = gym.spaces.Box(0.0, 1.0, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, what: str = "nan", after: int = 1800) -> None:
        self.what, self.after = what, after
        self.steps = self.t = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.random(3, np.float32), {}

    def step(self, action: int) -> Any:
        self.steps += 1
        self.t += 1
        broken = self.steps > self.after
        if broken and self.what == "raise":
            raise ValueError("negative speed")
        reward = float("nan") if broken and self.what == "nan" else 1.0
        return self.np_random.random(3, np.float32), reward, self.t >= 20, False, {"profit": 1.0}
