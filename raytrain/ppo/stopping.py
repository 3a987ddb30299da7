"""When a run or a stage has reached its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raytrain.records.metrics import Averaged, averaged, is_over_episodes, metric
from raytrain.records.recent_episodes import RecentEpisodes

if TYPE_CHECKING:
    from raytrain.checkpoint import Manifest

STOP = "stop"
"""Key of a result that holds averages over `stop.window` (see `StopRule.report`)."""


@dataclass(frozen=True)
class Progress:
    """Counts since the run began, and seconds of training."""

    iteration: int
    timesteps: int
    episodes: int
    time_s: float

    @classmethod
    def of(cls, manifest: Manifest) -> Progress:
        """Where the trial stood at a checkpoint."""
        return cls(manifest.iteration, manifest.timesteps, manifest.episodes, manifest.time_s)


@dataclass(frozen=True)
class StopRule:
    """The end of a run or of a stage: whichever criterion is met first.

    `metrics` maps names of metrics to the values to reach (see `fields.Bounds`). Metrics of
    episodes are averaged over the last `window` finished episodes, and there must be as many (None:
    over those of the iteration).
    """

    timesteps: int | None = None
    iterations: int | None = None
    episodes: int | None = None
    time_s: float | None = None
    metrics: Mapping[str, Any] | None = None
    window: int | None = None

    @classmethod
    def of(cls, stop: Any) -> StopRule:
        """The rule of a config's `stop` section."""
        names = ("timesteps", "iterations", "episodes", "time_s", "window")
        return cls(**{name: getattr(stop, name) for name in names}, metrics=_metrics(stop))

    @classmethod
    def of_stage(cls, until: Any) -> StopRule:
        """The rule of a stage's `until`; its counts begin with the stage."""
        return cls(timesteps=until.timesteps, metrics=_metrics(until), window=until.window)

    def reached(
        self, now: Progress, result: Mapping[str, Any], recent: RecentEpisodes | None = None
    ) -> str | None:
        """The criterion that ended the run, as `name value`, or None. `recent`: the episodes that
        fill a window; without them it is read from the result."""
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
            average = self._average(name, result, recent)
            if average is not None and self._is_full(average) and _within(average.value, bound):
                return f"{name} {average.value:g}{average.over}"
        return None

    def report(self, result: dict[str, Any], recent: RecentEpisodes) -> None:
        """Add the averages that the rule needs to a result, from which `reached` reads them once
        the episodes are gone, and the return, for display: {"window": 100, "episodes": 43,
        "episode_return_mean": 21.6, ...}. They are means of as many episodes as there are."""
        averages: dict[str, Any] = {"window": self.window}
        if self.window is not None:
            averages["episodes"] = min(recent.count, self.window)
            for name in ("episode_return_mean", *(self.metrics or {})):
                average = averaged(result, name, recent, self.window)
                averages.update({} if average is None else {name: average.value})
        result[STOP] = averages

    def _average(
        self, name: str, result: Mapping[str, Any], recent: RecentEpisodes | None
    ) -> Averaged | None:
        if recent is not None:
            return averaged(result, name, recent, self.window)
        averages = result.get(STOP, {})
        # Results of versions that stopped by the averages of the iteration have none.
        if self.window is None or not averages or not is_over_episodes(result, name):
            value, episodes = metric(result, name), None
        elif averages["window"] == self.window:
            value, episodes = metric(averages, name), averages.get("episodes", self.window)
        else:
            return None
        return None if value is None else Averaged(value, episodes)

    def _is_full(self, average: Averaged) -> bool:
        """Whether it is the mean of a full window."""
        return self.window is None or average.episodes is None or average.episodes >= self.window


def _metrics(section: Any) -> dict[str, Any]:
    returns = section.episode_return_mean
    own = {} if returns is None else {"episode_return_mean": returns}
    return {**own, **section.metrics}


def _within(value: float, bound: Any) -> bool:
    if not isinstance(bound, Mapping):
        return value >= float(bound)
    ((direction, limit),) = bound.items()
    return bool(value >= limit if direction == "at_least" else value <= limit)
