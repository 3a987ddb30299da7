"""Numbers that an environment puts into its last info: recorded, averaged, scored
and stopped by."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from raytrain.ppo.stopping import Progress, StopRule
from raytrain.records.metrics import Averaged, averaged, metric
from raytrain.records.recent_episodes import RecentEpisodes, summarised
from raytrain.rollout.fast_sampling.episode_rows import finished_row, numbers_in

NOW = Progress(5, 500, 50, 1.0)


def own(info: Any) -> Any:
    row = finished_row(0, 0, 1.5, 10, numbers_in(info))
    return {key.removeprefix("custom/"): value for key, value in row.items() if "custom/" in key}


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"profit": 2}, {"profit": 2.0}),
        ({"profit": np.float32(0.5)}, {"profit": 0.5}),
        ({"profit": np.array([3.0])}, {"profit": 3.0}),
        ({"profit": np.array(4)}, {"profit": 4.0}),
        ({"drift": {"peak": 0.1, "name": "third storey"}}, {"drift/peak": 0.1}),
        ({"episode": {"r": 1.0, "l": 5, "t": 0.1}}, {}),
        ({"word": "x", "flag": True, "other": np.bool_(1), "nothing": None, "list": [1, 2]}, {}),
        ({"_profit": 1.0, 3: 1.0, "path": np.zeros(3)}, {}),
        ({"huge": 10**400}, {"huge": math.inf}),
        ({"half \ud800": 1.0}, {"half \\ud800": 1.0}),
        (None, {}),
    ],
    ids=str,
)
def test_what_is_recorded_of_an_info(info: Any, expected: Any) -> None:
    assert own(info) == expected


def test_nan_is_recorded_and_not_averaged() -> None:
    rows = [
        finished_row(0, 0, 1.0, 1, numbers_in({"sharpe": value})) for value in (1.0, math.nan, 3.0)
    ]
    assert math.isnan(rows[1]["custom/sharpe"])
    assert summarised(rows) == {"sharpe": {"mean": 2.0, "min": 1.0, "max": 3.0}}
    assert summarised(rows[1:2]) == {}


def test_episodes_without_a_metric_do_not_count_in_its_mean() -> None:
    rows = [
        finished_row(0, 0, 1.0, 1, numbers_in(info))
        for info in ({"a": 1.0}, {"b": 2.0}, {"a": 5.0})
    ]
    assert {name: each["mean"] for name, each in summarised(rows).items()} == {"a": 3.0, "b": 2.0}


def recent(*values: Any, size: Any = 100) -> Any:
    episodes = RecentEpisodes(size)
    episodes.extend(
        finished_row(0, 0, value, 7, numbers_in({"profit": -value})) for value in values
    )
    return episodes


RESULT = {
    "env_runners": {"episode_return_mean": 9.0, "num_episodes": 4},
    "custom": {"profit": {"mean": 8.0, "min": 1.0, "max": 9.0}, "drift/peak": {"mean": 0.3}},
    "evaluation": {
        "env_runners": {"episode_return_mean": 11.0},
        "custom": {"profit": {"mean": 12.0}},
    },
    "learners": {"default_policy": {"entropy": 0.4}},
    "top": math.nan,
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("episode_return_mean", 9.0),
        ("env_runners/episode_return_mean", 9.0),
        ("profit", 8.0),
        ("custom/profit", 8.0),
        ("custom/profit/max", 9.0),
        ("drift/peak", 0.3),
        ("custom/drift/peak/mean", 0.3),
        ("evaluation/profit", 12.0),
        ("evaluation/custom/profit/mean", 12.0),
        ("evaluation/episode_return_mean", 11.0),
        ("evaluation/env_runners/episode_return_mean", 11.0),
        ("learners/default_policy/entropy", 0.4),
        ("top", None),
        ("learners", None),
        ("nothing", None),
    ],
)
def test_a_metric_by_its_name(name: str, expected: Any) -> None:
    assert metric(RESULT, name) == expected


def test_a_window_averages_what_is_of_episodes_and_nothing_else() -> None:
    episodes = recent(1.0, 2.0, 6.0)
    assert averaged(RESULT, "episode_return_mean", episodes, 2) == Averaged(4.0, 2)
    assert averaged(RESULT, "env_runners/episode_return_mean", episodes, 2) == Averaged(4.0, 2)
    assert averaged(RESULT, "episode_return_mean", episodes, 100) == Averaged(3.0, 3)
    assert averaged(RESULT, "episode_len_mean", episodes, 2) == Averaged(7.0, 2)
    for name in ("profit", "custom/profit", "profit/mean", "custom/profit/mean"):
        assert averaged(RESULT, name, episodes, 2) == Averaged(-4.0, 2)
    assert averaged(RESULT, "profit", episodes, None) == Averaged(8.0)
    assert averaged(RESULT, "custom/profit/max", episodes, 2) == Averaged(9.0)
    assert averaged(RESULT, "evaluation/profit", episodes, 2) == Averaged(12.0)
    assert averaged(RESULT, "num_episodes", episodes, 2) == Averaged(4.0)
    assert averaged(RESULT, "unknown", episodes, 2) is None


@pytest.mark.parametrize(
    ("bound", "value", "reached"),
    [
        (2.0, 2.0, True),
        (2.0, 1.9, False),
        ({"at_least": 2.0}, 2.1, True),
        ({"at_most": 2.0}, 2.1, False),
        ({"at_most": 2.0}, 2.0, True),
    ],
)
def test_a_bound_is_reached_from_its_side(bound: Any, value: float, reached: bool) -> None:
    result = {"custom": {"drift": {"mean": value}}}
    rule = StopRule(metrics={"drift": bound})
    assert bool(rule.reached(NOW, result)) is reached


def test_a_windowed_stop_needs_a_full_window_and_is_read_from_the_result_later() -> None:
    rule = StopRule(metrics={"episode_return_mean": 3.0}, window=3)
    few, enough = recent(9.0, 9.0), recent(9.0, 1.0, 9.0, 2.0)
    assert rule.reached(NOW, RESULT, few) is None
    assert rule.reached(NOW, RESULT, enough) == "episode_return_mean 4 over 3 episodes"
    result = dict(RESULT)
    rule.report(result, enough)
    assert result["stop"] == {"window": 3, "episodes": 3, "episode_return_mean": 4.0}
    assert rule.reached(NOW, result) == "episode_return_mean 4 over 3 episodes"
    assert StopRule(metrics={"episode_return_mean": 3.0}, window=4).reached(NOW, result) is None
    rule.report(result, few)
    assert result["stop"] == {"window": 3, "episodes": 2, "episode_return_mean": 9.0}
    assert rule.reached(NOW, result) is None


def test_what_is_no_mean_of_training_episodes_needs_no_full_window() -> None:
    for name, value in (("evaluation/profit", 12), ("learners/default_policy/entropy", 0.4)):
        rule = StopRule(metrics={name: value}, window=100)
        result = dict(RESULT)
        rule.report(result, recent())
        assert rule.reached(NOW, result, recent()) == f"{name} {value}"
        assert rule.reached(NOW, result) == f"{name} {value}"


def test_a_run_that_ended_by_an_iterations_episodes_stays_ended() -> None:
    """Former versions averaged over the iteration where `window` was not given,
    and said nothing."""
    rule = StopRule(metrics={"episode_return_mean": 9.0}, window=100)
    assert rule.reached(NOW, RESULT) == "episode_return_mean 9"
    assert rule.reached(NOW, RESULT, recent(9.0)) is None
    said = {**RESULT, "stop": {"window": 100, "episode_return_mean": 9.5}}
    assert rule.reached(NOW, said) == "episode_return_mean 9.5 over 100 episodes"


def test_recent_episodes_come_back_from_their_state() -> None:
    before = recent(1.0, math.nan, 3.0, size=3)
    after = RecentEpisodes(3)
    after.load(before.to_state())
    assert str(after.to_state()) == str(before.to_state())
    assert after.means(100) == before.means(100)
    assert before.means(100)["custom"] == {"profit": -2.0}
