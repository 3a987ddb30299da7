"""Tiny `ExactPPO`s for tests: build one, train it, save it, and say what each iteration was.

algorithm = build(training={"lr": 1e-3})
trail = iterate(algorithm, 2)
algorithm.save_exact(directory)
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raytrain import _ray
from raytrain.config import config_from_dict, to_algorithm_config
from raytrain.ppo.algorithm import ExactPPO, prepare
from raytrain.records import differences
from raytrain.rollout.runner_pool import RunnerRules
from support import own_ray
from support.paths import ENVS

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
    "import_path": str(ENVS),
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


def unlike_once_restored(saved: Path, **sections: Any) -> list[str]:
    """Everything in which two iterations after a save, which is restored into another algorithm,
    differ from those of the original."""
    with built(**sections) as algorithm:
        iterate(algorithm, 2)
        algorithm.save_exact(saved)
        trail = iterate(algorithm, 2)
    disturb()
    with built(**sections) as restored:
        restored.load_exact(saved)
        return unlike(trail, iterate(restored, 2))
