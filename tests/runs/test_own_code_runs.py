"""Whole runs with the user's own code: killed and continued, and what the rehearsal finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.paths import ENVS
from support.running import Run, committed, rows, trial_of, write_config

from raytrain.commands.probe import probe_config
from raytrain.records import differences

OWN: dict[str, Any] = {
    "environment": {"env": "CartPole-v1"},
    "env_runners": {"num_env_runners": 0, "num_envs_per_env_runner": 2},
    "training": {"train_batch_size_per_learner": 128, "minibatch_size": 32, "num_epochs": 2},
}
NETWORK = {"module_class": "own_nets:Recurrent", "model_config": {"width": 8, "max_seq_len": 8}}


def config_in(place: Path, **sections: Any) -> Path:
    """Without the modules, which this process has in its path and can import from one place."""
    return write_config(place / "run.yaml", **{**OWN, **sections})


def test_code_that_keeps_its_state_is_exact(tmp_path: Path) -> None:
    path = config_in(
        tmp_path,
        rl_module=NETWORK,
        callbacks={"callbacks_class": "own_callbacks:Counting"},
        training={**OWN["training"], "learner_class": "own_learners:Counting"},
    )
    probed = probe_config(path)
    assert probed.own_code is not None
    assert probed.own_code.exact
    assert "own code: exact" in probed.report()


@pytest.mark.parametrize(
    ("sections", "piece", "reason"),
    [
        pytest.param(
            {"callbacks": {"callbacks_class": "own_callbacks:Forgetful"}},
            "callbacks.callbacks_class (Forgetful, in ",
            "did not come back: put",
            id="state",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"rl_module": {"module_class": "own_nets:Chance", "model_config": {"width": 8}}},
            "rl_module.module_class (own_nets:Chance)",
            "two processes with one seed differ in iteration 1 (what was sampled)",
            id="chance",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_cannot_be_restored_is_named(
    tmp_path: Path, sections: dict[str, Any], piece: str, reason: str
) -> None:
    probed = probe_config(config_in(tmp_path, **sections))
    found = probed.own_code
    assert found is not None
    assert not found.exact
    assert found.piece.startswith(piece)
    assert reason in found.reason
    assert json.loads(json.dumps(probed.to_dict()))["own_code"]["piece"] == found.piece


@pytest.mark.slow
def test_a_run_that_is_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    sections = {
        "rl_module": NETWORK,
        "callbacks": {
            "callbacks_class": "own_callbacks:Counting",
            "on_episode_end": "own_callbacks:on_end",
        },
        "training": {**OWN["training"], "learner_class": "own_learners:Counting"},
        "env_runners": {"num_env_runners": 1},
        "checkpoint": {"checkpoint_frequency": 1},
    }
    places = [tmp_path / name for name in ("alone", "killed")]
    for place in places:
        place.mkdir()
        for file in ENVS.glob("own_*.py"):
            (place / file.name).write_text(file.read_text())
    alone, killed = (config_in(place, **sections) for place in places)
    run = Run("train", str(alone), log=tmp_path / "alone.txt")
    assert run.wait() == 0, run.output()
    run = Run("train", str(killed), log=tmp_path / "killed.txt")
    run.until(lambda: len(committed(trial_of(killed))) > 1)
    run.kill_everything()
    run = Run("train", str(killed), log=tmp_path / "again.txt")
    assert run.wait() == 0, run.output()
    assert "Continued from" in run.output()
    expected, found = rows(trial_of(alone)), rows(trial_of(killed))
    assert [row["results_seen"] for row in found] == list(range(1, len(found) + 1))
    assert all(row["exact"] for row in found)
    for one, other in zip(expected, found, strict=True):
        assert one["weights_sha256"] == other["weights_sha256"]
        assert differences(one, other) == []
