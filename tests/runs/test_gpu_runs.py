"""Whole runs whose learner is on a GPU: killed and continued, side by side on one
card, forked, exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.commands import here
from support.devices import LONG_ON_THE_CPU, learners
from support.paths import ENVS
from support.running import (
    Holds,
    Run,
    committed,
    experiment_of,
    iteration_of,
    rows,
    train,
    trial_of,
    write_config,
)

DENSE = {"training": {"train_batch_size_per_learner": 512, "num_epochs": 2}}
CASES: dict[str, dict[str, Any]] = {
    "dense, no runner": {**DENSE, "env_runners": {"num_env_runners": 0}},
    "pictures, two runners": {
        "environment": {"env": "chase:Chase"},
        "env_runners": {"num_env_runners": 2},
        "training": {"train_batch_size_per_learner": 256, "num_epochs": 2},
        "rl_module": {"model_config": {"head_fcnet_hiddens": [32]}},
    },
    "recurrent, one runner": {
        **DENSE,
        "rl_module": {"model_config": {"use_lstm": True, "lstm_cell_size": 16, "max_seq_len": 8}},
    },
    "dense, a learner's process": {**DENSE, "learners": {"num_learners": 1}},
}


def written(path: Path, device: str, case: str, **sections: Any) -> Path:
    given = {**CASES[case], **sections}
    shutil.copy(ENVS / "chase.py", path.parent)
    return write_config(
        path,
        **{**given, "learners": learners(device, **given.get("learners", {}))},
        stop={"iterations": 8},
    )


@pytest.mark.parametrize("device", LONG_ON_THE_CPU)
@pytest.mark.parametrize("case", CASES)
def test_a_run_that_was_killed_goes_on_bit_for_bit(case: str, device: str, tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = written(tmp_path / "whole" / "run.yaml", device, case)
    train(whole)
    killed = written(tmp_path / "killed" / "run.yaml", device, case)
    run = Run("train", str(killed), log=tmp_path / "killed.txt")
    run.until(lambda: committed(trial_of(killed)))
    run.kill_everything()
    assert iteration_of(trial_of(killed)) < 8
    train(killed)
    digests = [[row["weights_sha256"] for row in rows(trial_of(each))] for each in (whole, killed)]
    assert len(set(digests[0])) == 8
    assert digests[0] == digests[1]


@pytest.mark.parametrize("device", LONG_ON_THE_CPU)
def test_two_trials_share_a_card(device: str, tmp_path: Path) -> None:
    holds = Holds(tmp_path, 2, steps=256)
    config = write_config(
        tmp_path / "run.yaml",
        **holds.sections,
        **DENSE,
        env_runners={"num_env_runners": 0},
        seed={"grid_search": [1, 2]},
        learners=learners(device, 0.5),
        stop={"iterations": 4},
    )
    run = Run("train", str(config), log=tmp_path / "log.txt")
    # Neither can be over before both have begun.
    run.until(lambda: all(iteration_of(trial_of(config, index)) == 2 for index in (0, 1)))
    holds.release_all()
    assert run.wait() == 0, run.output()
    ends = [rows(trial_of(config, index))[-1] for index in (0, 1)]
    assert [row["training_iteration"] for row in ends] == [4, 4]
    assert ends[0]["weights_sha256"] != ends[1]["weights_sha256"]


@pytest.mark.parametrize("device", LONG_ON_THE_CPU)
def test_a_run_is_forked_evaluated_and_exported(device: str, tmp_path: Path) -> None:
    config = written(tmp_path / "run.yaml", device, "dense, no runner")
    train(config)
    experiment = experiment_of(config)
    train(config, "--from", str(experiment), "--name", "child", "--set", "stop.iterations=10")
    child = experiment.with_name("child")
    assert rows(next(child.glob("trial_*")))[-1]["training_iteration"] == 10
    found = json.loads(here("evaluate", child, "--episodes", 3, "--seed", 5, "--json").out)
    assert found
    exported = here("export", child, tmp_path / "policy")
    assert exported.code == 0, exported.err
