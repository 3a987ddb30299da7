"""When a checkpoint is due, and when a run has reached its end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from raytrain.driver.console import episodes_told
from raytrain.records.recent_episodes import CUSTOM, RecentEpisodes

if TYPE_CHECKING:
    from raytrain.checkpoint import Entry, Manifest
    from raytrain.config.schema import Checkpoint as CheckpointConfig

EVALUATION = "evaluation/"
STOP = "stop"
"""Key of a result under which averages over `stop.window` are (see `StopRule.report`)."""

CHECKPOINT = "checkpoint"
"""Key of a result under which its score is (see `report_score`)."""

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
    return _number(own.get(key, {}), "mean") if key in own else _number(own.get(one, {}), kind)


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


def report_score(result: dict[str, Any], score: Averaged | None) -> None:
    """Put the score into a result, if it has one: {"score": 21.6, "episodes": 43}."""
    if score is not None:
        episodes = {} if score.episodes is None else {"episodes": score.episodes}
        result[CHECKPOINT] = {"score": score.value, **episodes}


def reported_score(result: Mapping[str, Any]) -> Averaged | None:
    """What `report_score` put there; None without one."""
    said = result.get(CHECKPOINT)
    found = _number(said, "score") if isinstance(said, Mapping) else None
    if found is None or said is None:
        return None
    episodes = said.get("episodes")
    return Averaged(found, episodes if isinstance(episodes, int) else None)


def score_of(checkpoint: Entry, settings: CheckpointConfig) -> Averaged | None:
    """The score of a checkpoint under the present settings (see `ranked`); one of a former version does not
    say of how many episodes."""
    if checkpoint.manifest is None:
        return None
    manifest = ranked(checkpoint.manifest, settings)
    if manifest.score is None:
        return None
    return reported_score(manifest.metrics) or Averaged(manifest.score)


def labelled(metrics: Mapping[str, Any], settings: CheckpointConfig) -> dict[str, Any]:
    """What a manifest keeps of a result: with it stands what the score is a score of."""
    return {**metrics, CHECKPOINT: {**metrics.get(CHECKPOINT, {}), **_label(settings)}}


def ranked(manifest: Manifest, settings: CheckpointConfig) -> Manifest:
    """The same with its score under the present `checkpoint.score`, `score_order` and `score_window`. If it
    was saved under others, the score is what its metrics hold of the present one, or None. A checkpoint of a
    former version does not say what its score is of; it counts as it stands."""
    said = manifest.metrics.get(CHECKPOINT, {})
    label = _label(settings)
    if not isinstance(said, Mapping) or "metric" not in said:
        return manifest
    if {key: said.get(key) for key in label} == label:
        return manifest
    recent = manifest.metrics.get("recent", {})
    short = settings.score.removeprefix("env_runners/")
    over = recent.get("episodes") if short in recent else None
    score = recent[short] if short in recent else metric(manifest.metrics, settings.score)
    scored = (
        {} if score is None else {"score": score} | ({} if over is None else {"episodes": over})
    )
    return replace(
        manifest, score=score, metrics={**manifest.metrics, CHECKPOINT: {**scored, **label}}
    )


def _label(settings: CheckpointConfig) -> dict[str, Any]:
    return {
        "metric": settings.score,
        "order": settings.score_order,
        "window": settings.score_window,
    }


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
