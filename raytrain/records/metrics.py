"""Metrics of a result by their names, and their means over the last episodes.

A metric's name is its path in the result with slashes, or a short form: `episode_return_mean` for
`env_runners/episode_return_mean`, `profit` for `custom/profit/mean` of the environment. Behind
`evaluation/` the same names are those of evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raytrain.records.recent_episodes import CUSTOM, RecentEpisodes

EVALUATION = "evaluation/"
RUNNERS = "env_runners/"
EPISODE_MEANS = {"episode_return_mean": "return", "episode_len_mean": "length"}
"""Metrics that are means over finished episodes, and their columns in an episode's row."""
_MEAN = "/mean"


@dataclass(frozen=True)
class Averaged:
    """The value of a metric. `episodes`: over how many it is a mean, if that is known."""

    value: float
    episodes: int | None = None

    @property
    def over(self) -> str:
        return over_episodes(self.episodes)


def over_episodes(count: int | None) -> str:
    """` over 100 episodes`; empty if the number is not known."""
    return "" if count is None else f" over {count:,} episode{'s' * (count != 1)}"


def metric(result: Mapping[str, Any], name: str) -> float | None:
    """A number of a nested result by its name; None if it is absent or NaN."""
    direct = result.get(name)
    if isinstance(direct, (int, float)):
        return None if math.isnan(direct) else float(direct)
    number = _rllib_metric(result, name)
    if number is not None:
        return number
    part: Any = result.get(EVALUATION.rstrip("/"), {}) if name.startswith(EVALUATION) else result
    custom: Any = part.get(CUSTOM.rstrip("/")) if isinstance(part, Mapping) else None
    if not isinstance(custom, Mapping):
        return None
    # The name of an environment's metric may have slashes in it.
    key = name.removeprefix(EVALUATION).removeprefix(CUSTOM)
    if key in custom:
        return number_at(custom.get(key, {}), "mean")
    own, _, kind = key.rpartition("/")
    return number_at(custom.get(own, {}), kind)


def averaged(
    result: Mapping[str, Any], name: str, recent: RecentEpisodes, window: int | None
) -> Averaged | None:
    """The metric `name`, averaged over the last `window` training episodes where it is a mean.

    Means are returns, lengths and metrics of the environment; with fewer episodes, it is the mean
    over those. Other metrics, and all of them without a window, are as the result has them.
    """
    if window is None or not is_over_episodes(result, name):
        value = metric(result, name)
        return None if value is None else Averaged(value)
    mean = recent.mean(episode_column(name, recent), window)
    return None if mean is None else Averaged(mean, min(window, recent.count))


def is_over_episodes(result: Mapping[str, Any], name: str) -> bool:
    """Whether a metric is a mean over training episodes and no single number."""
    if name.startswith(EVALUATION):
        return False
    if name.removeprefix(RUNNERS) in EPISODE_MEANS:
        return True
    return _rllib_metric(result, name) is None or (name.startswith(CUSTOM) and name.endswith(_MEAN))


def episode_column(name: str, recent: RecentEpisodes) -> str:
    """The column of a metric in an episode's row.

    `return` for `episode_return_mean`; `custom/profit` for `profit`, `custom/profit` and
    `custom/profit/mean`.
    """
    column = EPISODE_MEANS.get(name.removeprefix(RUNNERS))
    if column is not None:
        return column
    own = CUSTOM + name.removeprefix(CUSTOM)
    return own if recent.has(own) else own.removesuffix(_MEAN)


def _rllib_metric(result: Mapping[str, Any], name: str) -> float | None:
    """A number by its path, or by its path below `env_runners`."""
    number = number_at(result, name)
    if number is not None:
        return number
    prefix = EVALUATION if name.startswith(EVALUATION) else ""
    return number_at(result, prefix + RUNNERS + name.removeprefix(prefix))


def double(number: Any) -> float:
    """The number in double precision; an integer beyond its range is infinite."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def number_at(result: Mapping[str, Any], path: str) -> float | None:
    """The number at a path with slashes in nested mappings; None if it is absent or NaN."""
    value: Any = result
    for part in path.split("/"):
        value = value.get(part) if isinstance(value, Mapping) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number
