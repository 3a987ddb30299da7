"""Metrics of a result by their names, and their means over the last episodes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raytrain.records.recent_episodes import CUSTOM, RecentEpisodes

EVALUATION = "evaluation/"
EPISODE_MEANS = {"episode_return_mean": "return", "episode_len_mean": "length"}
"""Metrics that are means over finished episodes, and their columns in an episode's row."""


@dataclass(frozen=True)
class Averaged:
    """The value of a metric. `episodes`: how many it is the mean of, if it is a mean over episodes and
    their number is known."""

    value: float
    episodes: int | None = None

    @property
    def over(self) -> str:
        """` over 100 episodes`, or nothing."""
        return "" if self.episodes is None else f" over {episodes_told(self.episodes)}"


def metric(result: Mapping[str, Any], name: str) -> float | None:
    """A number of a nested result by its name: a path with slashes, or the short name of a metric
    of the env runners (`episode_return_mean`) or of the environment (`profit`, of which the mean is
    meant); after `evaluation/` of evaluation's. None if it is absent or NaN."""
    said = result.get(name)
    if isinstance(said, (int, float)):
        return None if math.isnan(said) else float(said)
    found = _plain(result, name)
    if found is not None:
        return found
    of: Any = result.get(EVALUATION.rstrip("/"), {}) if name.startswith(EVALUATION) else result
    own: Any = of.get(CUSTOM.rstrip("/")) if isinstance(of, Mapping) else None
    if not isinstance(own, Mapping):
        return None
    # A name of an environment's may have slashes in it.
    key = name.removeprefix(EVALUATION).removeprefix(CUSTOM)
    one, _, kind = key.rpartition("/")
    return number_at(own.get(key, {}), "mean") if key in own else number_at(own.get(one, {}), kind)


def averaged(
    result: Mapping[str, Any], name: str, recent: RecentEpisodes, window: int | None
) -> Averaged | None:
    """The metric `name`, and if it is a mean over training episodes (a return, a length, a metric of
    the environment) then over the last `window` of them, or as many as there are; with None as the
    result has it, over those of the iteration."""
    if window is None or not is_over_episodes(result, name):
        found = metric(result, name)
        return None if found is None else Averaged(found)
    mean = recent.mean(_column(name, recent), window)
    return None if mean is None else Averaged(mean, min(window, recent.count))


def is_over_episodes(result: Mapping[str, Any], name: str) -> bool:
    """Whether a metric is a mean over training episodes rather than a number of its own."""
    if name.startswith(EVALUATION):
        return False
    if name.removeprefix("env_runners/") in EPISODE_MEANS:
        return True
    return _plain(result, name) is None or (name.startswith(CUSTOM) and name.endswith(_MEAN))


_MEAN = "/mean"


def _column(name: str, recent: RecentEpisodes) -> str:
    """The column of an episode's row: `return` for `episode_return_mean`, `custom/profit` for `profit`,
    `custom/profit` and `custom/profit/mean`."""
    column = EPISODE_MEANS.get(name.removeprefix("env_runners/"))
    if column is not None:
        return column
    own = CUSTOM + name.removeprefix(CUSTOM)
    return own if recent.has(own) else own.removesuffix(_MEAN)


def _plain(result: Mapping[str, Any], name: str) -> float | None:
    """A number by its path, or below `env_runners`."""
    prefix = EVALUATION if name.startswith(EVALUATION) else ""
    found = number_at(result, name)
    if found is not None:
        return found
    return number_at(result, f"{prefix}env_runners/{name.removeprefix(prefix)}")


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


def episodes_told(count: int) -> str:
    return f"{count:,} episode{'s' * (count != 1)}"
