"""Errors of Tune's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray.tune
from support.running import train_here, write_config


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_an_error_of_tune_is_reported_although_all_trials_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(
        tmp_path / "run.yaml",
        env_runners={"num_env_runners": 0},
        training={"train_batch_size_per_learner": 256, "num_epochs": 1},
        stop={"iterations": 1},
    )
    fit = ray.tune.Tuner.fit

    def fails_at_the_end(tuner: Any) -> Any:
        fit(tuner)
        raise RuntimeError("no room for the last snapshot")

    monkeypatch.setattr(ray.tune.Tuner, "fit", fails_at_the_end)
    output = train_here(config)
    assert "run finished: trial_00000 at iteration 1" in output
    assert "Tune ended with an error: RuntimeError: no room for the last snapshot." in output
