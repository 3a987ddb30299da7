"""Environments with one mistake each, as people make them."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Right(gym.Env[Any, Any]):
    """Ten steps an episode; from step `after` on (counted over all episodes) `wrong`
    has its way."""

    observation_space: Any = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space: Any = spaces.Discrete(2)

    def __init__(self, after: int = 0) -> None:
        self.after = after
        self.t = self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:  # here
        self.t += 1
        self.steps += 1
        returned: tuple[Any, ...] = np.zeros(2, np.float32), 1.0, self.t >= 10, False, {}
        return self.wrong(*returned) if self.steps > self.after else returned

    def wrong(self, *returned: Any) -> Any:
        return returned


class Shape(Right):
    def wrong(self, observation: Any, *rest: Any) -> Any:
        return observation[None], *rest


class Text(Right):
    def wrong(self, observation: Any, *rest: Any) -> Any:
        return "here", *rest


class RewardArray(Right):
    def wrong(self, observation: Any, reward: Any, *rest: Any) -> Any:
        return observation, np.array([reward, reward]), *rest


class RewardNone(Right):
    def wrong(self, observation: Any, reward: Any, *rest: Any) -> Any:
        return observation, None, *rest


class RewardNan(Right):
    def wrong(self, observation: Any, reward: Any, *rest: Any) -> Any:
        return observation, float("nan"), *rest


class RewardHuge(Right):
    def wrong(self, observation: Any, reward: Any, *rest: Any) -> Any:
        return observation, 1e300, *rest


class RewardWord(Right):
    def wrong(self, observation: Any, reward: Any, *rest: Any) -> Any:
        return observation, np.array("1"), *rest


class ObservationHuge(Right):
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def wrong(self, observation: Any, *rest: Any) -> Any:
        return np.full(2, 1e300), *rest


class ObservationNan(Right):
    def wrong(self, observation: Any, *rest: Any) -> Any:
        return observation * np.float32("nan"), *rest


class FlagText(Right):
    def wrong(self, observation: Any, reward: Any, terminated: Any, *rest: Any) -> Any:
        return observation, reward, "no", *rest


class FlagNone(Right):
    def wrong(self, observation: Any, reward: Any, terminated: Any, *rest: Any) -> Any:
        return observation, reward, None, *rest


class HalfACharacter(Right):
    """The name of a file that is not UTF-8."""

    def wrong(self, *returned: Any) -> Any:
        raise FileNotFoundError("caf\udcff.csv is not there")


class Changing(Right):
    def reset(self, **options: Any) -> Any:
        self.action_space = spaces.Discrete(3)
        return super().reset(**options)


class InfoNone(Right):
    def wrong(self, *returned: Any) -> Any:
        return *returned[:4], None


class FourValues(Right):
    def wrong(
        self, observation: Any, reward: Any, terminated: Any, truncated: Any, info: Any
    ) -> Any:
        return observation, reward, terminated, info


class Nothing(Right):
    def wrong(self, *returned: Any) -> None:
        pass


class Outside(Right):
    def wrong(self, observation: Any, *rest: Any) -> Any:
        return observation + np.float32(50), *rest


class Bug(Right):
    def wrong(self, *returned: Any) -> Any:
        empty: dict[int, Any] = {}
        return empty[3]


class Exits(Right):
    def wrong(self, *returned: Any) -> Any:
        sys.exit("no licence")


class Leaves(Right):
    def wrong(self, *returned: Any) -> Any:
        os._exit(0)


class Interrupts(Right):
    def wrong(self, *returned: Any) -> Any:
        raise KeyboardInterrupt


class OwnError(Exception):
    """Cannot be unpickled: its constructor takes other arguments than it passes on."""

    def __init__(self, speed: float, place: str) -> None:
        super().__init__(f"speed {speed} at {place}")


class RaisesOwn(Right):
    def wrong(self, *returned: Any) -> Any:
        raise OwnError(-1.0, "home")


class NoInfo(Right):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed)[0]


class NoSeed(Right):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class NoSpace(Right):
    observation_space = None


class NoReset(gym.Env[Any, Any]):
    observation_space, action_space, step = Right.observation_space, Right.action_space, Right.step


class BrokenClose(Right):
    def close(self) -> None:
        raise OSError("still open")


class NeverEnds(Right):
    def wrong(self, observation: Any, reward: Any, *rest: Any) -> Any:
        return observation, reward, False, False, {}


SEEN = threading.Event()


class Slow(Right):
    """Hangs when it is made until somebody has seen it, and then fails."""

    def __init__(self) -> None:
        super().__init__()
        SEEN.wait(60)
        raise RuntimeError("at last")


class Wrapped(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper with the mistake, around an environment without."""

    def __init__(self) -> None:
        super().__init__(gym.wrappers.TimeLimit(Right(), 5))

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, [reward], *rest


class Sampled(Right):
    """Any observation space."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.observation_space = SPACES[kind]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), *super().step(action)[1:]


SPACES: dict[str, spaces.Space[Any]] = {
    "float32": spaces.Box(-1.0, 1.0, (3,), np.float32),
    "float64": spaces.Box(-1.0, 1.0, (3,), np.float64),
    "image": spaces.Box(0.0, 1.0, (10, 10, 3), np.float32),
    "float16": spaces.Box(-1.0, 1.0, (3,), np.float16),
    "int64": spaces.Box(0, 5, (3,), np.int64),
    "uint8": spaces.Box(0, 255, (3,), np.uint8),
    "bool": spaces.Box(0, 1, (3,), np.bool_),
    "uint8 image": spaces.Box(0, 255, (10, 10, 3), np.uint8),
    "odd image": spaces.Box(0.0, 1.0, (7, 9, 3), np.float32),
    "scalar": spaces.Box(-1.0, 1.0, (), np.float32),
    "empty": spaces.Box(-1.0, 1.0, (0,), np.float32),
    "matrix": spaces.Box(-1.0, 1.0, (3, 3), np.float32),
    "int matrix": spaces.Box(0, 5, (3, 3), np.int64),
    "four": spaces.Box(0.0, 1.0, (2, 4, 4, 3), np.float32),
    "discrete": spaces.Discrete(4),
    "multidiscrete": spaces.MultiDiscrete([3, 4]),
    "multibinary": spaces.MultiBinary(4),
    "dict": spaces.Dict(place=spaces.Box(-1.0, 1.0, (2,)), door=spaces.Discrete(2)),
    "tuple": spaces.Tuple((spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(2))),
    "text": spaces.Text(4),
    "sequence": spaces.Sequence(spaces.Discrete(3)),
    "graph": spaces.Graph(spaces.Box(-1.0, 1.0, (2,)), None),
    "text within": spaces.Dict(at=spaces.Tuple((spaces.Discrete(2), spaces.Text(3)))),
    "numbered": spaces.Dict({1: spaces.Discrete(2), 2: spaces.Discrete(3)}),
    "nothing within": spaces.Dict(at=spaces.Tuple(()), on=spaces.Discrete(2)),
    "a large number": spaces.Discrete(10**8),
}


def nothing() -> None:
    """Forgets its `return`."""
    Right()


def a_class() -> type:
    return Right


def vectorised() -> Any:
    return gym.vector.SyncVectorEnv([Right])


def needs_a_display() -> gym.Env[Any, Any]:
    raise RuntimeError("no display here")


def ends_the_program() -> gym.Env[Any, Any]:
    sys.exit(3)


def here_only(pid: int) -> gym.Env[Any, Any]:
    """Works on the driver, and not on a worker."""
    if os.getpid() != pid:
        raise RuntimeError("no display")
    return Right()
