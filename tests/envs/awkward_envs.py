"""Environments with awkward state, in a module that a fresh process can import."""

from __future__ import annotations

import os
import random
import threading
import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

EPISODES = 0
LEVEL = 1.0
TABLE: dict[int, float] = {}


class Walk(gym.Env):
    """A noisy walk on a line, over when it leaves [-2, 2]; plain Python, so it pickles."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-10, 10, (2,), np.float64)
        self.action_space = spaces.Discrete(2)
        self.place = self.speed = 0.0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place, self.speed = self.np_random.uniform(-1, 1), 0.0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.speed = 0.9 * self.speed + (0.1 if action else -0.1) + self.noise()
        self.place += self.speed
        return self._observe(), self.place, bool(abs(self.place) > 2), False, {}

    def noise(self) -> float:
        return float(self.np_random.normal(0, 0.02))

    def _observe(self) -> Any:
        return np.array([self.place, self.speed])


class Locked(Walk):
    """Holds what cannot be pickled; its state follows from its generator and the actions."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.ticks = (tick for tick in range(10**9))
        self.scale: Any = lambda value: value * 1.0

    def noise(self) -> float:
        next(self.ticks)
        with self.lock:
            return float(self.scale(super().noise()))


class OwnState(Locked):
    def get_state(self) -> Any:
        return {"place": self.place, "speed": self.speed}

    def set_state(self, state: Any) -> None:
        self.place, self.speed = state["place"], state["speed"]


class LyingState(Walk):
    """Its state lacks the speed."""

    def get_state(self) -> Any:
        return {"place": self.place}

    def set_state(self, state: Any) -> None:
        self.place = state["place"]


class RaisingState(Walk):
    def get_state(self) -> None:
        raise NotImplementedError("get_state is for\ngrown-ups")

    def set_state(self, state: Any) -> None:
        raise NotImplementedError


class GlobalNoise(CartPoleEnv):
    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return (observation + np.random.randn(4).astype(np.float32), *rest)


class SeededByEntropy(Walk):
    """Draws rarely: from a generator that a reset without a seed has seeded by chance."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        random.seed(seed)
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, reward + (random.random() if self.place > 1.9 else 0.0), *rest


class LockedGlobalNoise(Locked):
    def noise(self) -> float:
        return float(np.random.normal(0, 0.02))


class EpisodeCounter(Walk):
    """The first observations depend on how many episodes this PROCESS has seen."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        global EPISODES  # noqa: PLW0603
        EPISODES += 1
        super().reset(seed=seed)
        self.place += 0.001 * EPISODES
        return self._observe(), {}


class ModuleLevel(Walk):
    """The noise depends on a module's variable, which whoever starts the run sets."""

    def noise(self) -> float:
        return LEVEL * super().noise()


class StateInTable(Walk):
    """The speed lies in a table of the module, under a number that copies of the object share."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.number = len(TABLE)
        TABLE[self.number] = 0.0
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        self.speed = TABLE[self.number]
        result = super().step(action)
        TABLE[self.number] = self.speed
        return result


class Rebuilt(Walk, gym.utils.EzPickle):
    def __init__(self) -> None:
        gym.utils.EzPickle.__init__(self)
        Walk.__init__(self)


class Clock(Walk):
    def noise(self) -> float:
        return (time.perf_counter_ns() % 1000) * 1e-6


class Entropy(Walk):
    def noise(self) -> float:
        return os.urandom(1)[0] * 1e-5


class RefusesCopies(Walk):
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError("no copies of me")

    def __deepcopy__(self, memo: Any) -> None:
        raise RuntimeError("no copies of me")


class Nested(Walk):
    """A nested observation, and nested actions, which are no array."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict(
            {"walk": spaces.Box(-10, 10, (2,), np.float64), "pair": spaces.Tuple(
                (spaces.Discrete(5), spaces.Box(-np.inf, np.inf, (1,), np.float32)))}
        )  # fmt: skip
        self.action_space = spaces.Dict({"go": spaces.Discrete(2), "by": spaces.Box(0, 1, (3,))})

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action["go"])
        return (observation, reward + float(action["by"].sum()), *rest)

    def _observe(self) -> Any:
        return {
            "walk": np.array([self.place, self.speed]),
            "pair": (np.int64(self.place > 0), np.array([0.5], np.float32)),
        }


class LockedNested(Nested, Locked):
    pass


class Drift(gym.ObservationWrapper):
    """A wrapper with a generator of its own, and a running mean that outlives episodes."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.random = np.random.default_rng(5)
        self.mean, self.count = np.zeros(2), 0
        self.inner = env

    def observation(self, observation: Any) -> Any:
        self.count += 1
        self.mean += (observation - self.mean) / self.count
        return observation - self.mean + self.random.normal(0, 0.1, 2)


def drifting() -> gym.Env:
    return gym.wrappers.TimeLimit(Drift(Locked()), 25)


def stacked() -> gym.Env:
    env = gym.wrappers.TimeLimit(OwnState(), 25)
    return gym.wrappers.FrameStackObservation(Drift(env), 3)


class HashOrder(Walk):
    """Numbers its doors in the order of a set of strings, which differs between processes."""

    names: tuple[str, ...] = ("left", "right")

    def __init__(self) -> None:
        super().__init__()
        doors = list(set(self.names))
        self.shift = 0.01 * doors.index(self.names[0])

    def noise(self) -> float:
        return super().noise() + self.shift


class HashOrderLate(Walk):
    """Uses a hash only after some steps."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def noise(self) -> float:
        self.steps += 1
        chance = hash(f"step {self.steps}") % 100 if self.steps > 10 else 0
        return super().noise() + 1e-4 * chance


class LockedHashOrder(HashOrder, Locked):
    pass


class AddressOrder(Walk):
    """Visits its rooms in the order of a set of objects, which are hashed by their addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.rooms = {AddressOrder.Room(number) for number in range(2)}

    def noise(self) -> float:
        return super().noise() + 0.01 * next(iter(self.rooms)).number

    class Room:
        def __init__(self, number: int) -> None:
            self.number = number


class LockedAddressOrder(AddressOrder, Locked):
    pass


class HashOrderAndClock(HashOrder):
    def noise(self) -> float:
        return super().noise() + (time.perf_counter_ns() % 1000) * 1e-6
