"""Tiny `ExactPPO`s for tests: build one, train it, save it, and say what each iteration was.

algorithm = build(training={"lr": 1e-3})
trail = iterate(algorithm, 2)
algorithm.save_exact(directory)
"""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import own_ray
import torch

from raytrain import _ray
from raytrain.config import config_from_dict, to_algorithm_config
from raytrain.ppo.algorithm import ExactPPO, prepare
from raytrain.records import differences
from raytrain.rollout.runner_pool import RunnerRules

TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 5,
    "environment": {"env": "CartPole-v1"},
    "env_runners": {"num_env_runners": 0, "num_envs_per_env_runner": 2},
    "training": {
        "lr": 3e-3,
        "train_batch_size_per_learner": 128,
        "minibatch_size": 32,
        "num_epochs": 2,
    },
    "rl_module": {"model_config": {"fcnet_hiddens": [16]}},
    "stop": {"iterations": 100},
    "import_path": str(Path(__file__).parent),
}


@dataclass(frozen=True)
class Iteration:
    """What one iteration was: its result, and the rows of the episodes that ended in it."""

    row: dict[str, Any]
    weights_sha256: str
    finished: list[dict[str, Any]]


class Told(ExactPPO):
    """`ExactPPO` that keeps what it tells, and clears away after itself."""

    def tell(self, message: str) -> None:
        self.told = [*getattr(self, "told", []), message]

    def lost_exactness(self, why: str) -> None:
        self.inexact = [*getattr(self, "inexact", []), why]

    def cleanup(self) -> None:
        super().cleanup()
        shutil.rmtree(self.logdir, ignore_errors=True)


def build(*, strategy: str = "pickle", **sections: Any) -> Told:
    """TINY with `sections` merged in, one level deep."""
    config = dict(TINY)
    for key, value in sections.items():
        merged = isinstance(value, dict) and isinstance(config.get(key), dict)
        config[key] = {**config[key], **value} if merged else value
    given = config_from_dict(config)
    prepared = prepare(to_algorithm_config(given))
    own_ray.ensure()
    with _ray.local.files_below(tempfile.gettempdir()):
        algorithm = Told(prepared, strategy=strategy, rules=RunnerRules.of(given))
    algorithm.told = getattr(algorithm, "told", [])
    return algorithm


@contextmanager
def built(**arguments: Any) -> Iterator[Told]:
    algorithm = build(**arguments)
    try:
        yield algorithm
    finally:
        algorithm.stop()


def iterate(algorithm: ExactPPO, iterations: int) -> list[Iteration]:
    trail = []
    for _ in range(iterations):
        row = dict(algorithm.train())
        finished = algorithm.take_finished_episodes()
        trail.append(Iteration(row, algorithm.weights_digest, finished))
    return trail


def unlike(one: list[Iteration], other: list[Iteration]) -> list[str]:
    """Everything in which two trails differ, wall-clock left out; empty if nothing."""
    found = [] if len(one) == len(other) else [f"{len(one)} and {len(other)} iterations"]
    for a, b in zip(one, other, strict=False):
        at = f"iteration {a.row['training_iteration']}"
        found += [f"{at}: {key}: {x} / {y}" for key, x, y in differences(a.row, b.row)]
        if a.weights_sha256 != b.weights_sha256:
            found.append(f"{at}: weights digest")
        if a.finished != b.finished:
            found.append(f"{at}: finished episodes")
    return found


def disturb() -> None:
    """Move the process's global random generators to somewhere else."""
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)


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
