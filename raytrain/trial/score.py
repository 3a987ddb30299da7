"""The score of a checkpoint: in a result, in a manifest, and under settings that have changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raytrain.records.metrics import Averaged, metric, number_at

if TYPE_CHECKING:
    from raytrain.checkpoint import Entry, Manifest
    from raytrain.config.schema import Checkpoint as CheckpointConfig

CHECKPOINT = "checkpoint"
"""Key of a result under which its score is (see `report_score`)."""


def report_score(result: dict[str, Any], score: Averaged | None) -> None:
    """Put the score into a result, if it has one: {"score": 21.6, "episodes": 43}."""
    if score is not None:
        episodes = {} if score.episodes is None else {"episodes": score.episodes}
        result[CHECKPOINT] = {"score": score.value, **episodes}


def reported_score(result: Mapping[str, Any]) -> Averaged | None:
    """What `report_score` put there; None without one."""
    said = result.get(CHECKPOINT)
    found = number_at(said, "score") if isinstance(said, Mapping) else None
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
