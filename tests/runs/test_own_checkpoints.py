"""A run in the place of another one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.running import experiment_of, iteration_of, train, trial_of, write_config

from raytrain.checkpoint import Catalogue
from raytrain.storage import Location


@pytest.mark.slow
def test_a_checkpoint_and_an_end_of_another_run_change_nothing(tmp_path: Path) -> None:
    """The real thing: the other run has another seed and learning rate, and went further."""
    ours = write_config(tmp_path / "ours.yaml", name="ours", stop={"iterations": 2})
    other = write_config(tmp_path / "other.yaml", name="other", seed=7, stop={"iterations": 4})
    train(ours)
    train(other)
    trial = trial_of(ours)
    shutil.rmtree(trial / "final")
    shutil.copytree(trial_of(other) / "final", trial / "final")
    output = train(ours)
    assert "was written by another run or trial (other" in output
    assert iteration_of(trial) == 2
    final = Catalogue(Location.of(trial)).entry("final", verify=True)
    assert final is not None and final.manifest is not None
    assert (final.iteration, final.manifest.experiment) == (2, "ours")
    (experiment_of(ours) / "experiment.json").unlink()  # The checkpoints tell which run it is.
    assert "finished" in train(ours)
