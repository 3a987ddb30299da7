"""Warnings about metrics that a config names and no result has.

The names of the environment's metrics are known when its first episode has ended, those of
evaluation after the first evaluation, all others after the first iteration. A name that is missing
by then is reported once, with the nearest names that exist, and once more if it appears later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from raytrain.config import ExperimentConfig
from raytrain.config.metric_names import EVALUATION, nearest_first
from raytrain.ppo.curriculum import StagePlan
from raytrain.ppo.stopping import STOP
from raytrain.records.metrics import EPISODE_MEANS, RUNNERS, episode_column, metric
from raytrain.records.recent_episodes import CUSTOM, RecentEpisodes
from raytrain.trial.score import CHECKPOINT

_SHOWN = 8
_ROOTS = ("learners/", "timers/", "perf/", "fault_tolerance/", "env_runner_group/", RUNNERS)
"""Prefixes that only RLlib's own names have."""

_SETTINGS = frozenset({"config", STOP, CHECKPOINT, "recent", "curriculum"})
"""Parts of a result without measurements, or with copies of measurements."""


@dataclass(frozen=True)
class Named:
    """A metric's name, the config key that gives it, and the consequence if it does not exist."""

    key: str
    name: str
    consequence: str


def named_metrics(config: ExperimentConfig, stage: StagePlan) -> Iterator[Named]:
    """The metrics that a config names and that matter during `stage`."""
    yield Named("checkpoint.score", config.checkpoint.score, "no checkpoint can be the best")
    endless = not config.stop.has_an_end and not config.curriculum
    consequence = "it cannot end the run" + (", and nothing else may" if endless else "")
    for name in config.stop.metrics:
        yield Named("stop.metrics", name, consequence)
    for name in stage.rule.metrics or {}:
        yield Named(f"until.metrics of the stage {stage.name}", name, "it cannot end the stage")


class MissingMetrics:
    """Which metrics one attempt of a trial has reported as missing."""

    def __init__(self) -> None:
        self._present: set[Named] = set()
        self._reported: set[Named] = set()

    def messages(
        self, named: Iterable[Named], result: Mapping[str, Any], recent: RecentEpisodes
    ) -> Iterator[str]:
        """A sentence for each metric that this result shows to be missing or to exist after all."""
        for entry in named:
            if entry in self._present:
                continue
            if _exists(entry.name, result, recent):
                self._present.add(entry)
                if entry in self._reported:
                    yield f"{entry.key}: the results have {entry.name!r} now."
            elif entry not in self._reported and _is_decided(entry.name, result, recent):
                self._reported.add(entry)
                yield _sentence(entry, result)


def metric_names(result: Mapping[str, Any]) -> set[str]:
    """The names of all numbers in a result, in the short forms that a config may use."""
    names = set(EPISODE_MEANS)
    for path in _numbers(result, ""):
        prefix = EVALUATION if path.startswith(EVALUATION) else ""
        rest = path.removeprefix(prefix)
        if rest.startswith(CUSTOM):
            names.add(prefix + rest.removeprefix(CUSTOM).rpartition("/")[0])
        else:
            names.add(prefix + rest.removeprefix(RUNNERS))
    return names


def _numbers(values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in values.items():
        if not prefix and key in _SETTINGS:
            continue
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif hasattr(value, "__float__") and not isinstance(value, bool):
            yield f"{prefix}{key}"


def _exists(name: str, result: Mapping[str, Any], recent: RecentEpisodes) -> bool:
    if metric(result, name) is not None or recent.has(episode_column(name, recent)):
        return True
    prefix = EVALUATION if name.startswith(EVALUATION) else ""
    bare = name.removeprefix(prefix).removeprefix(RUNNERS)
    # A metric that is NaN at the moment, or that waits for an episode to end, exists.
    return bare in EPISODE_MEANS or prefix + bare in metric_names(result)


def _is_decided(name: str, result: Mapping[str, Any], recent: RecentEpisodes) -> bool:
    if name.startswith(EVALUATION):
        return bool(result.get(EVALUATION.rstrip("/")))
    return recent.count > 0 or name.startswith(_ROOTS)


def _sentence(named: Named, result: Mapping[str, Any]) -> str:
    names = nearest_first(named.name, metric_names(result))
    more = len(names) - _SHOWN
    return (
        f"{named.key}: there is no metric {named.name!r} in the results up to iteration "
        f"{result.get('training_iteration')}, so {named.consequence}. The nearest names are: "
        f"{', '.join(names[:_SHOWN])}"
        + (f" ({more} more in result.json)" if more > 0 else "")
        + "."
    )
