"""A square in an 84x84 picture, to be kept in the middle: as much for a network as an Atari game,
and next to nothing for the environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

SIZE, FRAMES = 84, 4


class Chase(gym.Env[Any, Any]):
    """Four frames of float32 in [0, 1]; five actions, to stay or to push the square; the reward is
    less the further away it is."""

    def __init__(self, length: int = 60) -> None:
        self.observation_space = gym.spaces.Box(0.0, 1.0, (SIZE, SIZE, FRAMES), np.float32)
        self.action_space = gym.spaces.Discrete(5)
        self.length = length

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = self.np_random.integers(8, SIZE - 8, size=2)
        self.steps = 0
        self.frames = np.zeros((SIZE, SIZE, FRAMES), np.float32)
        return self._see(), {}

    def step(self, action: Any) -> Any:
        push = ((0, 0), (4, 0), (-4, 0), (0, 4), (0, -4))[int(action)]
        drift = self.np_random.integers(-2, 3, size=2)
        self.place = np.clip(self.place + push + drift, 4, SIZE - 4)
        self.steps += 1
        reward = 1.0 - float(np.abs(self.place - SIZE // 2).sum()) / SIZE
        return self._see(), reward, False, self.steps >= self.length, {}

    def _see(self) -> Any:
        self.frames[:, :, self.steps % FRAMES] = 0.0
        y, x = self.place
        self.frames[y - 4 : y + 4, x - 4 : x + 4, self.steps % FRAMES] = 1.0
        return self.frames.copy()
