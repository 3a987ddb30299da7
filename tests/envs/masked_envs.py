"""Environments with action masks, which refuse an action that is not allowed."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

SPACES: dict[str, gym.Space[Any]] = {
    "discrete": Discrete(5, start=3),
    "multi-discrete": MultiDiscrete([3, 4], start=[0, 2]),
    "binary": MultiBinary(2),
    "table": MultiDiscrete([[2, 3], [4, 2]]),
    "integers": Box(-1, 2, (2,), np.int8),
}


class Masked(gym.Env[Any, Any]):
    """Which choices are allowed changes by chance in each step; the observation does not tell. The
    first number's allowed choice with the highest index is worth a reward of 1. Episodes of 9 to 12
    steps; every second one is truncated. After an episode's last step nothing is allowed.

    `where`: of the mask, "info", "info.legal", or a key of the observation. `form`: "array",
    "tuple" (one for each number), "list", or "float".
    """

    def __init__(
        self, space: str = "discrete", where: str = "info", form: str = "array", forbid_at: int = -1
    ) -> None:
        self.action_space = SPACES[space]
        self.sizes = sizes(self.action_space)
        self.where, self.form, self.forbid_at = where, form, forbid_at
        self.observation_space: gym.Space[Any] = Box(-1.0, 1.0, (3,), np.float32)
        self.in_info = where.partition(".")[0] == "info"
        if not self.in_info:
            entries = sum(self.sizes)
            self.observation_space = Dict(
                {"seen": self.observation_space, where: Box(0, 1, (entries,), np.int8)}
            )
        self.masks: list[Any] = []
        self.steps = self.total = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps, self.length = 0, int(self.np_random.integers(9, 13))
        return self._now(over=False)

    def step(self, action: Any) -> Any:
        chosen = indices(self.action_space, action)
        for number, (index, mask) in enumerate(zip(chosen, self.masks, strict=True)):
            if not mask[index]:
                raise ValueError(f"choice {index} of number {number} is not allowed")
        reward = float(chosen[0] == np.flatnonzero(self.masks[0])[-1])
        self.steps += 1
        self.total += 1
        over = self.steps == self.length
        observation, info = self._now(over)
        even = self.length % 2 == 0
        return observation, reward, over and even, over and not even, info

    def _now(self, over: bool) -> Any:
        seen = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        self.masks = [self.np_random.random(n) < 0.6 for n in self.sizes]
        for mask in self.masks:
            mask[self.np_random.integers(len(mask))] = True
        if over or self.total == self.forbid_at:
            self.masks = [np.zeros(n, bool) for n in self.sizes]
        flat: Any = np.concatenate(self.masks).astype(np.int8)
        if not self.in_info:
            return {"seen": seen, self.where: flat}, {}
        if self.form == "tuple":
            flat = tuple(mask.astype(np.int8) for mask in self.masks)
        elif self.form == "list":
            flat = flat.tolist()
        elif self.form == "float":
            flat = flat.astype(np.float32)
        return seen, {self.where.partition(".")[2] or "action_mask": flat}


def sizes(space: Any) -> list[int]:
    """How many choices there are for each number of an action."""
    if isinstance(space, Discrete):
        return [int(space.n)]
    if isinstance(space, MultiBinary):
        return [2] * space.n
    if isinstance(space, Box):
        return [int(n) for n in (space.high.astype(int) - space.low + 1).reshape(-1)]
    return [int(n) for n in space.nvec.reshape(-1)]


def indices(space: Any, action: Any) -> list[int]:
    """Which of its choices each number of an action is."""
    low: Any = 0
    if isinstance(space, Discrete | MultiDiscrete):
        low = space.start
    elif isinstance(space, Box):
        low = space.low
    return np.reshape(np.asarray(action, int) - low, -1).tolist()


class Forgetful(Masked):
    """Gives no mask after its first step."""

    def step(self, action: Any) -> Any:
        returned = super().step(action)
        return *returned[:4], {}


def held(holds: dict[str, int] | None = None, **arguments: Any) -> gym.Env[Any, Any]:
    """An environment that a test can hold (see `held_env`)."""
    from held_env import Held

    return Held(Masked(**arguments), holds or {})
