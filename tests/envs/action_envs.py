"""An environment with any action space, which remembers the actions that it was sent."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

LARGEST = np.finfo(np.float32).max

SERVED: dict[str, gym.Space[Any]] = {
    "discrete": Discrete(3, start=-1),
    "multi-discrete": MultiDiscrete([2, 3], start=[5, -2]),
    "one-side-open": Box(np.array([0, -1], np.float32), np.array([np.inf, 1], np.float32)),
    "largest-float": Box(-LARGEST, LARGEST, (2,), np.float32),
    "float64-one-side-open": Box(-0.5, np.inf, (2,), np.float64),
    "float16": Box(-3.0, -1.0, (2,), np.float16),
    "equal-bounds": Box(np.array([2, -1], np.float32), np.array([2, 1], np.float32)),
    "binary": MultiBinary(3),
    "binary-table": MultiBinary((2, 3)),
    "small-discrete": Discrete(3, dtype=np.int8),
    "table": MultiDiscrete([[2, 3], [4, 5]]),
    "shifted-table": MultiDiscrete([[2, 3], [4, 5]], start=[[-1, 0], [7, 2]]),
    "bytes": MultiDiscrete([2, 3], dtype=np.int8),
    "no-axis": Box(-1.0, 3.0, (), np.float32),
    "no-axis-open": Box(-np.inf, 0.5, (), np.float32),
    "two-axes": Box(np.array([[-1, 0, 2], [-5, 0, 0]], np.float32), 7.0, (2, 3), np.float32),
    "float64-two-axes": Box(-1.0, 3.0, (1, 2), np.float64),
    "few-integers": Box(np.array([0, -3], np.int32), np.array([5, 3], np.int32), dtype=np.int32),
    "one-integer": Box(2, 4, (), np.int16),
    "many-integers": Box(-1000, 5000, (2, 2), np.int64),
    "bytes-of-an-image": Box(0, 255, (2, 1), np.uint8),
    "integers-one-side-open": Box(
        np.array([0, -9]), np.array([2**63 - 1, 9]), dtype=np.int64
    ),
    "tuple": Tuple((Discrete(2, start=1), Box(0.0, np.inf, (2,), np.float32))),
    "dict": Dict(
        {
            "gear": Discrete(2, start=7),
            "rest": Dict({"force": Box(-1.0, 3.0, (1,)), "levers": MultiDiscrete([2, 2], start=[1,
                1])}),
        }
    ),
    "everything": Dict(
        {
            "angle": Box(-1.0, 1.0, ()),
            "image": Tuple((Box(0, 9, (2, 2), np.int8), MultiBinary((2, 1)))),
            "gear": Discrete(3, start=2),
        }
    ),
}  # fmt: skip

REFUSED: dict[str, tuple[gym.Space[Any], str]] = {
    "many": (Discrete(2**40), "1,099,511,627,776 outputs; the limit is 16,777,216"),
    "many-multi": (MultiDiscrete([2**40, 2]), "1,099,511,627,778 outputs"),
    "nothing": (Box(-1.0, 1.0, (0,), np.float32), "holds no number"),
    "text": (gym.spaces.Text(4), "for which there is no distribution"),
    "empty-dict": (Dict({}), "which holds nothing"),
    "inside-a-dict": (
        Dict({"go": Discrete(2), "how": Tuple((gym.spaces.Text(2), Discrete(2)))}),
        "the action space['how'][0] is Text(",
    ),
}


class Remembering(gym.Env[Any, Any]):
    """Episodes of 20 steps. `got`: the actions; one outside of the space is an error."""

    observation_space = Box(-1.0, 1.0, (3,), np.float32)

    def __init__(self, space: str) -> None:
        self.action_space = SERVED[space] if space in SERVED else REFUSED[space][0]
        self.got: list[Any] = []
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is not in {self.action_space}")
        self.got.append(action)
        self.steps += 1
        return self._seen(), 1.0, self.steps == 20, False, {}

    def _seen(self) -> Any:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)
