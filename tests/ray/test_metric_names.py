"""A run without a score."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.commands import here
from support.running import experiment_of, train_here, write_config

MINIMAL = {"name": "a", "environment": {"env": "CartPole-v1"}, "stop": {"iterations": 2}}


@pytest.mark.slow
def test_a_run_without_a_score_says_so_and_suggests_no_best(
    tmp_path: Path, local_ray: None
) -> None:
    config = write_config(
        tmp_path / "run.yaml",
        env_runners={"num_env_runners": 0},
        training={"train_batch_size_per_learner": 256, "num_epochs": 1},
        checkpoint={"score": "profitt"},
        stop={"iterations": 2, "metrics": {"profittt": 3}},
    )
    said = train_here(config)
    assert said.count("checkpoint.score: there is no metric 'profitt'") == 1
    assert said.count("stop.metrics: there is no metric 'profittt'") == 1
    assert "There is no best checkpoint: checkpoint.score, 'profitt', never had a value." in said
    assert ":best" not in said
    assert f"evaluate {experiment_of(config)}:final --episodes" in said
    assert here("evaluate", f"{experiment_of(config)}:final", "--episodes", "1").code == 0
