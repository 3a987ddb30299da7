"""An environment of small images, in integers: its own arithmetic has nothing to round."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

_SIDE = 12


class Spot(gym.Env[Any, Any]):
    """A bright spot that the actions move; the reward is 1 in the left half."""

    observation_space = gym.spaces.Box(0.0, 1.0, (_SIDE, _SIDE, 1), np.float32)
    action_space = gym.spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._at, self._steps = self.np_random.integers(_SIDE, size=2), 0
        return self._image(), {}

    def step(self, action: Any) -> Any:
        self._at[int(action) // 2] += 1 - 2 * (int(action) % 2)
        self._at %= _SIDE
        self._steps += 1
        reward = float(self._at[1] < _SIDE // 2)
        return self._image(), reward, False, self._steps == 40, {}

    def _image(self) -> Any:
        image = np.zeros(self.observation_space.shape, np.float32)
        image[self._at[0], self._at[1]] = 1.0
        return image
