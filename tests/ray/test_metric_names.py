"""Names of metrics in a config: refused where they are surely wrong, told where no
result has them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from support.commands import here
from support.running import experiment_of, train_here, write_config

import raytrain
from raytrain.config import ConfigError, config_from_dict, load_config
from raytrain.config.former_names import NOTES, RENAMED
from raytrain.config.validation import yaml_fields
from raytrain.ppo.curriculum import StagePlan
from raytrain.ppo.stopping import StopRule
from raytrain.records.recent_episodes import RecentEpisodes
from raytrain.trial.missing_metrics import MissingMetrics, metric_names, named_metrics

MINIMAL = {"name": "a", "environment": {"env": "CartPole-v1"}, "stop": {"iterations": 2}}


def refused(tmp_path: Any, text: str) -> str:
    path = tmp_path / "run.yaml"
    path.write_text("environment: {env: CartPole-v1}\n" + text + "\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return str(caught.value)


STOP = "stop: {iterations: 2}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f"{STOP}checkpoint: {{score: evaluation/profit}}",
            ':3: checkpoint.score: "evaluation/profit": nothing is evaluated',
        ),
        (
            "stop:\n  iterations: 2\n  metrics:\n    evaluation/episode_return_mean: 5",
            ':5: stop.metrics: "evaluation/episode_return_mean": nothing is evaluated',
        ),
        (
            "stop: {}\ncurriculum:\n  - name: a\n    until:\n      timesteps: 5\n      metrics:\n"
            "        evaluation/profit: 1",
            ':8: curriculum[0].until.metrics: "evaluation/profit": nothing is evaluated',
        ),
        (
            f"{STOP}checkpoint: {{score: episode_reward_mean}}",
            "RLlib's name for it is 'episode_return_mean'",
        ),
        (
            f"{STOP}checkpoint: {{score: env_runners/episode_reward_max}}",
            "RLlib's name for it is 'episode_return_max'",
        ),
        (
            "stop: {iterations: 2, metrics: {rollout/ep_rew_mean: 9}}",
            "RLlib's name for it is 'episode_return_mean'",
        ),
        (
            f"{STOP}evaluation: {{evaluation_interval: 1}}\n"
            "checkpoint: {score: evaluation/episode_reward_mean}",
            "RLlib's name for it is 'evaluation/episode_return_mean'",
        ),
        (f"{STOP}checkpoint: {{score: ' profit'}}", "there is a space around it"),
        (f"{STOP}checkpoint: {{score: env_runners/}}", "or a part of it is missing"),
        (
            "stop: {episode_return_mean: .nan}",
            ":2: stop.episode_return_mean: NaN: must be a finite",
        ),
        ("stop: {metrics: {profit: {at_most: -.inf}}}", "stop.metrics.profit: -Infinity: must be"),
        (
            "stop: {episode_return_mean: 5, metrics: {env_runners/episode_return_mean: 7}}",
            "is given twice: stop.episode_return_mean is the same metric",
        ),
    ],
)
def test_a_name_or_a_bound_that_is_surely_wrong_is_refused_with_its_line(
    tmp_path: Path, text: str, said: str
) -> None:
    assert said in refused(tmp_path, text)


@pytest.mark.parametrize("name", ["custom/episode_reward_mean", "profit", "learners/x/entropy"])
def test_a_name_that_may_be_right_is_not(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"environment: {{env: CartPole-v1}}\n{STOP}checkpoint: {{score: {name}}}\n")
    assert load_config(path).checkpoint.score == name


def test_a_mapping_is_refused_as_a_file_and_a_stored_config_is_not() -> None:
    wrong = {**MINIMAL, "checkpoint": {"score": "evaluation/profit"}}
    with pytest.raises(ConfigError, match="nothing is evaluated"):
        raytrain.train(wrong)
    # What an older run was started with must stay readable.
    assert config_from_dict(wrong).checkpoint.score == "evaluation/profit"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("{env_runners/episode_return_mean: 9}", "did you mean 'episode_return_mean'?"),
        ("{env_runners/episode_reward_mean: 9}", "did you mean 'episode_return_mean'?"),
        ("{episode_reward_mean: 9}", "did you mean 'episode_return_mean'?"),
        ("{reward: 9}", "did you mean 'episode_return_mean'?"),
        ("{training_iteration: 9}", "did you mean 'iterations'?"),
        ("{time_total_s: 9}", "did you mean 'time_s'?"),
        ("{profit: 9}", "under metrics: {profit: ...}"),
        ("{evaluation/profit: 9}", "under metrics: {evaluation/profit: ...}"),
    ],
)
def test_a_metric_among_the_keys_of_stop(tmp_path: Path, section: str, said: str) -> None:
    assert said in refused(tmp_path, f"stop: {section}")


# -- keys of other programs ----------------------------------------------------------------------


def test_every_key_of_another_program_leads_to_a_key_that_exists() -> None:
    fields = {".".join(path) for path in yaml_fields()}
    assert set(RENAMED.values()) <= fields
    # None of them is a key here, where it would never be looked up.
    assert not {path[-1] for path in yaml_fields()} & {*RENAMED, *NOTES}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("n_steps: 2048", "'training.train_batch_size_per_learner'"),
        ("training: {n_steps: 2048}", "'train_batch_size_per_learner'"),
        ("training: {n_steps: 2048}", "the steps of all environments together"),
        ("num_gpus: 1", "'learners.num_gpus_per_learner'"),
        ("training: {lr_schedule: [[0, 1e-3]]}", "'lr'"),
        ("training: {lr_schedule: [[0, 1e-3]]}", "[[0, x], [timestep, y], ...]"),
        ("training: {batch_size: 64}", "'minibatch_size'"),
        ("training: {target_kl: 0.01}", "no update is ended early"),
        ("num_workers: 4", "'env_runners.num_env_runners'"),
        ("framework: torch", "there is Torch only"),
        ("callbacks: {}", "there are no callbacks"),
        ("model: {fcnet_hiddens: [64]}", "'rl_module.model_config'"),
        ("training: {use_lstm: true}", "'rl_module.model_config.use_lstm'"),
    ],
)
def test_a_key_of_another_program(tmp_path: Path, line: str, said: str) -> None:
    assert said in refused(tmp_path, STOP + line)


# -- after the first iteration -------------------------------------------------------------------

RESULT = {
    "training_iteration": 1,
    "env_runners": {"episode_return_mean": math.nan, "num_episodes": 4},
    "custom": {"profit": {"mean": 8.0, "min": 1.0, "max": 9.0}},
    "learners": {"default_policy": {"entropy": 0.4}},
    "num_training_step_calls_per_iteration": 1,
    "weights_sha256": "ab12",
    "stop": {"window": 100},
    "config": {"lr": 0.1},
}


def episodes(*profits: Any) -> Any:
    recent = RecentEpisodes(100)
    recent.extend({"return": 1.0, "length": 5, "custom/profit": each} for each in profits)
    return recent


def test_the_names_that_there_are() -> None:
    assert metric_names(RESULT) == {
        "episode_return_mean",
        "episode_len_mean",
        "num_episodes",
        "profit",
        "learners/default_policy/entropy",
        "num_training_step_calls_per_iteration",
        "training_iteration",
    }


def looked(
    missing: Any, recent: Any, *, result: Any = RESULT, stop: Any = None, **checkpoint: Any
) -> Any:
    config = config_from_dict(
        {**MINIMAL, "stop": stop or {"iterations": 2}, "checkpoint": checkpoint}
    )
    stage = StagePlan("", StopRule(), None, "pickle")
    return list(missing.look(named_metrics(config, stage), result, recent))


def test_a_name_that_no_result_has_is_told_with_the_nearest_first_and_once() -> None:
    missing = MissingMetrics()
    (said,) = looked(missing, episodes(1.0), score="profitt")
    assert said.startswith("checkpoint.score: there is no metric 'profitt' in the results")
    assert "so no checkpoint can be the best" in said
    assert "The nearest that there are: profit, " in said
    assert looked(missing, episodes(1.0), score="profitt") == []


def test_an_environments_name_is_not_known_before_an_episode_has_ended() -> None:
    missing = MissingMetrics()
    without = {key: value for key, value in RESULT.items() if key != "custom"}
    assert looked(missing, episodes(), score="profitt", result=without) == []
    assert len(looked(missing, episodes(1.0), score="profitt")) == 1
    # RLlib's own are there from the first.
    assert len(looked(MissingMetrics(), episodes(), score="learners/default_policy/entrop")) == 1


def test_one_of_evaluation_is_known_with_the_first_evaluation() -> None:
    missing = MissingMetrics()
    assert looked(missing, episodes(1.0), score="evaluation/profitt") == []
    evaluated = {**RESULT, "evaluation": {"custom": {"profit": {"mean": 1.0}}}}
    (said,) = looked(missing, episodes(1.0), score="evaluation/profitt", result=evaluated)
    assert "are: evaluation/profit, profit, " in said


@pytest.mark.parametrize(
    "name",
    ["profit", "custom/profit", "profit/mean", "custom/profit/max", "episode_return_mean",
     "env_runners/episode_return_mean", "env_runners/num_episodes", "training_iteration",
     "learners/default_policy/entropy"],
)  # fmt: skip
def test_nothing_is_told_of_a_metric_that_is_there_or_nan_at_the_moment(name: str) -> None:
    assert looked(MissingMetrics(), episodes(1.0), score=name) == []


def test_one_that_turns_up_later_is_told_too() -> None:
    missing = MissingMetrics()
    without = {key: value for key, value in RESULT.items() if key != "custom"}
    recent = RecentEpisodes(100)
    recent.extend([{"return": 1.0, "length": 5}])
    assert len(looked(missing, recent, score="profit", result=without)) == 1
    assert looked(missing, recent, score="profit") == ["checkpoint.score: 'profit' is there now."]
    assert looked(missing, recent, score="profit") == []


def test_a_run_that_may_never_end_is_told_so() -> None:
    (said,) = looked(MissingMetrics(), episodes(1.0), stop={"metrics": {"profitt": 3}})
    assert "so it cannot end the run, and nothing else may." in said
    (said,) = looked(
        MissingMetrics(), episodes(1.0), stop={"iterations": 2, "metrics": {"profitt": 3}}
    )
    assert "so it cannot end the run." in said


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
