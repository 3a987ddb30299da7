"""The score that the history keeps is a function of the rows alone."""

from __future__ import annotations

import random
from typing import Any

import pytest

from raytrain.server.records.score_series import MOST, ScoreSeries


def row(iteration: int, score: float | None = None) -> dict[str, Any]:
    value = float(iteration) if score is None else score
    return {
        "training_iteration": iteration,
        "num_env_steps_sampled_lifetime": iteration * 10.0,
        "time_total_s": iteration / 2,
        "checkpoint": {"score": value},
    }


def series(rows: list[dict[str, Any]]) -> ScoreSeries:
    return ScoreSeries("episode_return_mean").with_rows(rows)


@pytest.mark.parametrize("seed", range(20))
def test_it_does_not_depend_on_how_often_the_rows_were_read(seed: int) -> None:
    drawn = random.Random(seed)
    rows = [row(i) for i in range(1, drawn.randint(1, 12_000)) if drawn.random() < 0.9]
    for each in drawn.sample(rows, len(rows) // 3):
        del each["checkpoint"]
    whole, parts = series(rows), ScoreSeries("episode_return_mean")
    while rows:
        count = drawn.randint(1, 3000)
        parts, rows = parts.with_rows(rows[:count]), rows[count:]
        parts = ScoreSeries.of(parts.to_dict())
    assert parts == whole
    assert len(whole.points) <= MOST + 1


def test_a_short_trial_has_all_its_points() -> None:
    found = series([row(i) for i in range(1, MOST + 1)])
    assert [point[0] for point in found.points] == list(range(1, MOST + 1))
    assert found.points[2] == (3, 30.0, 1.5, 3.0)


def test_a_long_trial_keeps_every_nth_and_the_last() -> None:
    found = series([row(i) for i in range(1, 4 * MOST + 2)])
    assert [point[0] for point in found.points] == [*range(8, 4 * MOST + 1, 8), 4 * MOST + 1]


def test_what_is_no_number_has_no_point() -> None:
    infinite, nothing = row(2, float("inf")), row(3, float("nan"))
    assert [point[0] for point in series([row(1), infinite, nothing, row(4)]).points] == [1, 4]
    assert series([]).sparkline() == []


@pytest.mark.parametrize("count", [1, 2, 59, 60, 61, 500, 5000])
def test_a_sparkline_has_sixty_values_from_the_first_to_the_last(count: int) -> None:
    found = series([row(i) for i in range(1, count + 1)])
    line = found.sparkline()
    assert len(line) == min(60, count, len(found.points))
    assert (line[0], line[-1]) == (found.points[0][3], float(count))
    assert line == sorted(line)


def test_rows_of_former_versions_have_the_score_among_the_averages() -> None:
    former = {**row(1), "recent": {"episode_return_mean": 7.0}}
    del former["checkpoint"]
    assert series([former]).points[0][3] == 7.0
