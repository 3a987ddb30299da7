"""Metrics by name, of rows and of windows of episodes."""

from __future__ import annotations

import math
from typing import Any

import pytest
from support.results import RESULT

from raytrain.records.metrics import Averaged, averaged, metric
from raytrain.records.recent_episodes import RecentEpisodes, summarised
from raytrain.rollout.fast_sampling.episode_rows import finished_row, numbers_in


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


def test_metrics_by_path_and_by_short_name() -> None:
    result = {"env_runners": {"episode_return_mean": 3}, "learners": {"p": {"loss": 0.5}}, "a": "x"}
    assert metric(result, "episode_return_mean") == 3.0
    assert metric(result, "learners/p/loss") == 0.5
    assert metric(result, "absent") is None
    assert metric(result, "a") is None
