"""How a run ended: its exit code, and a message with the state of its trials, errors, and the
command that continues it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raytrain.checkpoint import Catalogue, Entry, Manifest, is_of_run, trials
from raytrain.checkpoint.lineage import experiment_around
from raytrain.config import ExperimentConfig, num_trials
from raytrain.driver.signals import Interrupts
from raytrain.ppo.curriculum import is_over
from raytrain.ppo.stopping import Progress, StopRule
from raytrain.storage import Location, StorageError
from raytrain.trial.score import score_of

if TYPE_CHECKING:
    from raytrain.driver.tune_callback import RunCallback


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `exit_code`: 0 finished, 1 failed, 128 + N stopped by signal N after saving
    (130: SIGINT, 143: SIGTERM). `trials`: directory names of the finished ones, the best first.
    `errors`: why trials failed, by directory name."""

    exit_code: int
    path: str
    message: str
    trials: tuple[str, ...] = ()
    errors: Mapping[str, str] = field(default_factory=dict)


def finished_trials(config: ExperimentConfig, place: Location) -> dict[str, Entry]:
    """The last checkpoint of each trial that has ended under the config's present `stop`, by
    directory name."""
    entries = {trial.name: finished_trial(config, trial) for trial in trials(place)}
    return {name: entry for name, entry in entries.items() if entry is not None}


def finished_trial(config: ExperimentConfig, trial: Location) -> Entry | None:
    """The last checkpoint of a trial that has ended under the config's present `stop`."""
    entry = Catalogue(trial).entry("final", verify=True)
    if entry is None or not entry.good or entry.manifest is None:
        return None
    experiment = experiment_around(entry)
    if experiment is not None and not is_of_run(entry.manifest, experiment.run_id, trial):
        return None
    return entry if has_ended(config, entry.manifest) else None


def has_ended(config: ExperimentConfig, manifest: Manifest) -> bool:
    """Whether the checkpoint of `manifest` is at the end of the run (`stop`, or the last stage)."""
    if is_over(config, manifest.metrics):
        return True
    rule = StopRule.of(config.stop)
    return rule.reached(Progress.of(manifest), manifest.metrics) is not None


def finished_before(
    config: ExperimentConfig, place: Location, done: Mapping[str, Entry]
) -> Outcome:
    """There was nothing to do."""
    message = (
        f"{config.name} is finished: {_summary(done, config)}. Raise a value in `stop` to train "
        f"on, or use --fresh to begin again. Results: {place}"
    )
    return Outcome(0, str(place), message, _best_first(done, config))


def outcome_of(
    config: ExperimentConfig,
    place: Location,
    watch: RunCallback,
    interrupts: Interrupts,
    command: str,
) -> Outcome:
    """The outcome of a run that was trained: finished, stopped by a signal, or failed."""
    try:
        done = finished_trials(config, place)
    except StorageError as error:
        message = (
            f"{config.name} ended, but the state of its trials cannot be read from storage: {error}"
            f"{_failures(watch)}\nWhat was committed is safe in {place}. When the storage answers, "
            f"continue with: {command}"
        )
        return Outcome(1, str(place), message)
    total = num_trials(config)
    tune_error = ""
    if watch.tune_error is not None:
        tune_error = f"\nTune ended with an error: {watch.tune_error.rstrip('.')}."
    if len(done) == total:
        message = f"{config.name} finished: {_summary(done, config)}.{_without_best(done, config)}"
        if tune_error:
            tune_error += " What was saved has been verified and is complete."
        return Outcome(0, str(place), message + tune_error, _best_first(done, config))
    if interrupts.received is not None:
        message = (
            f"Stopped by {interrupts.received.name}; {_saved(place, watch)} Continue with: "
            f"{command}{tune_error}"
        )
        return Outcome(interrupts.exit_code, str(place), message, tuple(done))
    kept = "No checkpoint was committed yet, so it will begin again."
    if _has_checkpoint(place):
        kept = f"What was committed is safe in {place}."
    message = (
        f"{total - len(done)} of {total} trial(s) of {config.name} did not finish:"
        f"{_failures(watch)}\n{kept} When the cause is fixed, continue with: {command}"
    )
    return Outcome(1, str(place), message, tuple(done), dict(watch.errors))


def _saved(place: Location, watch: RunCallback) -> str:
    """What was saved after a signal."""
    if watch.unsaved:
        lines = "".join(f"\n  {name}: {why.rstrip('.')}" for name, why in watch.unsaved.items())
        return (
            f"not everything was saved:{lines}\nWhat is lost is trained again from the newest "
            f"checkpoint in {place}, with the same result."
        )
    return f"saved in {place}." if _has_checkpoint(place) else "there was nothing to save yet."


def _failures(watch: RunCallback) -> str:
    errors = dict(watch.errors)
    if watch.tune_error is not None:
        errors["Tune"] = watch.tune_error
    return "".join(f"\n  {name}: {why}" for name, why in errors.items())


def _has_checkpoint(place: Location) -> bool:
    """Whether any trial has a checkpoint to continue from."""
    entries = (entry for trial in trials(place) for entry in Catalogue(trial).entries())
    return any(entry.good is not False and entry.kind != "error" for entry in entries)


def _best_first(done: Mapping[str, Entry], config: ExperimentConfig) -> tuple[str, ...]:
    return tuple(sorted(done, key=lambda name: _rank(done[name], config), reverse=True))


def _rank(entry: Entry, config: ExperimentConfig) -> float:
    """The score of a trial's best checkpoint, so that higher is better."""
    best = Catalogue(entry.location.parent).entry("best")
    score = score_of(best or entry, config.checkpoint)
    if score is None:
        return -math.inf
    return score.value if config.checkpoint.score_order == "max" else -score.value


def _summary(done: Mapping[str, Entry], config: ExperimentConfig) -> str:
    def sentence(name: str, entry: Entry) -> str:
        score = score_of(entry, config.checkpoint)
        text = f"{name} at iteration {entry.iteration}, {entry.timesteps:,} steps"
        if score is not None:
            text += f", score {score.value:g} ({config.checkpoint.score}{score.over})"
        return text

    return "; ".join(sentence(name, entry) for name, entry in sorted(done.items()))


def _without_best(done: Mapping[str, Entry], config: ExperimentConfig) -> str:
    """A sentence if no checkpoint of some finished trials had a score."""
    names = [
        name
        for name, entry in sorted(done.items())
        if Catalogue(entry.location.parent).entry("best") is None
    ]
    if not names:
        return ""
    where = "" if len(names) == len(done) else f" in {', '.join(names)}"
    score = config.checkpoint.score
    return f"\nThere is no best checkpoint{where}: checkpoint.score, {score!r}, never had a value."
