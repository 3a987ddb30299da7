"""When a checkpoint is due, and when a run has reached its end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
    """The end of a run: whichever criterion is met first. `metrics` maps flat result keys to the
    value that ends the run when it is reached."""

    timesteps: int | None = None
    iterations: int | None = None
    episodes: int | None = None
    time_s: float | None = None
    metrics: Mapping[str, float] | None = None

    @classmethod
    def of(cls, stop: Any) -> StopRule:
        """The rule of a config's `stop` section."""
        returns = stop.episode_return_mean
        return cls(
            timesteps=stop.timesteps,
            iterations=stop.iterations,
            episodes=stop.episodes,
            time_s=stop.time_s,
            metrics={} if returns is None else {"episode_return_mean": returns},
        )

    def reached(self, now: Progress, result: Mapping[str, Any]) -> str | None:
        """The criterion that ended the run, as `name value`, or None."""
        counts = (
            ("timesteps", now.timesteps, self.timesteps),
            ("iterations", now.iteration, self.iterations),
            ("episodes", now.episodes, self.episodes),
            ("time_s", now.time_s, self.time_s),
        )
        for name, value, limit in counts:
            if limit is not None and value >= limit:
                return f"{name} {value:g}"
        for name, limit in (self.metrics or {}).items():
            found = metric(result, name)
            if found is not None and found >= limit:
                return f"{name} {found:g}"
        return None


def metric(result: Mapping[str, Any], name: str) -> float | None:
    """A number of a nested result by its name: a path with slashes, or the short name of a metric
    of the env runners (`episode_return_mean`). None if it is absent or NaN."""
    for path in (name, f"env_runners/{name}"):
        value: Any = result
        for part in path.split("/"):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            try:
                number = float(value)
            except (TypeError, ValueError):
                return None
            return None if math.isnan(number) else number
    return None
