"""An environment with any observation space: each step shows a number from 0 to 3 in every part of
the observation, and the action that repeats it is rewarded."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

IMAGE = spaces.Box(0, 255, (12, 9, 3), np.uint8)
SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-9.0, 9.0, (4,)),
    "discrete": spaces.Discrete(4),
    "started": spaces.Discrete(5, start=-2),
    "multidiscrete": spaces.MultiDiscrete([4, 5]),
    "started axes": spaces.MultiDiscrete([[4, 5], [6, 4]], start=[[0, -3], [9, 1]]),
    "multibinary": spaces.MultiBinary(4),
    "scalar": spaces.Box(-9.0, 9.0, (), np.float64),
    "matrix": spaces.Box(-9.0, 9.0, (3, 2)),
    "integers": spaces.Box(-9, 9, (3,), np.int64),
    "bytes": spaces.Box(0, 255, (4,), np.uint8),
    "half": spaces.Box(-9.0, 9.0, (4,), np.float16),
    "flags": spaces.Box(0, 1, (4,), np.bool_),
    "four axes": spaces.Box(0, 255, (2, 2, 3, 1), np.uint8),
    "image": spaces.Box(-9.0, 9.0, (7, 5, 2)),
    "bytes image": IMAGE,
    "integer image": spaces.Box(-9, 9, (5, 5, 2), np.int32),
    "frames": spaces.Box(0, 255, (2, 12, 11), np.uint8),
    "dict": spaces.Dict(number=spaces.Discrete(4), speed=spaces.Box(-9.0, 9.0, (2,), np.float64)),
    "nested": spaces.Dict(
        [
            ("speed", spaces.Box(-9.0, 9.0, (2, 2), np.float64)),
            ("at", spaces.Tuple((spaces.Discrete(4, start=1), spaces.MultiDiscrete([4, 6])))),
            ("inner", spaces.Dict(bits=spaces.MultiBinary(4), age=spaces.Box(0, 9, (), np.int32))),
        ]
    ),
    "eyes": spaces.Dict(
        left=IMAGE,
        mood=spaces.Discrete(4),
        place=spaces.Box(-9.0, 9.0, (2,)),
        right=spaces.Box(-9.0, 9.0, (6, 6, 1)),
    ),
}


class Observed(gym.Env[Any, Any]):
    def __init__(self, kind: str = "discrete", ends: float = 0.1) -> None:
        self.observation_space = SPACES[kind]
        self.action_space = spaces.Discrete(4)
        self.ends = ends
        self.shown = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self._next(), {}

    def step(self, action: Any) -> Any:
        reward = float(int(action) == self.shown)
        ended, cut = (self.np_random.random(2) < (self.ends, self.ends / 2)).tolist()
        return self._next(), reward, ended, cut, {}

    def _next(self) -> Any:
        self.shown = int(self.np_random.integers(4))
        return self._of(self.observation_space)

    def _of(self, space: spaces.Space[Any]) -> Any:
        if isinstance(space, spaces.Dict):
            return {key: self._of(part) for key, part in space.items()}
        if isinstance(space, spaces.Tuple):
            return tuple(self._of(part) for part in space.spaces)
        if isinstance(space, spaces.Discrete):
            return int(space.start) + self.shown
        places = np.arange(int(np.prod(space.shape))).reshape(space.shape)
        if isinstance(space, spaces.MultiDiscrete):
            return (space.start + (self.shown + places) % space.nvec).astype(space.dtype)
        marks = places % 4 == self.shown
        if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            return (3 * marks + self.np_random.normal(size=space.shape)).astype(space.dtype)
        brightest = 200 if space.dtype == np.uint8 else 9 if space.dtype.kind == "i" else 1
        if isinstance(space, spaces.MultiBinary):
            brightest = 1
        return (marks * brightest).astype(space.dtype)


class Recorded(Observed):
    """It keeps what it has shown, and which action followed."""

    def __init__(self, kind: str = "discrete") -> None:
        super().__init__(kind, ends=0.0)
        self.pairs: list[tuple[Any, int]] = []

    def step(self, action: Any) -> Any:
        self.pairs.append((self.last, int(action)))
        return super().step(action)

    def _next(self) -> Any:
        self.last = super()._next()
        return self.last


def held(kind: str, holds: dict[str, int] | None = None) -> gym.Env[Any, Any]:
    """An environment that a test can hold (see `held_env`)."""
    from held_env import Held

    return Held(Observed(kind), holds or {})
