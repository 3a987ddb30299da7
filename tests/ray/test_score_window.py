"""One window for stop, score and console: the same number everywhere, and a part of
the exact state."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.commands import here
from support.running import experiment_of, rows, train_here, trial_of, write_config
from support.tiny_ppo import built

from raytrain.checkpoint import read_manifest
from raytrain.ppo.stopping import StopRule
from raytrain.storage import Location


def test_a_resume_in_the_middle_of_a_window_ends_at_the_same_iteration(
    tmp_path: Path, local_ray: None
) -> None:
    """With 128 steps an iteration, four or five iterations of CartPole fill the window."""
    rule = StopRule(metrics={"episode_return_mean": 1.0}, window=25)

    def until_reached(algorithm: Any) -> Any:
        ended = None
        while ended is None:
            result = algorithm.train()
            ended = rule.reached(algorithm.progress(algorithm.iteration), result, algorithm.recent)
        return algorithm.iteration, ended

    with built() as undisturbed:
        for _ in range(2):
            undisturbed.train()
        undisturbed.save_exact(tmp_path / "state")
        expected = until_reached(undisturbed)
    with built() as resumed:
        resumed.load_exact(tmp_path / "state")
        assert until_reached(resumed) == expected
    assert expected[0] > 3
    assert expected[1].endswith(" over 25 episodes")


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Any:
    """A run that ended by its return; and what it said."""
    config = write_config(
        tmp_path_factory.mktemp("window") / "run.yaml",
        env_runners={"num_env_runners": 0, "num_envs_per_env_runner": 2},
        training={"train_batch_size_per_learner": 512, "num_epochs": 1},
        stop={"iterations": 40, "episode_return_mean": 5},
    )
    return config, train_here(config)


@pytest.mark.slow
def test_a_run_ends_with_the_first_full_window_and_says_one_number_everywhere(ended: Any) -> None:
    config, said = ended
    records = rows(trial_of(config))
    full = [row["num_episodes_lifetime_"] >= 100 for row in with_lifetime(records)]
    assert full == [False] * (len(full) - 1) + [True]
    last = records[-1]
    mean = last["recent"]["episode_return_mean"]
    assert last["stop"] == {"window": 100, "episodes": 100, "episode_return_mean": mean}
    assert last["checkpoint"] == {"score": mean, "episodes": 100}
    # RLlib's own metric is that of the iteration's episodes.
    assert last["env_runners"]["episode_return_mean"] != mean
    assert f"return {mean:,.1f} of 5 over 100 episodes" in said
    assert f"score {mean:g} (episode_return_mean over 100 episodes)" in said
    final = read_manifest(Location.of(trial_of(config) / "final"))
    assert (final.score, final.metrics["checkpoint"]["score"]) == (mean, mean)
    (trial,) = here("show", experiment_of(config), "--json").document["trials"]
    assert (trial["last_score"], trial["last_score_episodes"]) == (mean, 100)
    text = here("show", experiment_of(config)).out
    assert f"last {mean:.6g} over 100 episodes" in text


def with_lifetime(records: Any) -> Any:
    return [
        {**row, "num_episodes_lifetime_": row["env_runners"]["num_episodes_lifetime"]}
        for row in records
    ]


def test_a_run_of_a_former_version_that_had_ended_is_still_finished(
    ended: Any, tmp_path: Path
) -> None:
    """It averaged over the iteration, and its results say nothing of a window."""
    config, _ = ended
    shutil.copytree(experiment_of(config), tmp_path / "results" / "run")
    moved = tmp_path / "run.yaml"
    moved.write_text(config.read_text().replace(str(config.parent), str(tmp_path)))
    (trial,) = (tmp_path / "results" / "run").glob("trial_*")
    manifest = trial / "final" / "manifest.json"
    found = json.loads(manifest.read_text())
    for key in ("stop", "checkpoint"):
        del found["metrics"][key]
    found["metrics"]["env_runners"]["episode_return_mean"] = 5.5
    manifest.write_text(json.dumps(found))
    stored = tmp_path / "results" / "run" / "experiment.json"
    document = json.loads(stored.read_text())
    document["config"]["stop"]["window"] = None
    stored.write_text(json.dumps(document))
    assert "run is finished" in train_here(moved)
