"""Runs whose observations are not one Box of floats, and those with action masks, are killed, and
end as those that were not; what they have learned is exported and plays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from masked_envs import Masked
from support.commands import here
from support.paths import ENVS
from support.running import (
    Holds,
    Reference,
    Run,
    committed,
    experiment_of,
    rows,
    train,
    trial_of,
    write_config,
)
from support.same_run import assert_same_run

import raytrain

pytestmark = pytest.mark.slow

FILTER = {"observation_filter": "MeanStdFilter"}
SPACES: dict[str, tuple[str, dict[str, Any]]] = {
    "one-hot": ("started axes", {}),
    "nested-filtered": ("nested", FILTER),
    "images-and-numbers": ("eyes", {}),
    "bytes-filtered": ("bytes", FILTER),
}


MASKS: dict[str, dict[str, Any]] = {
    "in-the-observation": {"space": "discrete", "where": "legal"},
    "in-the-info": {"space": "multi-discrete", "where": "info"},
}


def config_at(place: Path, holds: Holds, env: str, environment: Any, runners: Any = ()) -> Path:
    shutil.copy(ENVS / f"{env}.py", place)
    held = holds.sections["environment"]["env_config"]
    environment["env_config"] = {**environment["env_config"], **held}
    sections = {
        **holds.sections,
        "environment": {"env": f"{env}:held", **environment},
        "env_runners": {"num_env_runners": 1, "num_envs_per_env_runner": 2, **dict(runners)},
        "training": {"train_batch_size_per_learner": 512, "lr": 3e-3},
        "stop": {"iterations": 8},
        "evaluation": {"evaluation_interval": 4, "evaluation_duration": 2},
    }
    return write_config(place / "run.yaml", **sections)


def killed_run(tmp_path: Path, configured: Callable[[Path, Holds], Path]) -> Path:
    """The config of a run that was killed and continued, and is the same as one that was not."""
    quiet, disturbed = tmp_path / "quiet", tmp_path / "disturbed"
    for place in (quiet, disturbed):
        place.mkdir()
    train(configured(quiet, Holds(quiet)))
    reference = Reference(trial_of(quiet / "run.yaml"))
    holds = Holds(disturbed, 3, steps=256)
    config = configured(disturbed, holds)
    run = Run("train", str(config), log=disturbed / "log.txt")
    run.until(lambda: committed(trial_of(config)))
    run.kill_everything()
    holds.release()
    said = train(config, log=disturbed / "again.txt")
    assert "not exact" not in said and "RLlib's own" not in said
    assert_same_run(trial_of(config), reference)
    returns = [row["env_runners"]["episode_return_mean"] for row in rows(trial_of(config))]
    assert returns[-1] > returns[0]  # It learns.
    return config


@pytest.mark.parametrize("name", SPACES)
def test_killed_runs_end_as_the_undisturbed_one(tmp_path: Path, name: str) -> None:
    kind, runners = SPACES[name]

    def configured(place: Path, holds: Holds) -> Path:
        return config_at(place, holds, "observed", {"env_config": {"kind": kind}}, runners)

    require_policy(killed_run(tmp_path, configured), tmp_path / "policy")


@pytest.mark.parametrize("name", MASKS)
def test_killed_runs_with_masks_end_as_the_undisturbed_one(tmp_path: Path, name: str) -> None:
    arguments = MASKS[name]

    def configured(place: Path, holds: Holds) -> Path:
        environment = {"action_mask": arguments["where"], "env_config": arguments}
        return config_at(place, holds, "masked_envs", environment)

    config = killed_run(tmp_path, configured)
    require_plays(config, tmp_path)
    policy = raytrain.load_policy(f"{experiment_of(config)}:final")
    env: Any = Masked(**arguments)
    observation, info = env.reset(seed=0)
    over = False
    while not over:  # It raises at an action that is not allowed.
        given = {"action_mask": info["action_mask"]} if "action_mask" in info else {}
        action = policy.act(observation, **given)
        observation, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated


def require_policy(config: Path, exported: Path) -> None:
    found = here("export", f"{experiment_of(config)}:final", exported, "--onnx", "--json")
    assert found.code == 0, found
    assert json.loads(found.out)["needs_ray"] is None
    policy = raytrain.load_policy(exported)
    space = policy.observation_space
    space.seed(0)
    for _ in range(5):
        assert policy.action_space.contains(np.int64(policy.act(space.sample())))
    require_plays(config, exported.parent)


def require_plays(config: Path, place: Path) -> None:
    # In a process of its own: each run has its own copy of the environment's module.
    final, log = f"{experiment_of(config)}:final", place / "played.txt"
    played = Run("evaluate", final, "--episodes", "3", log=log)
    assert played.wait() == 0, played.output()
