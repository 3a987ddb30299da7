"""Small environments that differ in spaces, infos and ends, for sampling."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Drift(gym.Env[Any, Any]):
    """Ends by itself or by truncation after few steps, at random; its infos are now
    empty, now not."""

    def __init__(self, space: gym.Space[Any] | None = None, dtype: Any = np.float32) -> None:
        self.observation_space = spaces.Box(-10, 10, (3,), dtype)
        self.action_space = space or spaces.Discrete(3)
        self.place = np.zeros(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = self.np_random.normal(size=3)
        return self._seen(), {"level": 7} if self.np_random.random() < 0.5 else {}

    def step(self, action: Any) -> Any:
        self.place = self.place + 0.1 * float(np.sum(action)) + self.np_random.normal(size=3)
        ended, cut = self.np_random.random(2) < (0.1, 0.05)
        info = {"x": float(self.place[0]), "done": bool(ended), "_x": 3.0} if ended or cut else {}
        return self._seen(), float(self.place[1]), bool(ended), bool(cut), info

    def _seen(self) -> Any:
        return np.clip(self.place, -10, 10).astype(self.observation_space.dtype)


class Pictures(Drift):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0.0, 1.0, (12, 12, 2), np.float32)

    def _seen(self) -> Any:
        return self.np_random.random((12, 12, 2)).astype(np.float32)


class Named(Drift):
    """A Dict of observations."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict({"place": spaces.Box(-10, 10, (3,), np.float64)})

    def _seen(self) -> Any:
        return {"place": np.clip(self.place, -10, 10)}


class Reusing(Drift):
    """What it puts into its infos, it uses again."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = {"of": {"episode": 0}}
        self.number = np.zeros(1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.counted["of"]["episode"] += 1
        self.number += 1
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], {"counted": self.counted, "number": self.number}


class Meddling(Drift):
    """It writes into the actions that it gets."""

    def __init__(self) -> None:
        super().__init__(
            spaces.Dict({"force": spaces.Box(-9.0, 9.0, (2,)), "gear": spaces.Discrete(3)})
        )

    def step(self, action: Any) -> Any:
        action["force"][:] = 0
        return super().step(0)


class Faulty(Drift):
    """Its observations become NaN."""

    def _seen(self) -> Any:
        return np.full(3, np.nan, np.float32)


def levers(_: Any = None) -> gym.Env[Any, Any]:
    return Drift(spaces.MultiDiscrete([2, 5, 3]))


def forces() -> gym.Env[Any, Any]:
    low, high = np.array([-2.0, 0.0], np.float32), np.array([-1.0, 30.0], np.float32)
    return Drift(spaces.Box(low, high))


def fine_forces() -> gym.Env[Any, Any]:
    return Drift(spaces.Box(-3.0, 3.0, (2,), np.float64), np.float64)


def one_way() -> gym.Env[Any, Any]:
    return Drift(spaces.Box(0.0, np.inf, (2,), np.float32))
