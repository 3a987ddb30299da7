"""Runs whose observations are not one Box of floats are killed, and end as those that were not;
what they have learned is exported and plays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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


def config_at(place: Path, name: str, holds: Holds) -> Path:
    kind, runners = SPACES[name]
    shutil.copy(ENVS / "observed.py", place)
    (arguments,) = [holds.sections["environment"]["env_config"]]
    sections = {
        **holds.sections,
        "environment": {"env": "observed:held", "env_config": {"kind": kind, **arguments}},
        "env_runners": {"num_env_runners": 1, "num_envs_per_env_runner": 2, **runners},
        "training": {"train_batch_size_per_learner": 512, "lr": 3e-3},
        "stop": {"iterations": 8},
        "evaluation": {"evaluation_interval": 4, "evaluation_duration": 2},
    }
    return write_config(place / "run.yaml", **sections)


@pytest.mark.parametrize("name", SPACES)
def test_killed_runs_end_as_the_undisturbed_one(tmp_path: Path, name: str) -> None:
    quiet, disturbed = tmp_path / "quiet", tmp_path / "disturbed"
    for place in (quiet, disturbed):
        place.mkdir()
    train(config_at(quiet, name, Holds(quiet)))
    reference = Reference(trial_of(quiet / "run.yaml"))
    holds = Holds(disturbed, 3, steps=256)
    config = config_at(disturbed, name, holds)
    run = Run("train", str(config), log=disturbed / "log.txt")
    run.until(lambda: committed(trial_of(config)))
    run.kill_everything()
    holds.release()
    said = train(config, log=disturbed / "again.txt")
    assert "not exact" not in said and "RLlib's own" not in said
    assert_same_run(trial_of(config), reference)
    returns = [row["env_runners"]["episode_return_mean"] for row in rows(trial_of(config))]
    assert returns[-1] > returns[0]  # It learns.
    require_policy(config, disturbed / "policy")


def require_policy(config: Path, exported: Path) -> None:
    found = here("export", f"{experiment_of(config)}:final", exported, "--onnx", "--json")
    assert found.code == 0, found
    assert json.loads(found.out)["needs_ray"] is None
    policy = raytrain.load_policy(exported)
    space = policy.observation_space
    space.seed(0)
    for _ in range(5):
        assert policy.action_space.contains(np.int64(policy.act(space.sample())))
    # In a process of its own: each run has its own copy of the environment's module.
    final, log = f"{experiment_of(config)}:final", exported.parent / "played.txt"
    played = Run("evaluate", final, "--episodes", "3", log=log)
    assert played.wait() == 0, played.output()
