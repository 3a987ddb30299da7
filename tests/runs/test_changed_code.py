"""Runs whose code changes between two starts, or while they train."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from support.paths import ENVS
from support.running import Holds, Run, experiment_of, iteration_of, train, trial_of, write_config
from typer.testing import CliRunner

from raytrain.cli import app
from raytrain.records import read_events

SMALL: dict[str, Any] = {
    "environment": {"env": "edited_env:make", "env_config": {"data": "prices.csv"}},
    "training": {"train_batch_size_per_learner": 256, "num_epochs": 1},
    "checkpoint": {"checkpoint_frequency": 1, "num_to_keep": None},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for name in ("edited_env.py", "edited_reward.py"):
        shutil.copy(ENVS / name, tmp_path)
    (tmp_path / "prices.csv").write_text("1,2")
    return write_config(tmp_path / "run.yaml", **SMALL)


def train_to(iteration: int, config: Path) -> str:
    log = config.parent / "log.txt"
    log.unlink(missing_ok=True)
    return train(config, "--set", f"stop.iterations={iteration}", log=log)


def final(config: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((trial_of(config) / "final/manifest.json").read_text())
    return manifest


@pytest.mark.slow
def test_code_that_changes_ends_exactness(config: Path) -> None:
    reward = config.parent / "edited_reward.py"
    source = reward.read_text()
    train_to(2, config)
    begun = final(config)
    files = {"edited_env.py", "edited_reward.py", "prices.csv"}
    assert begun["code"]["files"].keys() == files
    assert (
        begun["code"] == json.loads((experiment_of(config) / "experiment.json").read_text())["code"]
    )
    assert str(config.parent) not in json.dumps(begun["code"])

    reward.write_text(source.replace("1.0 -", "2.0 -"))
    (config.parent / "prices.csv").write_text("1,3")
    output = train_to(4, config)
    what = "edited_reward.py changed, prices.csv changed"
    assert (
        f"{what} since the run was last trained: it continues, but is not exact from here on; its "
        "manifests say so." in output
    )
    assert f"From iteration 2 on this run is not exact any more: {what}." in output
    lost = {"why": what, "since_iteration": 2}
    assert final(config)["exact"] is False
    assert final(config)["exact_lost"] == lost
    assert final(config)["code"] != begun["code"]
    shown = CliRunner().invoke(app, ["show", str(experiment_of(config))]).output
    assert f"not exact from iteration 2 on: {what}" in shown
    assert f"edited_reward.py {final(config)['code']['files']['edited_reward.py'][:12]}" in shown


@pytest.mark.slow
def test_code_that_changes_and_changes_back(config: Path) -> None:
    reward = config.parent / "edited_reward.py"
    source = reward.read_text()
    train_to(2, config)
    begun = final(config)
    assert "changed" not in train_to(4, config)
    assert final(config)["exact_lost"] is None
    assert final(config)["code"] == begun["code"]
    reward.write_text(source.replace("1.0 -", "2.0 -"))
    train_to(6, config)
    lost = {"why": "edited_reward.py changed", "since_iteration": 4}
    assert final(config)["exact_lost"] == lost

    # What was trained meanwhile does not become exact again; a checkpoint from before it is.
    reward.write_text(source)
    assert "edited_reward.py changed since" in train_to(7, config)
    assert final(config)["exact_lost"] == lost
    for path in trial_of(config).glob("*/manifest.json"):
        if json.loads(path.read_text())["iteration"] > 3:
            shutil.rmtree(path.parent)
    output = train_to(5, config)
    assert "Continued from checkpoint_000003" in output
    assert "changed" not in output
    assert final(config)["exact_lost"] is None

    # A comment is a change too, and manifests say what it was when experiment.json is gone.
    reward.write_text(source + "# A comment.\n")
    (experiment_of(config) / "experiment.json").unlink()
    assert "edited_reward.py changed since the run was last trained" in train_to(6, config)
    assert final(config)["exact_lost"] == {
        "why": "edited_reward.py changed",
        "since_iteration": 5,
    }


@pytest.mark.slow
def test_an_edit_while_the_run_trains_counts_when_a_process_imports_it(tmp_path: Path) -> None:
    holds = Holds(tmp_path, 3)
    config = write_config(tmp_path / "run.yaml", **holds.sections, stop={"iterations": 5})
    run = Run("train", str(config), log=tmp_path / "log.txt")
    run.until(lambda: iteration_of(trial_of(config)) == 3)
    module = tmp_path / "held_env.py"
    module.write_text(module.read_text() + "# A comment.\n")
    os.kill(run.one("ray::EnvRunnerActor"), signal.SIGKILL)
    # The console has it with the next result, which the hold keeps back.
    events = trial_of(config) / "events.jsonl"
    run.until(lambda: any("not exact any more" in e.message for e in read_events(events)))
    holds.release()
    assert run.wait() == 0, run.output()
    why = "the env runner of group 0 has other code: held_env.py changed"
    assert f"From iteration 4 on this run is not exact any more: {why}." in run.output()
    assert final(config)["exact_lost"] == {"why": why, "since_iteration": 4}
