"""The score of a checkpoint: in a result, in a manifest, and under changed settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from raytrain.checkpoint import BestPolicy, Entry, Manifest
from raytrain.config import ExperimentConfig, eras
from raytrain.records.metrics import RUNNERS, Averaged, metric, number_at

if TYPE_CHECKING:
    from raytrain.config.schema import Checkpoint as CheckpointConfig

CHECKPOINT = "checkpoint"
"""Key of a result that holds its score (see `report_score`)."""


def report_score(result: dict[str, Any], score: Averaged | None) -> None:
    """Put the score into a result, if it has one: {"score": 21.6, "episodes": 43}."""
    if score is not None:
        episodes = {} if score.episodes is None else {"episodes": score.episodes}
        result[CHECKPOINT] = {"score": score.value, **episodes}


def reported_score(result: Mapping[str, Any]) -> Averaged | None:
    """The score that `report_score` put into a result; None without one."""
    score = number_at(result, f"{CHECKPOINT}/score")
    if score is None:
        return None
    episodes = result[CHECKPOINT].get("episodes")
    return Averaged(score, episodes if isinstance(episodes, int) else None)


def score_in_row(row: Mapping[str, Any], name: str) -> float | None:
    """The score of an iteration, where the metric `name` is the score. Rows of former versions have
    it only among the averages."""
    score = reported_score(row)
    if score is not None:
        return score.value
    averaged = metric(row, f"recent/{name}")
    return metric(row, name) if averaged is None else averaged


def score_of(checkpoint: Entry, settings: CheckpointConfig) -> Averaged | None:
    """The score of a checkpoint under the present settings (see `ranked`).

    A checkpoint of a former version does not have the number of episodes.
    """
    if checkpoint.manifest is None:
        return None
    manifest = ranked(checkpoint.manifest, settings)
    if manifest.score is None:
        return None
    return reported_score(manifest.metrics) or Averaged(manifest.score)


def labelled(metrics: Mapping[str, Any], settings: CheckpointConfig) -> dict[str, Any]:
    """The metrics of a manifest: those of a result, and which metric the score is of."""
    return {**metrics, CHECKPOINT: {**metrics.get(CHECKPOINT, {}), **_label(settings)}}


def ranked(manifest: Manifest, settings: CheckpointConfig) -> Manifest:
    """The same manifest with its score under the present `score`, `score_order` and `score_window`.

    If it was saved under other settings, the score is taken from its metrics, and is None if they
    do not have it. A checkpoint of a former version does not say what its score is of; that score
    is not changed.
    """
    saved = manifest.metrics.get(CHECKPOINT, {})
    label = _label(settings)
    if not isinstance(saved, Mapping) or "metric" not in saved:
        return manifest
    if {key: saved.get(key) for key in label} == label:
        return manifest
    recent = manifest.metrics.get("recent", {})
    short = settings.score.removeprefix(RUNNERS)
    if short in recent:
        score, episodes = recent[short], recent.get("episodes")
    else:
        score, episodes = metric(manifest.metrics, settings.score), None
    metrics = {**manifest.metrics, CHECKPOINT: {}}
    report_score(metrics, None if score is None else Averaged(score, episodes))
    return replace(manifest, score=score, metrics=labelled(metrics, settings))


def best_policy(config: ExperimentConfig) -> BestPolicy:
    """How the checkpoint `best` of a trial with this config is chosen."""
    settings = config.checkpoint
    return BestPolicy(settings.score_order, eras(config), partial(ranked, settings=settings))


def _label(settings: CheckpointConfig) -> dict[str, Any]:
    return {
        "metric": settings.score,
        "order": settings.score_order,
        "window": settings.score_window,
    }
