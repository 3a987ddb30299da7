"""Names of metrics in a config that are surely wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.config_files import MINIMAL, STOP, refused

import raytrain
from raytrain.config import ConfigError, config_from_dict, load_config


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
            "RLlib's name is 'episode_return_mean'",
        ),
        (
            f"{STOP}checkpoint: {{score: env_runners/episode_reward_max}}",
            "RLlib's name is 'episode_return_max'",
        ),
        (
            "stop: {iterations: 2, metrics: {rollout/ep_rew_mean: 9}}",
            "RLlib's name is 'episode_return_mean'",
        ),
        (
            f"{STOP}evaluation: {{evaluation_interval: 1}}\n"
            "checkpoint: {score: evaluation/episode_reward_mean}",
            "RLlib's name is 'evaluation/episode_return_mean'",
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
