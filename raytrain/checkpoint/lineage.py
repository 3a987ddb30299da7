"""The line of descent of a run that was forked from another.

    experiment.json  "parent": {experiment, trial, checkpoint, weights_sha256}
                     "fork":   {"weights_only": ..., "run_id": of the parent, "iteration": ...,
                                "timesteps": ..., "episodes": ..., "ancestors": [GENERATION, ...]}
    forked_from/     a full copy of the parent's checkpoint, beside the trials: the parent may be
                     pruned, moved or deleted, and the fork can still begin (again)

A GENERATION describes the checkpoint that a run began from: {experiment, trial,
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
"""In a trial's directory: what came after the stage that `--from-stage` went back to, by date."""


def trial_of(entry: Entry) -> Location:
    """The trial's directory of a checkpoint, also of one that was set aside there."""
    holder = entry.trial.parent
    return holder.parent if holder.name == SET_ASIDE else entry.trial


def experiment_around(entry: Entry) -> ExperimentFile | None:
    """The experiment of a checkpoint; None if there is none around it, or its file is damaged."""
    try:
        return ExperimentFile.read(trial_of(entry).parent)
    except ExperimentFileError:
        return None


def is_of_run(manifest: Manifest, run_id: str, trial: Location) -> bool:
    """Whether a checkpoint was written by this run, in the trial of this directory. A signature
    does not show that: all runs with one key have it."""
    here, there = _DIRECTORY.match(trial.name), _TRIAL_ID.search(manifest.trial_id)
    same_trial = here is None or there is None or here[1] == there[1]
    return manifest.run_id == run_id and same_trial


def generation_text(generation: Mapping[str, Any]) -> str:
    """A generation in one line."""
    text = f"{generation['experiment']}/{generation['trial']}/{generation['checkpoint']}"
    if "iteration" in generation:
        text += f", iteration {generation['iteration']}, {generation['timesteps']:,} steps"
    text += f", weights {generation['weights_sha256'][:12]}"
    return f"{text} (weights only)" if generation.get("weights_only") else text


def generation(entry: Entry, *, weights_only: bool) -> dict[str, Any]:
    """The generation of a run that begins from this checkpoint."""
    manifest = entry.good_manifest
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
    """The generations of a run, its parent first; empty if it is not a fork."""
    if experiment is None or experiment.fork is None:
        return []
    return list(experiment.fork.get("ancestors", ()))


def line_of_descent(entry: Entry) -> list[Mapping[str, Any]]:
    """The generations of a checkpoint's run, its parent first. Of a checkpoint outside of its
    experiment only the parent is known."""
    parent = entry.manifest.parent if entry.manifest else None
    if parent is None:
        return []
    return ancestors(experiment_around(entry)) or [vars(parent)]
