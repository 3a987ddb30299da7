"""`best` and the score it follows: training, evaluation, the environment's own; and
what it survives."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from support.running import experiment_of, rows, train_here, trial_of, write_config
from support.tiny_ppo import built, iterate

from raytrain.checkpoint import BestPolicy, Catalogue, Manifest, read_manifest
from raytrain.config import config_from_dict, eras
from raytrain.records import read_episodes
from raytrain.storage import Location

ENV = '''
import gymnasium as gym

class Earning(gym.Wrapper):
    """CartPole that says at an episode's end what it earned; nothing about its drift in some."""

    def __init__(self):
        super().__init__(gym.make("CartPole-v1"))
        self.steps = 0

    def reset(self, **kwargs):
        self.steps = 0
        return self.env.reset(**kwargs)

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        if terminated or truncated:
            info = {**info, "profit": -self.steps, "episode": {"r": 1.0}, "note": "over"}
            if self.steps % 2:
                info["risk"] = {"drift": float("nan") if self.steps % 3 else self.steps}
        return observation, reward, terminated, truncated, info

def make():
    return Earning()
'''

RUN: dict[str, Any] = {
    "environment": {"env": "earning_envs:make"},
    "env_runners": {"num_env_runners": 0, "num_envs_per_env_runner": 2},
    "training": {"train_batch_size_per_learner": 256, "num_epochs": 2},
    "checkpoint": {"checkpoint_frequency": 2, "num_to_keep": 1},
    "stop": {"iterations": 8},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """Where the environment is, and every config: a module's name can stand for one file only."""
    place = tmp_path_factory.mktemp("home")
    (place / "earning_envs.py").write_text(ENV)
    return place


def config_in(home: Path, name: str, **sections: Any) -> Path:
    merged: dict[str, Any] = {
        key: {**RUN.get(key, {}), **sections.get(key, {})} for key in {**RUN, **sections}
    }
    merged["storage_path"] = str(home / name / "results")
    return write_config(home / f"{name}.yaml", **merged)


BY_PROFIT = {"score": "profit", "score_window": 20}


@pytest.fixture(scope="module")
def by_profit(home: Path) -> Path:
    config = config_in(home, "profit", checkpoint=BY_PROFIT)
    train_here(config)
    return config


@pytest.fixture(scope="module")
def by_evaluation(home: Path) -> Path:
    config = config_in(
        home,
        "evaluation",
        checkpoint={"checkpoint_frequency": 5},
        evaluation={"evaluation_interval": 1, "evaluation_duration": 4},
    )
    train_here(config)
    return config


def best_of(config: Path) -> Manifest:
    return read_manifest(Location.of(trial_of(config) / "best"))


def test_an_environments_metric_is_recorded_and_averaged(by_profit: Path) -> None:
    table = read_episodes(trial_of(by_profit)).to_pylist()
    assert all(row["custom/profit"] == -row["length"] for row in table)
    assert {row["custom/risk/drift"] is None for row in table if row["length"] % 2 == 0} == {True}
    assert not any("note" in name or "episode/" in name for name in table[0])
    for row in rows(trial_of(by_profit)):
        ended = [each for each in table if each["iteration"] == row["training_iteration"]]
        said = row["custom"]["profit"]
        assert said["mean"] == pytest.approx(
            sum(each["custom/profit"] for each in ended) / len(ended)
        )
        assert said["min"] == min(each["custom/profit"] for each in ended)
    assert "ray/tune/custom/profit/mean" in tags(trial_of(by_profit))


def tags(trial: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return {
        value.tag
        for path in trial.glob("events.out.tfevents.*")
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    }


def test_the_score_is_the_mean_over_its_window(by_profit: Path) -> None:
    table = read_episodes(trial_of(by_profit)).to_pylist()
    for entry in Catalogue(Location.of(trial_of(by_profit))).entries():
        until = [row["custom/profit"] for row in table if row["iteration"] <= entry.iteration][-20:]
        assert entry.score == pytest.approx(sum(until) / len(until))


def test_best_survives_retention_is_resumed_from_and_a_metric_ends_the_run(
    by_profit: Path, home: Path
) -> None:
    trial = trial_of(by_profit)
    kept = sorted(path.parent.name for path in trial.glob("*/manifest.json"))
    assert "best" in kept
    assert len([name for name in kept if name.startswith("checkpoint_")]) == 1
    # Profit falls while CartPole is learned, so the best is an early one, pruned under its number.
    best = best_of(by_profit)
    assert best.iteration < 6
    place = home / "resumed" / "results" / "run"
    shutil.copytree(experiment_of(by_profit), place)
    for path in (place / trial.name).glob("*/manifest.json"):
        if path.parent.name != "best":
            shutil.rmtree(path.parent)
    stop = {"iterations": 50, "metrics": {"profit": {"at_most": -30}}, "window": 10}
    config = config_in(home, "resumed", checkpoint=BY_PROFIT, stop=stop)
    said = train_here(config)
    assert f"Continued from best (iteration {best.iteration}" in said
    found, before = rows(trial_of(config)), rows(trial)
    overlap = min(len(found), len(before))
    assert [row["weights_sha256"] for row in found[:overlap]] == [
        row["weights_sha256"] for row in before[:overlap]
    ]
    assert best.iteration + 1 < len(found) < 50
    assert found[-1]["stop"]["profit"] <= -30
    assert all(row["stop"]["profit"] > -30 for row in found[best.iteration : -1])
    # And it is known for finished without training.
    assert "run is finished" in train_here(config)


def test_best_is_the_best_evaluated_iteration(by_evaluation: Path) -> None:
    found = {
        row["training_iteration"]: row["evaluation"]["env_runners"]["episode_return_mean"]
        for row in rows(trial_of(by_evaluation))
    }
    best = best_of(by_evaluation)
    assert best.score == max(found.values())
    assert found[best.iteration] == best.score
    assert "profit" in rows(trial_of(by_evaluation))[0]["evaluation"]["custom"]


def test_evaluation_changes_nothing(by_evaluation: Path, by_profit: Path) -> None:
    assert [row["weights_sha256"] for row in rows(trial_of(by_evaluation))] == [
        row["weights_sha256"] for row in rows(trial_of(by_profit))
    ]


def test_evaluation_plays_the_same_seeded_episodes_without_exploring(local_ray: None) -> None:
    evaluation = {"evaluation_interval": 2, "evaluation_duration": 3}
    with built(training={"lr": 1e-9}, evaluation=evaluation) as algorithm:
        trail = iterate(algorithm, 5)
    # An iteration without an evaluation does not repeat the one before.
    assert ["evaluation" in each.row for each in trail] == [False, True, False, True, False]
    returns = [
        [each.row["evaluation"]["env_runners"][f"episode_return_{kind}"] for kind in ("min", "max")]
        for each in (trail[1], trail[3])
    ]
    assert returns[0] == returns[1]
    assert returns[0][0] < returns[0][1]


# -- scores of several stages --------------------------------------------------------------------


def manifest_with(by_profit: Path, **changes: Any) -> Manifest:
    from dataclasses import replace

    return replace(best_of(by_profit), **changes)


def stages_config(**sections: Any) -> Any:
    return config_from_dict(
        {
            "name": "a",
            "environment": {"env": "CartPole-v1"},
            "stop": {"iterations": 1},
            "curriculum": [
                {"name": "a", "until": {"timesteps": 1}},
                {"name": "b", "until": {"timesteps": 1}, "training": {"lr": 0.1}},
                {"name": "c", "environment": {"env_config": {"max_episode_steps": 5}}},
            ],
            **sections,
        }
    )


def test_a_stage_in_another_environment_begins_a_new_best(by_profit: Path) -> None:
    assert eras(stages_config()) == {"a": 0, "b": 0, "c": 1}
    policy = BestPolicy("max", eras(stages_config()))
    old = manifest_with(by_profit, stage="a", score=100.0)
    assert not policy.replaces(5.0, "b", old)
    assert policy.replaces(101.0, "b", old)
    assert policy.replaces(5.0, "c", old)
    assert not policy.replaces(None, "c", old)
    assert not policy.replaces(1e9, "a", manifest_with(by_profit, stage="c", score=1.0))


def test_scores_of_one_evaluation_environment_are_compared_throughout() -> None:
    score = {"score": "evaluation/episode_return_mean"}

    def eras_with(env_config: Any) -> Any:
        evaluation = {"evaluation_interval": 1, "evaluation_config": {"env_config": env_config}}
        return eras(stages_config(evaluation=evaluation, checkpoint=score))

    assert set(eras_with({"max_episode_steps": 50}).values()) == {0}
    # What evaluation's own config leaves out is that of the stage, in nested mappings too.
    stages = [
        {"name": "a", "until": {"timesteps": 1}},
        {"name": "b", "environment": {"env_config": {"physics": {"g": 2}}}},
    ]
    environment = {"env": "CartPole-v1", "env_config": {"physics": {"g": 1}}}
    evaluation = {
        "evaluation_interval": 1,
        "evaluation_config": {"env_config": {"physics": {"drag": 0}}},
    }
    nested = stages_config(
        environment=environment, curriculum=stages, evaluation=evaluation, checkpoint=score
    )
    assert eras(nested) == {"a": 0, "b": 1}
    assert eras_with({}) == eras_with(None) == {"a": 0, "b": 0, "c": 1}
