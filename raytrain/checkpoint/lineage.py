"""The line of descent of a run that was forked from another.

    experiment.json  "parent": {experiment, trial, checkpoint, weights_sha256}
                     "fork":   {"weights_only": ..., "run_id": of the parent, "iteration": ...,
                                "timesteps": ..., "episodes": ..., "ancestors": [GENERATION, ...]}
    forked_from/     a full copy of the parent's checkpoint, beside the trials: the parent may be
                     pruned, moved or deleted, and the fork can still begin (again)

A GENERATION is what is known of the checkpoint that a run began from: {experiment, trial,
checkpoint, weights_sha256, iteration, timesteps, score, weights_only, place}. `ancestors` begins
with the parent and ends with the first run of the line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from raytrain.checkpoint.catalogue import Entry
from raytrain.checkpoint.experiment_file import ExperimentFile, ExperimentFileError
from raytrain.checkpoint.manifest import Manifest
from raytrain.storage.location import Location

_DIRECTORY = re.compile(r"trial_(\d+)")  # trial_00001_lr=0.001
_TRIAL_ID = re.compile(r"_(\d+)$")  # 8a6d5_00001

FORKED_FROM = "forked_from"
SET_ASIDE = "set_aside"
"""In a trial's directory: what `--from-stage` went back behind, by the moment."""


def trial_of(entry: Entry) -> Location:
    """The trial's directory that a checkpoint lies in, also one that was set aside there."""
    place = entry.location
    for _ in entry.path.split("/"):
        place = place.parent
    above = place.parent
    return above.parent if above.name == SET_ASIDE else place


def experiment_around(entry: Entry) -> ExperimentFile | None:
    """The experiment that a checkpoint lies in; None if there is none, or its file is damaged."""
    try:
        return ExperimentFile.read(trial_of(entry).parent)
    except ExperimentFileError:
        return None


def is_of_run(manifest: Manifest, run_id: str, trial: Location) -> bool:
    """Whether a checkpoint was written by this run, in the trial of this directory. A signature alone does
    not say that: with one key, all runs have it."""
    here, there = _DIRECTORY.match(trial.name), _TRIAL_ID.search(manifest.trial_id)
    same_trial = here is None or there is None or here[1] == there[1]
    return manifest.run_id == run_id and same_trial


def told(found: Mapping[str, Any]) -> str:
    """A generation in words."""
    text = f"{found['experiment']}/{found['trial']}/{found['checkpoint']}"
    if "iteration" in found:
        text += f", iteration {found['iteration']}, {found['timesteps']:,} steps"
    text += f", weights {found['weights_sha256'][:12]}"
    return f"{text} (weights only)" if found.get("weights_only") else text


def generation(entry: Entry, *, weights_only: bool) -> dict[str, Any]:
    """A checkpoint as the beginning of a run."""
    manifest = entry.manifest
    assert manifest is not None, "a verified checkpoint has a manifest"
    trial = trial_of(entry)
    return {
        "experiment": manifest.experiment,
        "trial": trial.name,
        "checkpoint": entry.path,
        "weights_sha256": manifest.weights_sha256,
        "iteration": manifest.iteration,
        "timesteps": manifest.timesteps,
        "score": manifest.score,
        "weights_only": weights_only,
        "place": str(trial.parent),
    }


def ancestors(experiment: ExperimentFile | None) -> list[Mapping[str, Any]]:
    """The generations that a run comes from, its parent first; empty if it is no fork."""
    if experiment is None or experiment.fork is None:
        return []
    return list(experiment.fork.get("ancestors", ()))


def line_of_descent(entry: Entry) -> list[Mapping[str, Any]]:
    """The generations that a checkpoint comes from, its run's parent first. Of a checkpoint that lies
    outside of its experiment only the parent is known."""
    parent = entry.manifest.parent if entry.manifest else None
    if parent is None:
        return []
    return ancestors(experiment_around(entry)) or [vars(parent)]
