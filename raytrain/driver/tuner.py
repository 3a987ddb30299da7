"""Tune's side of an experiment: a Tuner that is fresh, restored, or built anew.

Tune keeps `tuner.pkl`, `experiment_state-*.json` and the search's state in the experiment's
directory and writes them in place, one after the other. They list the trials and their states, and
are used when they are whole and list every trial. When they are missing, damaged or incomplete, or
have a trial as finished that is to continue (a raised `stop`, a damaged last checkpoint), they are
set aside and the Tuner is built anew from the config: trials are generated from the config's seed,
so they are the same trials with the same directories, and each continues from its newest good
checkpoint on storage.

Whether a trial is finished is read from storage alone. A finished trial is never started: the
scheduler ends it before Tune asks for its resources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

# A program may have put `raytrain.Tuner` in the place of `ray.tune.Tuner`.
from ray.tune.tuner import Tuner

from raytrain import _ray
from raytrain.checkpoint import Entry
from raytrain.config import ExperimentConfig, num_trials, param_space
from raytrain.driver.outcome import finished_trial
from raytrain.driver.tune_callback import trial_location
from raytrain.storage import Location, StorageError
from raytrain.storage.json import parse_json
from raytrain.storage.location import storage_errors, with_numbers
from raytrain.storage.signing import signing_key
from raytrain.trial.saving import REPORT
from raytrain.trial.trainable import TrialPPO

_TUNER = "tuner.pkl"
_STATE, _SEARCH = "experiment_state-", "basic-variant-state-"
_ASIDE = "set_aside"
_FINISHED = "TERMINATED"
_LARGEST_STATE = 1 << 30  # bytes: it grows with the number of trials


class ExperimentScheduler(FIFOScheduler):
    """First come, first served. A trial that is finished on storage is ended without being started;
    a trial that leaves a node is ended there and started on another."""

    def __init__(
        self,
        finished: Mapping[str, Entry],
        find_finished: Callable[[Location], Entry | None],
    ) -> None:
        """`finished`: the last checkpoint of each finished trial, by directory name.
        `find_finished` (see `outcome.finished_trial`) is called with the directory of a trial that
        failed: it may have died after its last save."""
        super().__init__()
        self._finished = dict(finished)
        self._find_finished = find_finished
        self._failed: set[str] = set()

    def __reduce__(self) -> Any:
        return FIFOScheduler, ()  # Tune pickles it into tuner.pkl; each start has its own.

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._failed.add(str(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        leaves = any(key.startswith(f"{REPORT}/leaving") for key in result)
        return str(TrialScheduler.PAUSE if leaves else TrialScheduler.CONTINUE)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        # Tune calls this after it has added trials and before it starts any.
        for trial in tune_controller.get_trials():
            if trial.status == "PENDING" and (entry := self._finished_entry(trial)) is not None:
                assert entry.manifest is not None, "a finished trial was found by its manifest"
                metrics = {**entry.manifest.metrics, "training_iteration": entry.iteration}
                place = entry.location
                _ray.tune.note_finished(trial, metrics, place.path, place.fs)
                tune_controller.stop_trial(trial)
        return super().choose_trial_to_run(tune_controller)

    def _finished_entry(self, trial: Any) -> Entry | None:
        name = str(trial)
        if name in self._failed:
            self._failed.discard(name)
            try:
                return self._find_finished(trial_location(trial))
            except StorageError:
                return None  # The trial reads storage itself, and reports what it could not read.
        return self._finished.pop(name, None)


@dataclass(frozen=True)
class TuneFiles:
    """What Tune's own files contain. `problem`: None if they are whole. `statuses`: of each trial,
    by directory name. `complete`: every trial of the experiment has been generated."""

    names: tuple[str, ...]
    problem: str | None
    statuses: Mapping[str, str] = field(default_factory=dict)
    complete: bool = False

    def fit(self, trials: int, finished: Iterable[str]) -> bool:
        """Whether they can be restored from, if the experiment has that many trials and those named
        are finished on storage."""
        ended = {name for name, status in self.statuses.items() if status == _FINISHED}
        everything = self.complete and len(self.statuses) == trials
        return self.problem is None and everything and ended <= set(finished)


def read_tune_files(experiment: Location) -> TuneFiles:
    """Read Tune's files without trusting them.

    They hold pickles, and Tune signs nothing. So where signatures are checked they are not read at
    all: the Tuner is built from the config each time, and the files of earlier starts stay there.
    """
    if signing_key() is not None:
        return TuneFiles((), "they are not signed")
    with storage_errors("Reading Tune's state", experiment):
        names = tuple(
            name
            for name in experiment.listed()
            if name == _TUNER or name.startswith((_STATE, _SEARCH))
        )
        if _TUNER not in names:
            return TuneFiles(names, f"{_TUNER} is missing")
        states = [name for name in names if name.startswith(_STATE)]
        searches = [name for name in names if name.startswith(_SEARCH)]
        search = None
        for name in (_TUNER, *searches[-1:]):
            search = _ray.tune.unpickled((experiment / name).read_bytes())
            if search is None:
                return TuneFiles(names, f"{name} is damaged")
        if not states:
            return TuneFiles(names, f"{_STATE}*.json is missing")
        try:
            data = (experiment / states[-1]).read_bytes(_LARGEST_STATE + 1)
            state = parse_json(data, largest=_LARGEST_STATE)
            trials = [parse_json(trial.encode()) for trial, _ in state["trial_data"]]
            statuses = {str(trial["custom_dirname"]): str(trial["status"]) for trial in trials}
        except (ValueError, KeyError, TypeError, AttributeError):
            return TuneFiles(names, f"{states[-1]} is damaged")
    complete = bool(searches) and _ray.tune.has_named_all_trials(search)
    problem = None if statuses else f"{states[-1]} lists no trial"
    return TuneFiles(names, problem, statuses, complete)


def set_aside(experiment: Location, names: Iterable[str]) -> None:
    """Move Tune's files to where Tune does not look. Nothing is deleted."""
    with storage_errors("Setting Tune's state aside", experiment):
        place = experiment / _ASIDE
        place.make()
        for name in names:
            (experiment / name).copy_file(place.first_free(with_numbers(name)))
            (experiment / name).delete_file()


def build_tuner(
    config: ExperimentConfig,
    experiment: Location,
    callbacks: Sequence[Any],
    finished: Mapping[str, Entry],
) -> tuple[Tuner, str | None]:
    """The Tuner to run, and a message if Tune's own files could not be used. `callbacks`:
    `RunCallback` first. `finished`: see `ExperimentScheduler`."""
    scheduler = ExperimentScheduler(finished, partial(finished_trial, config))
    failures = FailureConfig(max_failures=config.failure.max_failures)
    files = read_tune_files(experiment)
    if files.fit(num_trials(config), finished):
        tuner = Tuner.restore(
            experiment.path,
            TrialPPO,
            resume_unfinished=True,
            resume_errored=True,
            storage_filesystem=experiment.fs,
        )
        _ray.tune.set_run_config(
            tuner, callbacks=list(callbacks), failure_config=failures, scheduler=scheduler
        )
        return tuner, None
    if files.names:
        set_aside(experiment, files.names)
    # The trials continue from whatever lies in their directories.
    tuner = Tuner(
        TrialPPO,
        param_space={**param_space(config), "import_path": config.import_path},
        tune_config=TuneConfig(
            num_samples=config.tune.num_samples,
            scheduler=scheduler,
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
            # The trial decides when to save and what to keep: it knows when a checkpoint's commit
            # is complete. Tune only asks for the last one when a trial ends.
            checkpoint_config=CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=True),
            failure_config=failures,
            callbacks=list(callbacks),
            verbose=0,
        ),
    )
    message = (
        f"Tune's own state cannot be used ({files.problem}); it was set aside in {_ASIDE}/. The "
        "experiment continues from its config and the trials' checkpoints."
    )
    return tuner, message if files.names and files.problem is not None else None


def trial_directory_name(trial: Any) -> str:
    """`trial_00001_lr=0.0003`: stable, because trials are generated in the same order every
    time."""
    index = trial.trial_id.rsplit("_", 1)[-1]
    values = [
        f"{path.rsplit('/', 1)[-1]}={_short(value)}"
        for path, value in sorted((trial.evaluated_params or {}).items())
    ]
    return "_".join([f"trial_{index}", *values])[:120]


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return "".join(char if char.isalnum() or char in "+-.," else "-" for char in text)[:40]
