"""Tune's side of an experiment: a Tuner that is fresh, restored, or built anew.

Tune keeps `tuner.pkl`, `experiment_state-*.json` and the search's state in the experiment's directory
and writes them in place. They say which trials there are and how each stands, and are used when they are whole. When
they are missing or damaged, or hold a trial for finished that is to go on (a raised `stop`), they are
set aside and the Tuner is built anew from the config: trials are generated from the config's seed, so
they are the same trials with the same directories, and each of them finds its newest good checkpoint
on storage by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from raytrain import _ray
from raytrain.checkpoint import Location
from raytrain.checkpoint.signing import signing_key
from raytrain.checkpoint.storage import storage_errors
from raytrain.config import ExperimentConfig, param_space
from raytrain.trainable.trial import REPORT, TrialPPO

_TUNER = "tuner.pkl"
_STATE, _SEARCH = "experiment_state-", "basic-variant-state-"
_ASIDE = "set_aside"
_FINISHED = "TERMINATED"


class GivesNodesUp(FIFOScheduler):
    """First come, first served; a trial that leaves a node is ended there and started on another."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        leaves = any(key.startswith(f"{REPORT}/leaving") for key in result)
        return str(TrialScheduler.PAUSE if leaves else TrialScheduler.CONTINUE)


@dataclass(frozen=True)
class TuneFiles:
    """What Tune's own files say: `problem` is None if they can be restored from."""

    names: tuple[str, ...]
    problem: str | None
    statuses: tuple[str, ...] = ()


def read_tune_files(experiment: Location) -> TuneFiles:
    """Look at Tune's files without trusting them.

    They hold pickles, and Tune signs nothing. So where signatures are checked they are not read at
    all: the Tuner is built from the config each time, and the files of earlier starts stay as they are.
    """
    if signing_key() is not None:
        return TuneFiles((), "they are not signed")
    with storage_errors("Reading Tune's state", experiment):
        names = sorted(
            child.name
            for child in experiment.children()
            if child.name == _TUNER or child.name.startswith((_STATE, _SEARCH))
        )
        if _TUNER not in names:
            return TuneFiles(tuple(names), f"{_TUNER} is missing")
        states = [name for name in names if name.startswith(_STATE)]
        searches = [name for name in names if name.startswith(_SEARCH)]
        for name in (_TUNER, *searches[-1:]):
            if not _ray.tune.can_unpickle((experiment / name).read_bytes()):
                return TuneFiles(tuple(names), f"{name} is damaged")
        if not states:
            return TuneFiles(tuple(names), "experiment_state-*.json is missing")
        try:
            state = json.loads((experiment / states[-1]).read_bytes())
            trials = [json.loads(trial) for trial, _ in state["trial_data"]]
            statuses = tuple(str(trial["status"]) for trial in trials)
        except (ValueError, KeyError, TypeError):
            return TuneFiles(tuple(names), f"{states[-1]} is damaged")
    return TuneFiles(tuple(names), None if statuses else f"{states[-1]} lists no trial", statuses)


def forget_tune_files(experiment: Location) -> None:
    """Set Tune's files aside: what they say of the trials' resources may not hold any more."""
    set_aside(experiment, read_tune_files(experiment).names)


def set_aside(experiment: Location, names: tuple[str, ...]) -> None:
    """Move Tune's files out of Tune's sight. Nothing is deleted."""
    with storage_errors("Setting Tune's state aside", experiment):
        place = experiment / _ASIDE
        place.make()
        for name in names:
            free, count = place / name, 0
            while free.exists():
                count += 1
                free = place / f"{name}.{count}"
            (experiment / name).copy_file(free)
            (experiment / name).delete_file()


def fresh_tuner(config: ExperimentConfig, experiment: Location, watch: Any) -> Tuner:
    """A Tuner whose trials continue from whatever lies in their directories."""
    return Tuner(
        TrialPPO,
        param_space={**param_space(config), "import_path": config.import_path},
        tune_config=TuneConfig(
            num_samples=config.tune.num_samples,
            scheduler=GivesNodesUp(),
            search_alg=BasicVariantGenerator(
                random_state=config.seed,
                max_concurrent=config.tune.max_concurrent_trials or 0,
            ),
            trial_name_creator=trial_directory_name,
            trial_dirname_creator=trial_directory_name,
        ),
        run_config=RunConfig(
            name=experiment.name,
            storage_path=experiment.parent.path,
            storage_filesystem=experiment.fs,
            # When to save and what to keep is decided in the trial, where a checkpoint's commit is
            # known to be complete; Tune only asks for the last one when a trial ends.
            checkpoint_config=CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=True),
            failure_config=_failure_config(config),
            callbacks=[watch],
            verbose=0,
        ),
    )


def restored_tuner(config: ExperimentConfig, experiment: Location, watch: Any) -> Tuner:
    """The Tuner of an experiment whose Tune files are whole; unfinished and failed trials go on."""
    tuner = Tuner.restore(
        experiment.path,
        TrialPPO,
        resume_unfinished=True,
        resume_errored=True,
        storage_filesystem=experiment.fs,
    )
    _ray.tune.set_run_config(
        tuner, callbacks=[watch], failure_config=_failure_config(config), scheduler=GivesNodesUp()
    )
    return tuner


def build_tuner(
    config: ExperimentConfig, experiment: Location, watch: Any, *, finished: int
) -> tuple[Tuner, str | None]:
    """The Tuner to run, and a sentence if Tune's own files could not be used. `finished`: how many
    trials have ended by what lies on storage; if Tune holds more for ended, some are to go on."""
    found = read_tune_files(experiment)
    if found.problem is None and found.statuses.count(_FINISHED) <= finished:
        return restored_tuner(config, experiment, watch), None
    if not found.names:
        return fresh_tuner(config, experiment, watch), None
    set_aside(experiment, found.names)
    tuner = fresh_tuner(config, experiment, watch)
    if found.problem is None:
        return tuner, None
    return tuner, (
        f"Tune's own state cannot be used ({found.problem}); it was set aside in {_ASIDE}/ and the "
        "experiment goes on from its config and the trials' checkpoints."
    )


def trial_directory_name(trial: Any) -> str:
    """`trial_00001_lr=0.0003`: stable, because trials are generated in the same order every time."""
    index = trial.trial_id.rsplit("_", 1)[-1]
    chosen = [
        f"{path.rsplit('/', 1)[-1]}={_short(value)}"
        for path, value in sorted((trial.evaluated_params or {}).items())
    ]
    return "_".join([f"trial_{index}", *chosen])[:120]


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return "".join(char if char.isalnum() or char in "+-.," else "-" for char in text)[:40]


def _failure_config(config: ExperimentConfig) -> FailureConfig:
    return FailureConfig(max_failures=config.failure.max_failures)
