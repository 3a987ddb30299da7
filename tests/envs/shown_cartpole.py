"""CartPole whose observation comes in several forms, at the same cost for the environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

_LOW, _HIGH = np.float32(-5.0), np.float32(5.0)
SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(_LOW, _HIGH, (4,)),
    "discrete": spaces.Discrete(64),
    "multidiscrete": spaces.MultiDiscrete([8, 8, 8, 8]),
    "dict": spaces.Dict(pole=spaces.Box(_LOW, _HIGH, (2,)), cart=spaces.Box(_LOW, _HIGH, (2,))),
    "mixed": spaces.Dict(cart=spaces.Box(_LOW, _HIGH, (2,)), leans=spaces.Discrete(8)),
}


class Shown(gym.ObservationWrapper[Any, Any, Any]):
    def __init__(self, kind: str = "box") -> None:
        super().__init__(gym.make("CartPole-v1"))
        self.observation_space = SPACES[kind]
        self._show = getattr(self, f"_{kind}")

    def observation(self, observation: Any) -> Any:
        return self._show(observation)

    def _box(self, x: Any) -> Any:
        return np.concatenate([x[:2], x[2:]])

    def _discrete(self, x: Any) -> Any:
        return 8 * _eighth(x[2], 0.21) + _eighth(x[3], 2.0)

    def _multidiscrete(self, x: Any) -> Any:
        limits = (2.4, 2.0, 0.21, 2.0)
        return np.array([_eighth(value, limit) for value, limit in zip(x, limits, strict=True)])

    def _dict(self, x: Any) -> Any:
        return {"cart": x[:2], "pole": x[2:]}

    def _mixed(self, x: Any) -> Any:
        return {"cart": x[:2], "leans": _eighth(x[2], 0.21)}


def _eighth(value: float, limit: float) -> int:
    return min(7, max(0, int(4 + 4 * float(value) / limit)))
