"""The environment of the benchmark of action masks: as `InvalidActionEnvDiscrete` of sb3-contrib.

The observation is a number, and the action of the same number is worth 1. All actions but `allowed`
of them are forbidden in each step, never the right one. Both of the usual interfaces: the method
`action_masks()`, which MaskablePPO calls, and `info["action_mask"]`.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

STEPS = 100


class Numbers(gym.Env[Any, Any]):
    """`size` numbers, episodes of 100 steps."""

    def __init__(self, size: int = 40, allowed: int = 20) -> None:
        self.observation_space = self.action_space = gym.spaces.Discrete(size)
        self._size, self._allowed = size, allowed

    def action_masks(self) -> Any:
        return self._mask

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._steps = 0
        return self._draw(), {"action_mask": self._mask}

    def step(self, action: Any) -> Any:
        if not self._mask[action]:
            raise ValueError(f"action {action} is forbidden")
        reward = float(action == self._number)
        self._steps += 1
        return self._draw(), reward, False, self._steps == STEPS, {"action_mask": self._mask}

    def _draw(self) -> int:
        self._number = int(self.np_random.integers(self._size))
        self._mask = np.zeros(self._size, np.bool_)
        self._mask[self.np_random.permutation(self._size)[: self._allowed]] = True
        self._mask[self._number] = True
        return self._number
