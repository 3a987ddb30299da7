"""Stages: when they end, that their values hold, that nothing is lost at a boundary,
and going back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.rllib.core import COMPONENT_RL_MODULE
from support import own_ray
from support.clusters import until
from support.running import (
    Holds,
    Reference,
    Run,
    experiment_of,
    rows,
    train_here,
    trial_of,
    write_config,
)
from support.same_run import assert_same_run
from support.tiny_ppo import TINY, Told, built, iterate, unlike
from typer.testing import CliRunner

from raytrain import _ray
from raytrain.checkpoint import Catalogue, resolve
from raytrain.checkpoint.lineage import trial_of as trial_of_entry
from raytrain.cli import app
from raytrain.config import config_from_dict
from raytrain.ppo.algorithm import algorithm_arguments
from raytrain.records import read_episodes
from raytrain.rollout.env_group import RunnerSettings
from raytrain.rollout.runner_pool import RunnerRules
from raytrain.storage import Location

SHORT = {"env_config": {"max_episode_steps": 40}}
STAGES = [
    {"name": "easy", "until": {"timesteps": 250}},
    {"name": "hard", "environment": SHORT, "training": {"lr": 1e-4}},
]


def staged(stages: list[dict[str, Any]], *, strategy: str = "pickle", **sections: Any) -> Told:
    """`tiny_ppo`'s algorithm with a curriculum."""
    config = {**TINY, "curriculum": stages}
    for key, value in sections.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    snapshot = {"strategy": strategy, "exact": True}
    own_ray.ensure()
    with _ray.local.files_below(tempfile.gettempdir()):
        given = config_from_dict(config)
        arguments = algorithm_arguments(given, snapshot)
        algorithm = Told(**arguments, rules=RunnerRules.of(given))
    algorithm.told = getattr(algorithm, "told", [])
    return algorithm


def learning_rate(algorithm: Any) -> float:
    (optimizer,) = algorithm.learner_group._learner._named_optimizers.values()
    return float(optimizer.param_groups[0]["lr"])


# -- what ends a stage ---------------------------------------------------------------------------


def test_a_stage_ends_by_its_own_timesteps_and_counters_run_on() -> None:
    algorithm = staged([*STAGES[:1], {**STAGES[1], "until": {"timesteps": 120}}])
    try:
        trail = iterate(algorithm, 3)
    finally:
        algorithm.stop()
    said = [(each.row["stage"], each.row["curriculum"]["ended"]) for each in trail]
    assert said == [("easy", 0), ("easy", 1), ("hard", 1)]
    assert [each.row["curriculum"]["stage"] for each in trail] == [1, 1, 2]
    assert trail[2].row["curriculum"]["stages"] == 2
    steps = [each.row["num_env_steps_sampled_lifetime"] for each in trail]
    assert steps == sorted(steps)
    assert trail[2].row["curriculum"]["timesteps"] == steps[2] - steps[1]
    assert algorithm.curriculum.over


def test_a_return_counts_episodes_of_the_stage_only_and_needs_as_many() -> None:
    until = {"episode_return_mean": 1.0, "window": 12, "timesteps": 10_000}
    algorithm = staged([{"name": "a", "until": until}, {"name": "b", "until": until}])
    try:
        trail = iterate(algorithm, 6)
    finally:
        algorithm.stop()
    in_stage = 0
    before = "a"
    for each in trail:
        in_stage = in_stage if each.row["stage"] == before else 0
        before = each.row["stage"]
        in_stage += len(each.finished)
        assert each.row["curriculum"]["ended"] == int(in_stage >= 12), in_stage
    assert {each.row["stage"] for each in trail} == {"a", "b"}


# -- a stage's values ----------------------------------------------------------------------------


EACH: list[dict[str, Any]] = [
    {"lr": 1e-4},
    {"entropy_coeff": 0.1},
    {"gamma": 0.8, "lambda_": 0.7},
    {"clip_param": 0.01, "vf_clip_param": 1.0, "vf_loss_coeff": 0.1},
    {"grad_clip": 0.01},
    {"kl_coeff": 0.9, "kl_target": 0.001},
    {"num_epochs": 1, "minibatch_size": 16, "train_batch_size_per_learner": 200},
]
ALL = {key: value for values in EACH for key, value in values.items()}


@pytest.mark.parametrize(
    "training",
    [
        ALL,
        {"lr": [[0, 1e-3], [1000, 1e-5]]},
        *(pytest.param(each, marks=pytest.mark.slow) for each in [*EACH, {"use_kl_loss": False}]),
    ],
    ids=lambda each: "all" if each is ALL else str(each),
)
def test_a_stages_values_hold_as_if_the_learner_had_been_built_with_them(
    training: Any, tmp_path: Path
) -> None:
    """A fork is built with the values; a stage changes a learner and a runner that are there."""
    stages = [STAGES[0], {"name": "hard", "environment": SHORT, "training": training}]
    algorithm = staged(stages)
    try:
        iterate(algorithm, 2)
        algorithm.save_exact(tmp_path / "state")
        trail = [each.weights_sha256 for each in iterate(algorithm, 2)]
    finally:
        algorithm.stop()
    with built(training=training, environment=SHORT) as fork:
        fork.load_exact(tmp_path / "state", fork=True)
        assert [each.weights_sha256 for each in iterate(fork, 2)] == trail
    if training is not ALL:
        with built(environment=SHORT) as without:
            without.load_exact(tmp_path / "state", fork=True)
            assert [each.weights_sha256 for each in iterate(without, 2)] != trail


def test_the_optimizers_restored_rate_does_not_undo_a_stages(tmp_path: Path) -> None:
    algorithm = staged(STAGES)
    try:
        iterate(algorithm, 2)
        algorithm.save_exact(tmp_path / "state")
        assert learning_rate(algorithm) == pytest.approx(TINY["training"]["lr"])
    finally:
        algorithm.stop()
    again = staged(STAGES)
    try:
        again.load_exact(tmp_path / "state")
        (first,) = iterate(again, 1)
        assert learning_rate(again) == pytest.approx(1e-4)
        said = first.row["learners"]["default_policy"]["default_optimizer_learning_rate"]
        assert float(said) == pytest.approx(1e-4)
    finally:
        again.stop()


def test_episodes_begin_anew_in_the_new_environment() -> None:
    algorithm = staged(STAGES)
    try:
        iterate(algorithm, 2)
        old = algorithm.env_runner
        (third,) = iterate(algorithm, 1)
        assert algorithm.env_runner is old
        assert max(row["length"] for row in third.finished) <= 40
        assert limits(algorithm.env_runner) == {40}
    finally:
        algorithm.stop()


# -- exactness -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "saved_after",
    [pytest.param(1, marks=pytest.mark.slow), 2, 3, pytest.param(4, marks=pytest.mark.slow)],
)
def test_a_resume_is_exact_before_at_and_after_a_boundary(tmp_path: Path, saved_after: int) -> None:
    algorithm = staged(STAGES, env_runners={"observation_filter": "MeanStdFilter"})
    try:
        iterate(algorithm, saved_after)
        algorithm.save_exact(tmp_path / "state")
        expected = iterate(algorithm, 5 - saved_after)
    finally:
        algorithm.stop()
    again = staged(STAGES, env_runners={"observation_filter": "MeanStdFilter"})
    try:
        again.load_exact(tmp_path / "state")
        assert unlike(iterate(again, 5 - saved_after), expected) == []
    finally:
        again.stop()


@pytest.mark.slow
def test_env_runners_take_a_stage_over_and_those_that_die_come_back_in_it(
    local_ray: None, tmp_path: Path
) -> None:
    """One dies at the boundary, so its group is set up as it was before and then taken into the
    stage; one dies in the stage, and is set up in it wherever there is an actor. And another
    process goes on in the stage, with one actor for both groups.

    With replay an environment is made by its config; a pickled one would be the stage's in any
    case. And a fragment is as long as the stage's batch asks for."""
    stages = [STAGES[0], {**STAGES[1], "training": {"train_batch_size_per_learner": 192}}]
    trails = []
    for disturbed in (False, True):
        algorithm = staged(stages, strategy="replay", env_runners={"num_env_runners": 2})
        try:
            wait_for_both(algorithm)
            trail = iterate(algorithm, 2)
            before = pids_of(algorithm)
            if disturbed:
                os.kill(before[1], signal.SIGKILL)
            trail += iterate(algorithm, 1)
            if disturbed:
                assert any("died" in message for message in algorithm.told)
                os.kill(before[0], signal.SIGKILL)
            else:
                assert pids_of(algorithm) == before
                algorithm.save_exact(tmp_path / "state")
            trail += iterate(algorithm, 2)
            trails.append(trail)
        finally:
            algorithm.stop()
    assert unlike(*trails) == []
    runners = {"num_env_runners": 2, "max_actors": 1}
    again = staged(stages, strategy="replay", env_runners=runners)
    try:
        again.load_exact(tmp_path / "state")
        assert unlike(iterate(again, 2), trails[0][3:]) == []
    finally:
        again.stop()
    assert [each.row["stage"] for each in trails[1]] == ["easy", "easy", "hard", "hard", "hard"]
    assert max(row["length"] for each in trails[1][2:] for row in each.finished) <= 40


def test_a_group_that_is_set_up_as_before_a_stage_has_the_environment_of_before() -> None:
    """A process that is in the stage may be asked for it, when another has died at the boundary."""
    config = config_from_dict({**TINY, "curriculum": STAGES})
    plan = algorithm_arguments(config, {"strategy": "replay", "exact": True})["stages"][1]
    settings = RunnerSettings(plan.name, plan.config, "replay")
    algorithm = staged(STAGES, strategy="replay")
    try:
        iterate(algorithm, 1)
        runner = algorithm.env_runner
        before, states = runner.snapshot(), cart_states(runner)
        runner.use_settings(settings, iteration=1)
        assert limits(runner) == {40}
        assert limits(runner.hosted(1)) == {500}
        weights = {COMPONENT_RL_MODULE: runner.module.state_dict()}
        runner.load("replay", weights, before, iteration=1)
        assert limits(runner) == {500}
        assert cart_states(runner) == states
    finally:
        algorithm.stop()


def cart_states(runner: Any) -> list[list[float]]:
    return [list(env.unwrapped.state) for env in runner.env.unwrapped.envs]


def limits(runner: Any) -> set[int | None]:
    return {env.spec.max_episode_steps for env in runner.env.unwrapped.envs}


@pytest.mark.slow
def test_one_actor_takes_a_stage_over_for_all_groups(local_ray: None) -> None:
    trails = []
    for actors in (2, 1):
        runners = {"num_env_runners": 2, "max_actors": actors}
        algorithm = staged(STAGES, env_runners=runners)
        try:
            trails.append(iterate(algorithm, 4))
            assert len(algorithm.env_groups.actors) == actors
        finally:
            algorithm.stop()
    assert unlike(*trails) == []


def wait_for_both(algorithm: Told) -> None:
    """Two env runner actors are there."""
    pool = algorithm.env_groups._pool

    def both() -> bool:
        pool.refresh(0.1)
        return len(pool.up) == 2

    until(both, 600, lambda: str(algorithm.told))


def pids_of(algorithm: Told) -> dict[int, int]:
    """The processes of the env runner actors that are there."""
    actors = algorithm.env_groups.actors
    return {index: ray.get(actor.process.remote())[1] for index, actor in actors.items()}


# -- from the command line -----------------------------------------------------------------------

RUN = {
    "env_runners": {"num_env_runners": 0, "num_envs_per_env_runner": 2},
    "training": {"train_batch_size_per_learner": 128, "num_epochs": 1},
    "checkpoint": {"checkpoint_frequency": 3, "num_to_keep": 2},
    "curriculum": [
        {"name": "easy", "until": {"timesteps": 500}},
        {"name": "middle", "until": {"timesteps": 500}, "environment": SHORT},
        {"name": "hard", "until": {"timesteps": 500}, "training": {"lr": 1e-4}},
    ],
    "stop": {},
}


def without_a_stop(config: Path) -> Path:
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "stop": {}}))
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    config = without_a_stop(write_config(tmp_path_factory.mktemp("curriculum") / "run.yaml", **RUN))
    said = train_here(config)
    config.with_name("said.txt").write_text(said)
    return config


def test_a_finished_curriculum(finished: Path) -> None:
    trial = trial_of(finished)
    said = finished.with_name("said.txt").read_text()
    assert "stage hard (3 of 3)" in said
    assert "run finished" in said
    kept = {entry.path: entry.manifest for entry in Catalogue(Location.of(trial)).entries()}
    for name in ("easy", "middle", "hard"):
        manifest = kept[f"stages/{name}"]
        assert manifest is not None
        assert (manifest.kind, manifest.stage) == ("stage", name)
        assert manifest.metrics["curriculum"]["ended"] == 1
    assert [each["curriculum"]["stage"] for each in rows(trial)] == sorted(
        each["curriculum"]["stage"] for each in rows(trial)
    )
    table = read_episodes(trial).to_pylist()
    assert {row["stage"] for row in table} == {"easy", "middle", "hard"}
    by_stage = {each["training_iteration"]: each["stage"] for each in rows(trial)}
    assert all(row["stage"] == by_stage[row["iteration"]] for row in table)
    rates = {
        each["stage"]: each["learners"]["default_policy"]["default_optimizer_learning_rate"]
        for each in rows(trial)
    }
    assert rates == {"easy": 1e-3, "middle": 1e-3, "hard": 1e-4}
    inspected = CliRunner().invoke(app, ["inspect", str(trial / "stages" / "middle")]).output
    assert "stage: middle (2 of 3)" in inspected
    again = CliRunner().invoke(app, ["train", str(finished)])
    assert "is finished" in again.output


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["stages/easy", "checkpoint_000006"])
def test_a_killed_curriculum_ends_as_the_one_that_was_left_alone(
    finished: Path, tmp_path: Path, moment: str
) -> None:
    holds = Holds(tmp_path, 2, steps=64)  # Of the stage that is held: after the run's iteration 6.
    sections = {**RUN, **holds.sections, "environment": {"env": "held_env:make"}}
    curriculum: Any = RUN["curriculum"]
    easy, middle, hard = curriculum
    held = {"env_config": {**SHORT["env_config"], **holds.sections["environment"]["env_config"]}}
    sections["curriculum"] = [easy, {**middle, "environment": held}, hard]
    config = without_a_stop(write_config(tmp_path / "run.yaml", **sections))
    run = Run("train", str(config), log=tmp_path / "log.txt")
    run.until((trial_of(config) / moment / "manifest.json").exists)
    run.kill_everything()
    holds.release()
    train_here(config)
    assert_same_run(trial_of(config), Reference(trial_of(finished)))
    assert sorted(path.name for path in (trial_of(config) / "stages").iterdir()) == [
        "easy",
        "hard",
        "middle",
    ]


def copied_config(finished: Path, place: Path) -> Path:
    config = place / "run.yaml"
    config.write_text(finished.read_text().replace(str(finished.parent), str(place)))
    return config


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A finished run of its own."""
    shutil.copytree(experiment_of(finished), tmp_path / "results" / "run")
    return copied_config(finished, tmp_path)


def test_starting_again_after_a_stage_repeats_it_and_deletes_nothing(copied: Path) -> None:
    trial = trial_of(copied)
    before = [row["weights_sha256"] for row in rows(trial)]
    ended = CliRunner().invoke(app, ["train", str(copied), "--from-stage", "nothing"])
    assert ended.exit_code == 2
    assert "easy, middle, hard" in ended.output
    said = train_here(copied, "--from-stage", "easy")
    assert "starts again after the stage easy" in said
    assert [row["weights_sha256"] for row in rows(trial)] == before
    assert (next((trial / "set_aside").iterdir()) / "stages" / "middle" / "manifest.json").exists()
    assert (trial / "stages" / "hard" / "manifest.json").exists()
    assert (trial / "best" / "manifest.json").exists()
    # What was set aside is still this run's, for a fork.
    (aside,) = (trial / "set_aside").iterdir()
    entry = resolve(str(aside / "stages" / "middle"))
    assert trial_of_entry(entry).path == str(trial)


def change_the_middle(config: Path) -> None:
    text = config.read_text()
    config.write_text(text.replace("max_episode_steps: 40", "max_episode_steps: 30"))


def test_stages_that_have_begun_must_stay(copied: Path) -> None:
    change_the_middle(copied)
    ended = CliRunner().invoke(app, ["train", str(copied)])
    assert ended.exit_code == 2
    assert "the stage 'middle' has begun" in ended.output


@pytest.mark.slow
def test_going_back_makes_them_others(copied: Path) -> None:
    change_the_middle(copied)
    train_here(copied, "--from-stage", "easy")
    lengths = [
        row["length"] for row in read_episodes(trial_of(copied)).to_pylist()
        if row["stage"] == "middle"
    ]  # fmt: skip
    assert max(lengths) == 30


@pytest.mark.slow
def test_a_stage_may_be_added_to_a_finished_run(copied: Path) -> None:
    config = yaml.safe_load(copied.read_text())
    config["curriculum"].append({"name": "more", "until": {"timesteps": 200}})
    copied.write_text(yaml.safe_dump(config))
    before = len(rows(trial_of(copied)))
    train_here(copied)
    assert [row["stage"] for row in rows(trial_of(copied))[before:]] == ["more", "more"]


def test_show_says_stage_k_of_n_and_how_to_go_back(finished: Path) -> None:
    said = CliRunner().invoke(app, ["show", str(experiment_of(finished))]).output
    assert "stage hard (3 of 3)" in said
    again = f"raytrain resume {experiment_of(finished)} --from-stage easy"
    assert f"{again}    # trial_00000/stages/easy" in said
    shown = CliRunner().invoke(app, ["show", str(experiment_of(finished)), "--json"])
    (trial,) = json.loads(shown.output)["trials"]
    assert (trial["state"], trial["progress"]) == ("finished", 1.0)
    assert (trial["stage"], trial["stage_number"], trial["stages"]) == ("hard", 3, 3)
    stages = [each["stage"] for each in trial["checkpoints"] if each["kind"] == "stage"]
    assert sorted(stages) == ["easy", "hard", "middle"]


def test_prune_leaves_stages_best_and_final(copied: Path) -> None:
    ended = CliRunner().invoke(app, ["prune", str(experiment_of(copied)), "--yes", "--json"])
    assert ended.exit_code == 0, ended.output
    plan = json.loads(ended.output)
    assert [each["kind"] for each in plan["delete"]] == ["periodic"]
    left = {
        entry.path: entry for entry in Catalogue(Location.of(trial_of(copied))).entries(verify=True)
    }
    for name in ("stages/easy", "stages/middle", "stages/hard", "best", "final"):
        assert left[name].good
        assert f"trial_00000/{name}" in plan["keep"]


def test_plot_marks_the_stages(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "curves.svg"
    experiment = str(experiment_of(finished))
    ended = CliRunner().invoke(app, ["plot", experiment, "--out", str(picture)])
    assert ended.exit_code == 0, ended.output
    for name in ("easy", "middle", "hard"):
        assert f"<!-- {name} -->" in picture.read_text()


def test_other_spaces_in_a_stage_are_refused_before_ray_starts(tmp_path: Path) -> None:
    (tmp_path / "wide_envs.py").write_text(
        "import gymnasium as gym\n"
        "class Wide(gym.ActionWrapper):\n"
        "    def __init__(self, n):\n"
        "        super().__init__(gym.make('CartPole-v1'))\n"
        "        self.action_space = gym.spaces.Discrete(n)\n"
        "def make(n=2):\n"
        "    return Wide(n)\n"
    )
    config = write_config(
        tmp_path / "run.yaml",
        environment={"env": "wide_envs:make"},
        curriculum=[
            {"name": "a", "until": {"timesteps": 500}},
            {"name": "b", "environment": {"env_config": {"n": 3}}},
        ],
    )
    ended = CliRunner().invoke(app, ["train", str(config)])
    assert ended.exit_code == 2
    assert "Discrete(2) to Discrete(3)" in ended.output


@pytest.mark.slow
def test_an_audit_goes_through_a_boundary(finished: Path) -> None:
    ended = CliRunner().invoke(app, ["audit", str(experiment_of(finished)), "--json"])
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.output)["equal"]
