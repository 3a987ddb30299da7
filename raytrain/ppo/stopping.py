"""When a checkpoint is due, and when a run has reached its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raytrain.records.metrics import Averaged, averaged, is_over_episodes, metric
from raytrain.records.recent_episodes import RecentEpisodes

if TYPE_CHECKING:
    from raytrain.checkpoint import Manifest

STOP = "stop"
"""Key of a result under which averages over `stop.window` are (see `StopRule.report`)."""


@dataclass(frozen=True)
class Progress:
    """Where a trial stands: counts over the run's life, and seconds of training."""

    iteration: int
    timesteps: int
    episodes: int
    time_s: float

    @classmethod
    def of(cls, manifest: Manifest) -> Progress:
        """Where the trial stood at a checkpoint."""
        time_s = float(manifest.metrics.get("time_total_s", 0.0))
        return cls(manifest.iteration, manifest.timesteps, manifest.episodes, time_s)


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
            if found is not None and self._counts(found) and _within(found.value, bound):
                return f"{name} {found.value:g}{found.over}"
        return None

    def report(self, result: dict[str, Any], recent: RecentEpisodes) -> None:
        """Put the averages that the rule looks at into a result, from which `reached` reads them once
        the episodes are gone; and the return, which is shown: {"window": 100, "episodes": 43,
        "episode_return_mean": 21.6, ...}. They are means of as many episodes as there are."""
        said: dict[str, Any] = {"window": self.window}
        if self.window is not None:
            said["episodes"] = min(recent.count, self.window)
            for name in ("episode_return_mean", *(self.metrics or {})):
                found = averaged(result, name, recent, self.window)
                said.update({} if found is None else {name: found.value})
        result[STOP] = said

    def _value(
        self, name: str, result: Mapping[str, Any], recent: RecentEpisodes | None
    ) -> Averaged | None:
        if recent is not None:
            return averaged(result, name, recent, self.window)
        said = result.get(STOP, {})
        # A result that says nothing is of a version whose stop took the averages of the iteration.
        if self.window is None or not said or not is_over_episodes(result, name):
            found, episodes = metric(result, name), None
        elif said["window"] == self.window:
            found, episodes = metric(said, name), said.get("episodes", self.window)
        else:
            found, episodes = None, None
        return None if found is None else Averaged(found, episodes)

    def _counts(self, found: Averaged) -> bool:
        """Whether it is the mean of a full window."""
        return self.window is None or found.episodes is None or found.episodes >= self.window


def _metrics(section: Any) -> dict[str, Any]:
    returns = section.episode_return_mean
    own = {} if returns is None else {"episode_return_mean": returns}
    return {**own, **section.metrics}


def _within(found: float, bound: Any) -> bool:
    if not isinstance(bound, Mapping):
        return found >= float(bound)
    ((direction, limit),) = bound.items()
    return bool(found >= limit if direction == "at_least" else found <= limit)
