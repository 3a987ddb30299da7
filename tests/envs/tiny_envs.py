"""Environments that raise or hang at a certain step, and a small Atari game."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np


class Stumbling(gym.Env[Any, Any]):
    """Raises in one of its steps."""

    def __init__(self, at: int) -> None:
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.at, self.steps = at, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == self.at:
            self.stumble()
        return np.zeros(2, np.float32), 1.0, self.steps % 16 == 0, False, {}

    def stumble(self) -> None:
        raise ValueError(f"negative speed at step {self.steps}")


class Hanging(gym.Wrapper[Any, Any, Any, Any]):
    """CartPole whose step number `at` never returns, unless there is the file `unless`; which it
    leaves, if it can, so that it happens once."""

    def __init__(self, at: int, unless: str) -> None:
        super().__init__(gym.make("CartPole-v1"))
        self.at, self.unless, self.steps = at, Path(unless), 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == self.at and not self.unless.exists():
            if self.unless.parent.exists():
                self.unless.touch()
            threading.Event().wait()
        return super().step(action)


class Flicker(gym.ObservationWrapper):
    """64 numbers of an Atari screen: enough to see that something moves."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Box(0.0, 1.0, (64,), np.float32)

    def observation(self, observation: Any) -> Any:
        return (observation[34:194:20, ::20].astype(np.float32) / 255).reshape(64)


def pong() -> gym.Env[Any, Any]:
    import ale_py

    gym.register_envs(ale_py)
    game = gym.make("ALE/Pong-v5", obs_type="grayscale", max_episode_steps=40)
    return Flicker(game)


RELEASED = threading.Event()


class Waiting(gym.Wrapper[Any, Any, Any, Any]):
    """CartPole whose step number `at` waits until `RELEASED` is set."""

    def __init__(self, at: int) -> None:
        super().__init__(gym.make("CartPole-v1"))
        self.at, self.steps = at, 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == self.at:
            RELEASED.wait(600)
        return super().step(action)
