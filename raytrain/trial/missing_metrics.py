"""The metrics that a config names and no result has: said once the results show it.

The names of an environment's metrics are known when its first episode has ended, those of evaluation
with the first evaluation, all others with the first iteration. A name that is missing by then is told,
with the names that there are; and once more if it turns up later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from raytrain.config import ExperimentConfig
from raytrain.config.metric_names import EVALUATION, nearest_first
from raytrain.ppo.curriculum import StagePlan
from raytrain.ppo.stopping import STOP
from raytrain.records.metrics import EPISODE_MEANS, metric
from raytrain.records.recent_episodes import CUSTOM, RecentEpisodes
from raytrain.trial.score import CHECKPOINT

_SHOWN = 8
_RUNNERS = "env_runners/"
_ROOTS = ("learners/", "timers/", "perf/", "fault_tolerance/", "env_runner_group/", _RUNNERS)
"""What only names of RLlib's own begin with."""

_SETTINGS = frozenset({"config", STOP, CHECKPOINT, "recent", "curriculum"})
"""Parts of a result in which nothing is measured, or nothing that is not elsewhere as well."""


@dataclass(frozen=True)
class Named:
    """A metric's name, the config key that gives it, and what follows if there is no such metric."""

    key: str
    name: str
    so: str


def named_metrics(config: ExperimentConfig, stage: StagePlan) -> Iterator[Named]:
    """Those that a config names and that matter during `stage`."""
    yield Named("checkpoint.score", config.checkpoint.score, "no checkpoint can be the best")
    endless = not config.stop.has_an_end and not config.curriculum
    so = "it cannot end the run" + (", and nothing else may" if endless else "")
    for name in config.stop.metrics:
        yield Named("stop.metrics", name, so)
    for name in stage.rule.metrics or {}:
        yield Named(f"until.metrics of the stage {stage.name}", name, "it cannot end the stage")


class MissingMetrics:
    """What has been told of one attempt of a trial."""

    def __init__(self) -> None:
        self._there: set[Named] = set()
        self._told: set[Named] = set()

    def look(
        self, named: Iterable[Named], result: Mapping[str, Any], recent: RecentEpisodes
    ) -> Iterator[str]:
        """A sentence for each of `named` of which something new is known with this result."""
        for each in named:
            if each in self._there:
                continue
            if _is_there(each.name, result, recent):
                self._there.add(each)
                if each in self._told:
                    yield f"{each.key}: {each.name!r} is there now."
            elif each not in self._told and _is_decided(each.name, result, recent):
                self._told.add(each)
                yield _sentence(each, result)


def metric_names(result: Mapping[str, Any]) -> set[str]:
    """The names of all numbers in a result, as short as they may be given in a config."""
    names = set(EPISODE_MEANS)
    for path in _numbers(result, ""):
        prefix = EVALUATION if path.startswith(EVALUATION) else ""
        rest = path.removeprefix(prefix)
        if rest.startswith(CUSTOM):
            names.add(prefix + rest.removeprefix(CUSTOM).rpartition("/")[0])
        else:
            names.add(prefix + rest.removeprefix(_RUNNERS))
    return names


def _numbers(values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in values.items():
        if not prefix and key in _SETTINGS:
            continue
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif hasattr(value, "__float__") and not isinstance(value, bool):
            yield f"{prefix}{key}"


def _is_there(name: str, result: Mapping[str, Any], recent: RecentEpisodes) -> bool:
    own = CUSTOM + name.removeprefix(CUSTOM)
    if metric(result, name) is not None or recent.has(own) or recent.has(own.removesuffix("/mean")):
        return True
    prefix = EVALUATION if name.startswith(EVALUATION) else ""
    bare = name.removeprefix(prefix).removeprefix(_RUNNERS)
    # One that is NaN at the moment, or that waits for an episode to end, is there.
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
        f"{result.get('training_iteration')}, so {named.so}. The nearest that there are: "
        f"{', '.join(names[:_SHOWN])}"
        + (f" ({more} more in result.json)" if more > 0 else "")
        + "."
    )
