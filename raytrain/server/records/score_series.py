"""The score of a trial over its iterations, thinned to some hundred points: what the history keeps.

Of a trial that has reached iteration n, the iterations are kept that are multiples of a stride, the
smallest power of two with n / stride <= 500, and the last one that has a score. So the series is a
function of the rows alone, however often they were read on the way.

    {"metric": ..., "reached": n, "points": [[iteration, timesteps, time_s, score], ...]}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from raytrain.records.metrics import metric
from raytrain.records.row_files import ITERATION
from raytrain.trial.score import score_in_row

MOST = 500
_SPARKS = 60
_STEPS, _TIME = "num_env_steps_sampled_lifetime", "time_total_s"
Position = tuple[int, float, float]
"""Iteration, timesteps, seconds of training."""
Point = tuple[int, float, float, float]
"""A position, and the value there."""


@dataclass(frozen=True)
class ScoreSeries:
    """See the module's docstring."""

    metric: str
    reached: int = 0
    points: tuple[Point, ...] = ()

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> ScoreSeries:
        points = tuple(tuple(point) for point in document["points"])
        return cls(document["metric"], document["reached"], points)

    def to_dict(self) -> dict[str, Any]:
        points = [list(point) for point in self.points]
        return {"metric": self.metric, "reached": self.reached, "points": points}

    def with_rows(self, rows: Iterable[Mapping[str, Any]]) -> ScoreSeries:
        """With rows that follow those that are in it."""
        reached, points, series = self.reached, list(self.points), self
        for row in rows:
            reached = int(row[ITERATION])
            point = point_of(row, score_in_row(row, self.metric))
            if point is not None:
                points.append(point)
            if len(points) > 4 * MOST:
                series = replace(series, reached=reached, points=tuple(points))._thinned()
                points = list(series.points)
        return replace(series, reached=reached, points=tuple(points))._thinned()

    @cached_property
    def _stride(self) -> int:
        return 1 << max(0, math.ceil(self.reached / MOST) - 1).bit_length()

    def _thinned(self) -> ScoreSeries:
        kept = [point for point in self.points[:-1] if point[0] % self._stride == 0]
        return replace(self, points=(*kept, *self.points[-1:]))

    def sparkline(self) -> list[float]:
        """Up to 60 scores, evenly from the first to the last point."""
        last, count = len(self.points) - 1, min(_SPARKS, len(self.points))
        places = [round(place * last / max(1, count - 1)) for place in range(count)]
        return [self.points[place][3] for place in places]


def point_of(row: Mapping[str, Any], value: float | None) -> Point | None:
    """The point of an iteration in which a metric has this value; None if it is no number."""
    if value is None or not math.isfinite(value):
        return None
    return (*position_of(row), value)


def position_of(row: Mapping[str, Any]) -> Position:
    """Where a curve is at the end of an iteration."""
    return int(row[ITERATION]), metric(row, _STEPS) or 0.0, metric(row, _TIME) or 0.0


def position_before(row: Mapping[str, Any]) -> Position:
    """Where a curve is at the beginning of an iteration."""
    iteration, steps, seconds = position_of(row)
    steps -= metric(row, "num_env_steps_sampled") or 0.0
    seconds -= metric(row, "time_this_iter_s") or 0.0
    return iteration - 1, max(0.0, steps), max(0.0, seconds)
