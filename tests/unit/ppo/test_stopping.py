"""When a run ends: the same iteration whether or not it was resumed."""

from __future__ import annotations

import math
from typing import Any

import pytest
from support.results import RESULT

from raytrain.ppo.stopping import Progress, StopRule
from raytrain.records.recent_episodes import RecentEpisodes
from raytrain.rollout.fast_sampling.episode_rows import finished_row, numbers_in

NOW = Progress(5, 500, 50, 1.0)


def recent(*values: Any, size: Any = 100) -> Any:
    episodes = RecentEpisodes(size)
    episodes.extend(
        finished_row(0, 0, value, 7, numbers_in({"profit": -value})) for value in values
    )
    return episodes


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


def at(iteration: int, timesteps: int = 0, episodes: int = 0, time_s: float = 0.0) -> Progress:
    return Progress(iteration, timesteps, episodes, time_s)


@pytest.mark.parametrize(
    ("rule", "now", "result", "reached"),
    [
        (StopRule(timesteps=100), at(1, 100), {}, "timesteps 100"),
        (StopRule(timesteps=100), at(1, 99), {}, None),
        (StopRule(iterations=2), at(2), {}, "iterations 2"),
        (StopRule(episodes=5), at(1, 1, 6), {}, "episodes 6"),
        (StopRule(time_s=1.5), at(1, 1, 1, 1.5), {}, "time_s 1.5"),
        (
            StopRule(metrics={"episode_return_mean": 475}),
            at(1),
            {"env_runners": {"episode_return_mean": 480.0}},
            "episode_return_mean 480",
        ),
        (
            StopRule(metrics={"episode_return_mean": 475}),
            at(1),
            {"env_runners": {"episode_return_mean": math.nan}},
            None,
        ),
    ],
)
def test_a_stop_rule_names_the_bound_that_was_reached(
    rule: Any, now: Any, result: Any, reached: Any
) -> None:
    assert rule.reached(now, result) == reached
