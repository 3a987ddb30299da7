"""Metrics that the config names and that no result has."""

from __future__ import annotations

import math
from typing import Any

import pytest

from raytrain.config import config_from_dict
from raytrain.ppo.curriculum import StagePlan
from raytrain.ppo.stopping import StopRule
from raytrain.records.recent_episodes import RecentEpisodes
from raytrain.trial.missing_metrics import MissingMetrics, metric_names, named_metrics

MINIMAL = {"name": "a", "environment": {"env": "CartPole-v1"}, "stop": {"iterations": 2}}

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


def test_metrics_of_a_result_by_name() -> None:
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
    return list(missing.messages(named_metrics(config, stage), result, recent))


def test_a_name_that_no_result_has_is_told_with_the_nearest_first_and_once() -> None:
    missing = MissingMetrics()
    (said,) = looked(missing, episodes(1.0), score="profitt")
    assert said.startswith("checkpoint.score: there is no metric 'profitt' in the results")
    assert "so no checkpoint can be the best" in said
    assert "The nearest names are: profit, " in said
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
    assert looked(missing, recent, score="profit") == [
        "checkpoint.score: the results have 'profit' now."
    ]
    assert looked(missing, recent, score="profit") == []


def test_a_run_that_may_never_end_is_told_so() -> None:
    (said,) = looked(MissingMetrics(), episodes(1.0), stop={"metrics": {"profitt": 3}})
    assert "so it cannot end the run, and nothing else may." in said
    (said,) = looked(
        MissingMetrics(), episodes(1.0), stop={"iterations": 2, "metrics": {"profitt": 3}}
    )
    assert "so it cannot end the run." in said
