"""Iterations that are trained again after a failure are compared with what was recorded before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.paths import ENVS
from support.running import rows, train_here, trial_of, write_config


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the environment's module, which this process imports once."""
    directory = tmp_path_factory.mktemp("repeated")
    shutil.copy(ENVS / "late_envs.py", directory)
    return directory


def train_with_a_failure(place: Path, name: str, **arguments: object) -> tuple[str, Path]:
    """Eight iterations with a failure in the last one, after the checkpoint of iteration 5."""
    config = write_config(
        place / f"{name}.yaml",
        name=name,
        environment={
            "env": "late_envs:Late",
            "env_config": {"marker": str(place / f"{name}_failed"), "fails_at": 3840, **arguments},
        },
        env_runners={"num_env_runners": 0},
        training={"train_batch_size_per_learner": 512, "num_epochs": 1},
        stop={"iterations": 8},
        checkpoint={"checkpoint_frequency": 5, "num_to_keep": None},
    )
    return train_here(config), trial_of(config)


@pytest.mark.slow
def test_a_state_that_matters_late_ends_exactness(place: Path, local_ray: None) -> None:
    said, trial = train_with_a_failure(place, "counts")
    assert "Continued from checkpoint_000005" in said
    assert (
        "From iteration 5 on this run is not exact any more: iteration 6 had been trained before, "
        "and now came out differently (weights "
    ) in said
    manifest = json.loads((trial / "final" / "manifest.json").read_text())
    assert manifest["exact"] is False
    assert manifest["exact_lost"]["since_iteration"] == 5
    assert [row["exact"] for row in rows(trial)] == [True] * 5 + [False] * 3


def test_an_exact_run_stays_exact(place: Path, local_ray: None) -> None:
    said, trial = train_with_a_failure(place, "ignores", counts=False)
    assert "Continued from checkpoint_000005" in said
    assert "not exact" not in said
    assert all(row["exact"] for row in rows(trial))
