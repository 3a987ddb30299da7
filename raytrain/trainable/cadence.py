"""When a checkpoint is due, and when a run has reached its end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raytrain.trainable.recent import CUSTOM, RecentEpisodes

EVALUATION = "evaluation/"
STOP = "stop"
"""Key of a result under which averages over `stop.window` are (see `StopRule.report`)."""

EPISODE_MEANS = {"episode_return_mean": "return", "episode_len_mean": "length"}
"""Metrics that are means over finished episodes, and their columns in an episode's row."""


@dataclass(frozen=True)
class Progress:
    """Where a trial stands: counts over the run's life, and seconds of training."""

    iteration: int
    timesteps: int
    episodes: int
    time_s: float


@dataclass(frozen=True)
class Cadence:
    """Periodic checkpoints. Each part that is set asks for a checkpoint on its own; a part that
    counts (iterations, timesteps, episodes) asks whenever a multiple of it has been passed since the
    last iteration, so that a resumed run saves at the same iterations as an undisturbed one."""

    iterations: int = 0
    timesteps: int | None = None
    episodes: int | None = None
    seconds: float | None = None

    def due(self, now: Progress, previous: Progress, saved_at_s: float) -> bool:
        """Whether to save after the iteration that led from `previous` to `now`. `saved_at_s`:
        training seconds at the last save (or at the start)."""
        if self.iterations and now.iteration % self.iterations == 0:
            return True
        if (
            self.timesteps
            and now.timesteps // self.timesteps > previous.timesteps // self.timesteps
        ):
            return True
        if self.episodes and now.episodes // self.episodes > previous.episodes // self.episodes:
            return True
        return bool(self.seconds) and now.time_s - saved_at_s >= float(self.seconds or 0)


@dataclass(frozen=True)
class StopRule:
    """The end of a run or of a stage: whichever criterion is met first. `metrics` maps names of
    metrics to what is to be reached (see `fields.Bounds`); `window`: the finished episodes that those
    of episodes are averaged over, and there must be as many (None: those of the iteration)."""

    timesteps: int | None = None
    iterations: int | None = None
    episodes: int | None = None
    time_s: float | None = None
    metrics: Mapping[str, Any] | None = None
    window: int | None = None

    @classmethod
    def of(cls, stop: Any) -> StopRule:
        """The rule of a config's `stop` section."""
        return cls(
            timesteps=stop.timesteps,
            iterations=stop.iterations,
            episodes=stop.episodes,
            time_s=stop.time_s,
            metrics=_metrics(stop),
            window=stop.window,
        )

    @classmethod
    def of_stage(cls, until: Any) -> StopRule:
        """The rule of a stage's `until`; its counts begin with the stage."""
        return cls(timesteps=until.timesteps, metrics=_metrics(until), window=until.window)

    def reached(
        self, now: Progress, result: Mapping[str, Any], recent: RecentEpisodes | None = None
    ) -> str | None:
        """The criterion that ended the run, as `name value`, or None. `recent`: the episodes that a
        window is filled from; without them it is what the result says of it."""
        counts = (
            ("timesteps", now.timesteps, self.timesteps),
            ("iterations", now.iteration, self.iterations),
            ("episodes", now.episodes, self.episodes),
            ("time_s", now.time_s, self.time_s),
        )
        for name, value, limit in counts:
            if limit is not None and value >= limit:
                return f"{name} {value:g}"
        for name, bound in (self.metrics or {}).items():
            found = self._value(name, result, recent)
            if found is not None and _within(found, bound):
                return f"{name} {found:g}"
        return None

    def _value(
        self, name: str, result: Mapping[str, Any], recent: RecentEpisodes | None
    ) -> float | None:
        if self.window is None:
            return metric(result, name)
        if recent is None:
            said = result.get(STOP, {})
            return metric(said, name) if said.get("window") == self.window else None
        full = recent.count >= self.window
        return windowed(result, name, recent, self.window) if full else None

    def report(self, result: dict[str, Any], recent: RecentEpisodes) -> None:
        """Put the averages that the rule looks at into a result, from which `reached` reads them once
        the episodes are gone."""
        if self.window is None:
            return
        values = {name: self._value(name, result, recent) for name in self.metrics or {}}
        found = {name: value for name, value in values.items() if value is not None}
        result[STOP] = {"window": self.window, **found}


def _metrics(section: Any) -> dict[str, Any]:
    returns = section.episode_return_mean
    own = {} if returns is None else {"episode_return_mean": returns}
    return {**own, **section.metrics}


def _within(found: float, bound: Any) -> bool:
    if not isinstance(bound, Mapping):
        return found >= float(bound)
    ((direction, limit),) = bound.items()
    return bool(found >= limit if direction == "at_least" else found <= limit)


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
    own: Any = of.get(CUSTOM.rstrip("/"), {})
    # A name of an environment's may have slashes in it.
    key = name.removeprefix(EVALUATION).removeprefix(CUSTOM)
    one, _, kind = key.rpartition("/")
    return _number(own.get(key, {}), "mean") if key in own else _number(own.get(one, {}), kind)


def windowed(
    result: Mapping[str, Any], name: str, recent: RecentEpisodes, window: int | None
) -> float | None:
    """The metric `name`, and if it is a mean over training episodes (a return, a length, a metric of
    the environment) then over the last `window` of them, or as many as there are."""
    if window is None or name.startswith(EVALUATION):
        return metric(result, name)
    column = EPISODE_MEANS.get(name.removeprefix("env_runners/"))
    if column is None:
        found = _plain(result, name)
        if found is not None:
            return found
        column = CUSTOM + name.removeprefix(CUSTOM)
    return recent.mean(column, window)


def _plain(result: Mapping[str, Any], name: str) -> float | None:
    """A number by its path, or below `env_runners`."""
    prefix = EVALUATION if name.startswith(EVALUATION) else ""
    found = _number(result, name)
    if found is not None:
        return found
    return _number(result, f"{prefix}env_runners/{name.removeprefix(prefix)}")


def _number(result: Mapping[str, Any], path: str) -> float | None:
    value: Any = result
    for part in path.split("/"):
        value = value.get(part) if isinstance(value, Mapping) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number
