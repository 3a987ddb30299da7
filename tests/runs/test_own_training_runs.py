"""A run with raytrain's own keys of `training`: killed, continued, and continued to another end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.running import Holds, Reference, Run, committed, train, trial_of, write_config
from support.same_run import assert_same_run

KEYS: dict[str, Any] = {
    "training": {
        "lr": {"linear": [3e-3, 0]},
        "clip_param": {"linear": [0.3, 0.1]},
        "clip_range_vf": 0.5,
        "normalize_advantages": "minibatch",
        "target_kl": 0.005,
        "adam_epsilon": 1e-5,
        "weight_decay": 0.001,
        "use_kl_loss": False,
    },
    "rl_module": {"model_config": {"fcnet_hiddens": [16], "orthogonal_init": True}},
    "stop": {"iterations": 8, "timesteps": 8192},
}


@pytest.mark.slow
def test_a_killed_run_is_the_run_and_another_end_is_not(tmp_path: Path) -> None:
    (tmp_path / "undisturbed").mkdir()
    undisturbed = write_config(tmp_path / "undisturbed" / "run.yaml", **KEYS)
    train(undisturbed)
    reference = Reference(trial_of(undisturbed))
    ended_early = [row["learners"]["default_policy"]["approx_kl"] for row in reference.rows]
    assert max(ended_early) > 1.5 * 0.005  # Some updates did.

    holds = Holds(tmp_path, 5)
    config = write_config(tmp_path / "run.yaml", **{**KEYS, **holds.sections})
    trial = trial_of(config)
    run = Run("train", str(config), log=tmp_path / "log.txt")
    run.until(lambda: 4 in committed(trial))
    run.kill_everything()
    holds.release_all()
    train(config, log=tmp_path / "continued.txt")
    assert_same_run(trial, reference)

    longer = ("--set", "stop.timesteps=10000", "--set", "stop.iterations=10")
    said = train(config, *longer, log=tmp_path / "longer.txt")
    assert "stop.timesteps changes from 8192 to 10000, and training.lr, training.clip_param" in said
    manifest = json.loads((trial / "final" / "manifest.json").read_text())
    assert "stop.timesteps changed from 8192 to 10000" in json.dumps(manifest)
    assert manifest.get("manifest", manifest)["exact"] is False
