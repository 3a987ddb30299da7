"""A courier in a grid: a nested Dict observation, and an optimum that is known."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

_SIDE = 3
_MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0))


class Courier(gym.Env[Any, Any]):
    """It fetches a parcel and brings it to its address. A step costs 0.1, the parcel and the
    address give 1 each, and an episode is cut off after 30 steps. The wind is no matter."""

    observation_space: ClassVar[spaces.Space[Any]] = spaces.Dict(
        courier=spaces.MultiDiscrete([_SIDE, _SIDE]),
        job=spaces.Dict(
            parcel=spaces.Tuple([spaces.Discrete(_SIDE), spaces.Discrete(_SIDE)]),
            address=spaces.MultiDiscrete([_SIDE, _SIDE], start=[1, 1]),
            fetched=spaces.MultiBinary(1),
        ),
        wind=spaces.Box(-1.0, 1.0, (2,), np.float64),
    )
    action_space: ClassVar[spaces.Space[Any]] = spaces.Discrete(len(_MOVES))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        places = self.np_random.choice(_SIDE**2, 3, replace=False)
        self._at, self._parcel, self._address = ([p // _SIDE, p % _SIDE] for p in places.tolist())
        self._fetched, self._steps = False, 0
        return self._see(), {}

    @property
    def optimum(self) -> float:
        """The largest return from here on."""
        if self._fetched:
            return 1.0 - 0.1 * _distance(self._at, self._address)
        way = _distance(self._at, self._parcel) + _distance(self._parcel, self._address)
        return 2.0 - 0.1 * way

    def step(self, action: Any) -> Any:
        move = _MOVES[int(action)]
        self._at = [min(max(x + dx, 0), _SIDE - 1) for x, dx in zip(self._at, move, strict=True)]
        self._steps += 1
        reward, delivered = -0.1, False
        if self._fetched:
            delivered = self._at == self._address
            reward += delivered
        elif self._at == self._parcel:
            self._fetched = True
            reward += 1.0
        return self._see(), reward, delivered, self._steps == 30, {}

    def _see(self) -> Any:
        return {
            "courier": np.array(self._at),
            "job": {
                "parcel": tuple(self._parcel),
                "address": np.array(self._address) + 1,
                "fetched": np.array([self._fetched], np.int8),
            },
            "wind": self.np_random.uniform(-1.0, 1.0, 2),
        }


def _distance(here: list[int], there: list[int]) -> int:
    return sum(abs(a - b) for a, b in zip(here, there, strict=True))


gym.register("Courier-v0", entry_point=Courier)
