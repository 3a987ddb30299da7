"""Tune's side of an experiment: a Tuner that is fresh, restored, or built anew.

Tune keeps `tuner.pkl`, `experiment_state-*.json` and the search's state in the experiment's directory
and writes them in place, one after the other. They say which trials there are and how each stands, and
are used when they are whole and name every trial. When they are missing, damaged or incomplete, or hold a
trial for finished that is to go on (a raised `stop`, a damaged last checkpoint), they are set aside
and the Tuner is built anew from the config: trials are generated from the config's seed, so they are the
same trials with the same directories, and each of them finds its newest good checkpoint on storage.

Whether a trial is finished is known from storage alone. One that is finished is never started: the
scheduler ends it before Tune asks for its resources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from raytrain import _ray
from raytrain.checkpoint import Entry
from raytrain.config import ExperimentConfig, num_trials, param_space
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


FindFinished = Callable[[Location], Entry | None]
"""Looks at a trial's directory: its last checkpoint if the trial has ended under the present `stop`."""


class ExperimentScheduler(FIFOScheduler):
    """First come, first served. A trial that is finished on storage is ended without being started; a
    trial that leaves a node is ended there and started on another."""

    def __init__(
        self,
        finished: Mapping[str, Entry] | None = None,
        find_finished: FindFinished = lambda trial: None,
    ) -> None:
        """`finished`: trials known to be finished, by directory name, with their last checkpoint.
        `find_finished` is asked for a trial that failed: it may have died after its last save."""
        super().__init__()
        self._finished = dict(finished or {})
        self._find_finished = find_finished
        self._failed: set[str] = set()
        self._seen: set[str] = set()

    def __reduce__(self) -> Any:
        return ExperimentScheduler, ()  # Tune pickles it into tuner.pkl; each start brings its own.

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._failed.add(str(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        leaves = any(key.startswith(f"{REPORT}/leaving") for key in result)
        return str(TrialScheduler.PAUSE if leaves else TrialScheduler.CONTINUE)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        # Tune asks this after it has added trials and before it starts any.
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
                return None  # It looks for itself, and says what it could not read.
        if name in self._seen:
            return None
        self._seen.add(name)
        return self._finished.get(name)


@dataclass(frozen=True)
class TuneFiles:
    """What Tune's own files say: `problem` is None if they are whole. `statuses`: of each trial, by
    directory name. `complete`: every trial of the experiment has been made."""

    names: tuple[str, ...]
    problem: str | None
    statuses: Mapping[str, str] = field(default_factory=dict)
    complete: bool = False

    def fit(self, trials: int, finished: Iterable[str]) -> bool:
        """Whether they can be restored from, if the experiment has so many trials of which those named
        are finished on storage."""
        ended = {name for name, status in self.statuses.items() if status == _FINISHED}
        everything = self.complete and len(self.statuses) == trials
        return self.problem is None and everything and ended <= set(finished)


def read_tune_files(experiment: Location) -> TuneFiles:
    """Look at Tune's files without trusting them.

    They hold pickles, and Tune signs nothing. So where signatures are checked they are not read at
    all: the Tuner is built from the config each time, and the files of earlier starts stay as they are.
    """
    if signing_key() is not None:
        return TuneFiles((), "they are not signed")
    with storage_errors("Reading Tune's state", experiment):
        names = [
            name
            for name in experiment.listed()
            if name == _TUNER or name.startswith((_STATE, _SEARCH))
        ]
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
            data = (experiment / states[-1]).read_bytes(_LARGEST_STATE + 1)
            state = parse_json(data, largest=_LARGEST_STATE)
            trials = [parse_json(trial.encode()) for trial, _ in state["trial_data"]]
            statuses = {str(trial["custom_dirname"]): str(trial["status"]) for trial in trials}
        except (ValueError, KeyError, TypeError, AttributeError):
            return TuneFiles(tuple(names), f"{states[-1]} is damaged")
        complete = bool(searches) and _ray.tune.has_named_all_trials(
            (experiment / searches[-1]).read_bytes()
        )
    problem = None if statuses else f"{states[-1]} lists no trial"
    return TuneFiles(tuple(names), problem, statuses, complete)


def forget_tune_files(experiment: Location) -> None:
    """Set Tune's files aside: what they say of the trials' resources may not hold any more."""
    set_aside(experiment, read_tune_files(experiment).names)


def set_aside(experiment: Location, names: tuple[str, ...]) -> None:
    """Move Tune's files out of Tune's sight. Nothing is deleted."""
    with storage_errors("Setting Tune's state aside", experiment):
        place = experiment / _ASIDE
        place.make()
        for name in names:
            (experiment / name).copy_file(place.first_free(with_numbers(name)))
            (experiment / name).delete_file()


def fresh_tuner(
    config: ExperimentConfig, experiment: Location, watch: Any, scheduler: ExperimentScheduler
) -> Tuner:
    """A Tuner whose trials continue from whatever lies in their directories."""
    return Tuner(
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
            # When to save and what to keep is decided in the trial, where a checkpoint's commit is
            # known to be complete; Tune only asks for the last one when a trial ends.
            checkpoint_config=CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=True),
            failure_config=_failure_config(config),
            callbacks=[watch],
            verbose=0,
        ),
    )


def restored_tuner(
    config: ExperimentConfig, experiment: Location, watch: Any, scheduler: ExperimentScheduler
) -> Tuner:
    """The Tuner of an experiment whose Tune files are whole; unfinished and failed trials go on."""
    tuner = Tuner.restore(
        experiment.path,
        TrialPPO,
        resume_unfinished=True,
        resume_errored=True,
        storage_filesystem=experiment.fs,
    )
    _ray.tune.set_run_config(
        tuner, callbacks=[watch], failure_config=_failure_config(config), scheduler=scheduler
    )
    return tuner


def build_tuner(
    config: ExperimentConfig,
    experiment: Location,
    watch: Any,
    *,
    finished: Mapping[str, Entry],
    find_finished: FindFinished,
) -> tuple[Tuner, str | None]:
    """The Tuner to run, and a sentence if Tune's own files could not be used. `finished`,
    `find_finished`: see `ExperimentScheduler`."""
    scheduler = ExperimentScheduler(finished, find_finished)
    found = read_tune_files(experiment)
    if found.fit(num_trials(config), finished):
        return restored_tuner(config, experiment, watch, scheduler), None
    if not found.names:
        return fresh_tuner(config, experiment, watch, scheduler), None
    set_aside(experiment, found.names)
    tuner = fresh_tuner(config, experiment, watch, scheduler)
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
