"""Forks: what a new run takes of the one it came from, what its own config decides,
and its descent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.running import experiment_of, rows, train_here, trial_of, write_config
from support.tiny_ppo import build, built, iterate, unlike
from typer.testing import CliRunner

from raytrain.checkpoint import MANIFEST_NAME, Catalogue, read_manifest
from raytrain.cli import app
from raytrain.ppo.state import StateMismatch
from raytrain.storage import Location

FILTERED = {"env_runners": {"observation_filter": "MeanStdFilter"}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state after two iterations; two more of the same run are in `trail`."""
    place = tmp_path_factory.mktemp("parent")
    with built(**FILTERED) as parent:
        iterate(parent, 2)
        parent.save_exact(place / "state")
        (optimizer,) = parent.learner_group._learner._named_optimizers.values()
        (steps,) = {int(each["step"]) for each in optimizer.state.values()}
        (place / "steps.txt").write_text(str(steps))
        place.joinpath("trail.json").write_text(
            json.dumps([each.weights_sha256 for each in iterate(parent, 2)])
        )
    return place


def learning_rate(algorithm: Any) -> float:
    (optimizer,) = algorithm.learner_group._learner._named_optimizers.values()
    return float(optimizer.param_groups[0]["lr"])


def forked(saved: Path, **sections: Any) -> Any:
    child = build(**{**FILTERED, **sections})
    child.load_exact(saved / "state", fork=True)
    return child


def test_a_fork_that_changes_nothing_goes_on_as_its_parent(saved: Path) -> None:
    child = forked(saved)
    try:
        assert [each.weights_sha256 for each in iterate(child, 2)] == json.loads(
            (saved / "trail.json").read_text()
        )
    finally:
        child.stop()


@pytest.mark.parametrize("training", [{"lr": 1e-4}, {"lr": [[0, 1e-4], [10**6, 1e-4]]}], ids=str)
def test_another_learning_rate_holds_from_the_first_update(saved: Path, training: Any) -> None:
    child = forked(saved, training=training)
    try:
        assert learning_rate(child) == pytest.approx(1e-4)
        (first,) = iterate(child, 1)
        assert first.weights_sha256 != json.loads((saved / "trail.json").read_text())[0]
        # The optimizer's moments are the parent's: a fresh Adam would begin to count again.
        (state,) = child.learner_group._learner._named_optimizers.values()
        steps = {float(each["step"]) for each in state.state.values()}
        assert min(steps) > int((saved / "steps.txt").read_text())
    finally:
        child.stop()


def test_a_schedule_stands_where_the_counters_are(saved: Path) -> None:
    child = forked(saved, training={"lr": [[0, 1e-3], [2 * 258, 1e-4]], "entropy_coeff": 0.02})
    try:
        at = child.env_steps_sampled
        assert learning_rate(child) == pytest.approx(1e-3 - 9e-4 * at / (2 * 258))
        (first,) = iterate(child, 1)
        learner = first.row["learners"]["default_policy"]
        assert float(learner["curr_entropy_coeff"]) == pytest.approx(0.02)
    finally:
        child.stop()


@pytest.mark.parametrize(
    "sections",
    [
        {"seed": 11},
        {"environment": {"env_config": {"max_episode_steps": 30}}},
        {"env_runners": {"num_envs_per_env_runner": 3, **FILTERED["env_runners"]}},
        pytest.param({"env_runners": {"num_env_runners": 0}}, marks=pytest.mark.slow),
        pytest.param({"training": {"kl_coeff": 0.9}}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_fork_begins_the_same_each_time(saved: Path, sections: Any) -> None:
    trails = []
    for _ in range(2):
        child = forked(saved, **sections)
        try:
            trails.append(iterate(child, 2))
        finally:
            child.stop()
    assert unlike(*trails) == []
    assert trails[0][0].row["training_iteration"] == 3
    assert trails[0][0].weights_sha256 != json.loads((saved / "trail.json").read_text())[0]


def test_weights_only_takes_weights_and_filters_and_counts_from_zero(saved: Path) -> None:
    with built(**FILTERED) as child:
        child.load_policy_state(saved / "state")
        state = json.loads((saved / "state" / "resume" / "state.json").read_text())
        assert child.weights_digest == state["weights_sha256"]
        runner = child.env_runner
        stats = runner._env_to_module.connectors[0]._filters[None].running_stats
        assert stats.num_pushes > 256
        (state_of,) = child.learner_group._learner._named_optimizers.values()
        assert not state_of.state
        (first,) = iterate(child, 1)
        assert first.row["training_iteration"] == 1
        assert first.row["num_env_steps_sampled_lifetime"] < 200


def test_weights_of_another_network_are_refused(saved: Path) -> None:
    other = {"rl_module": {"model_config": {"fcnet_hiddens": [8]}}}
    with built(**FILTERED, **other) as child, pytest.raises(StateMismatch, match="size mismatch"):
        child.load_policy_state(saved / "state")


# -- from the command line -----------------------------------------------------------------------

SMALL = {
    "env_runners": {"num_env_runners": 0, "num_envs_per_env_runner": 2},
    "training": {"train_batch_size_per_learner": 128, "num_epochs": 1},
    "checkpoint": {"checkpoint_frequency": 1, "num_to_keep": 2},
}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """The directory with a config and three runs: run, its fork `child`, and
    that one's `grandchild`."""
    place = tmp_path_factory.mktemp("family")
    config = write_config(place / "run.yaml", **SMALL, stop={"iterations": 3})
    train_here(config)
    results = place / "results"
    train_here(
        config, "--from", f"{results}/run:best", "--name", "child",
        "--set", "training.lr=5e-4", "--set", "stop.iterations=6",
    )  # fmt: skip
    # The parent's own checkpoint is not needed any more.
    shutil.move(results / "run", place / "moved")
    train_here(
        config, "--from", f"{results}/child", "--name", "grandchild", "--weights-only",
        "--set", "stop.iterations=2",
    )  # fmt: skip
    return place


def here(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_the_childs_manifests_name_the_parent_and_its_digest(family: Path) -> None:
    trial = next((family / "results" / "child").glob("trial_*"))
    parent = read_manifest(Location.of(family / "moved" / trial.name / "best"))
    entries = Catalogue(Location.of(trial)).entries()
    assert entries
    for entry in entries:
        assert entry.manifest is not None and entry.manifest.parent is not None
        found = entry.manifest.parent
        assert (found.experiment, found.trial) == ("run", trial.name)
        assert found.checkpoint == "best"
        assert found.weights_sha256 == parent.weights_sha256
    recorded = [row["training_iteration"] for row in rows(trial)]
    assert recorded == list(range(parent.iteration + 1, 7))
    assert max(entry.manifest.timesteps for entry in entries if entry.manifest) > parent.timesteps
    assert rows(trial)[0]["learners"]["default_policy"]["default_optimizer_learning_rate"] == 5e-4


def test_inspect_shows_every_generation(family: Path) -> None:
    text = here("inspect", family / "results" / "grandchild").output
    lines = text.split("line of descent:\n")[1].splitlines()
    assert [line.split()[1].split("/")[0] for line in lines] == ["child", "run"]
    assert "(weights only)" in lines[0]
    assert "(weights only)" not in lines[1]
    document = json.loads(here("inspect", family / "results" / "grandchild", "--json").output)
    assert [each["experiment"] for each in document["line_of_descent"]] == ["child", "run"]
    assert document["parent"]["weights_sha256"] == document["line_of_descent"][0]["weights_sha256"]
    assert document["iteration"] == 2


def test_the_model_card_has_the_line_of_descent(family: Path, tmp_path: Path) -> None:
    ended = here("export", family / "results" / "grandchild", tmp_path / "policy")
    assert ended.exit_code == 0, ended.output
    card = (tmp_path / "policy" / "README.md").read_text()
    lines = card.split("the parent first:\n\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[2].split("/")[0] for line in lines] == ["child", "run"]
    assert lines[0].endswith("(weights only)")


def test_what_a_fork_began_with_is_no_trial_of_its_own(family: Path) -> None:
    shown = json.loads(here("show", family / "results" / "grandchild", "--json").output)
    assert [each["trial"] for each in shown["trials"]] == ["trial_00000"]
    assert shown["parent"]["experiment"] == "child"


def test_the_same_command_finds_the_fork_finished(family: Path) -> None:
    config = family / "run.yaml"
    ended = here(
        "train", config, "--from", family / "results" / "child", "--name", "grandchild",
        "--weights-only", "--set", "stop.iterations=2",
    )  # fmt: skip
    assert ended.exit_code == 0
    assert "grandchild is finished" in ended.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--name", "x", "--set", "environment.env=Acrobot-v1", "--set", "stop.iterations=9"],
         "observation space has changed"),
        (["--name", "x", "--set", "environment.env=my_envs:wide", "--set", "stop.iterations=9"],
         "action space has changed"),
        (["--name", "x", "--set", "rl_module.model_config.fcnet_hiddens=[4]"],
         "fcnet_hiddens [16, 16], and this config says [4]"),
        (["--name", "x"], "past `stop` already (iterations"),
        (["--name", "child"], "lies in"),
        (["--name", "grandchild"], "and not as --from"),
    ],
    ids=lambda value: None if isinstance(value, list) else value[:12],
)  # fmt: skip
def test_what_cannot_be_forked_is_said_before_ray_starts(
    family: Path, arguments: Any, said: str
) -> None:
    (family / "my_envs.py").write_text(
        "import gymnasium as gym\n"
        "class Wide(gym.ActionWrapper):\n"
        "    def __init__(self, env):\n"
        "        super().__init__(env)\n"
        "        self.action_space = gym.spaces.Discrete(3)\n"
        "def wide():\n"
        "    return Wide(gym.make('CartPole-v1'))\n"
    )
    parent = family / "results" / "child"
    ended = here("train", family / "run.yaml", "--from", parent, *arguments)
    assert ended.exit_code == 2, ended.output
    assert said in ended.output
    assert not (family / "results" / "x").exists()


def test_a_changed_space_names_both(family: Path) -> None:
    ended = here(
        "train", family / "run.yaml", "--from", family / "results" / "child", "--name", "x",
        "--set", "environment.env=Acrobot-v1",
    )  # fmt: skip
    assert "Box([-4.8" in ended.output
    assert "Box([ -1." in ended.output


def test_a_run_that_is_no_fork_is_not_made_one(family: Path, tmp_path: Path) -> None:
    shutil.copytree(family / "moved", tmp_path / "results" / "run")
    config = write_config(tmp_path / "run.yaml", **SMALL, stop={"iterations": 3})
    ended = here("train", config, "--from", family / "results" / "child")
    assert ended.exit_code == 2
    assert "is not a fork" in ended.output
    assert here("train", config, "--weights-only").exit_code == 2


def test_a_changed_config_names_both_ways_on(family: Path, tmp_path: Path) -> None:
    shutil.copytree(family / "results" / "child", tmp_path / "results" / "run")
    config = write_config(tmp_path / "run.yaml", **SMALL, stop={"iterations": 9})
    ended = here("train", config, "--set", "training.lr=0.5")
    assert ended.exit_code == 2
    assert "--fresh" in ended.output
    assert f"--from {experiment_of(config)} --name NEW" in ended.output
    assert (trial_of(config) / "final" / MANIFEST_NAME).exists()
