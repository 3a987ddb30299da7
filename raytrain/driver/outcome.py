"""How a run ended, and what is said of it: one sentence of how its trials stand, errors, and the command
that goes on from there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raytrain.checkpoint import Catalogue, Entry, trials
from raytrain.config import ExperimentConfig, num_trials
from raytrain.driver.signals import Interrupts
from raytrain.storage import Location, StorageError
from raytrain.trial.score import score_of

if TYPE_CHECKING:
    from raytrain.driver.tune_callback import RunCallback


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `exit_code`: 0 finished, 1 failed, 128 and its number: stopped by a signal after
    saving (130: SIGINT, 143: SIGTERM).
    `trials`: directory names of those that are finished, the best first."""

    exit_code: int
    path: str
    message: str
    trials: tuple[str, ...] = field(default=())


def finished_before(
    config: ExperimentConfig, place: Location, done: Mapping[str, Entry]
) -> Outcome:
    """Nothing was to be done."""
    message = (
        f"{config.name} is finished: {_summary(done, config)}. Raise a value in `stop` to train on, or "
        f"use --fresh to begin again. Results: {place}"
    )
    return Outcome(0, str(place), message, tuple(done))


def finished(
    config: ExperimentConfig, place: Location, watch: RunCallback, done: Mapping[str, Entry]
) -> Outcome:
    """Every trial has ended."""
    ranked = sorted(done, key=lambda name: _rank(done[name], config), reverse=True)
    said = _without_best(done, config) + _tune_error(watch)
    if watch.tune_error is not None:
        said += " What was saved has been verified and is complete."
    message = f"{config.name} finished: {_summary(done, config)}.{said}"
    return Outcome(0, str(place), message, tuple(ranked))


def interrupted(
    interrupts: Interrupts,
    place: Location,
    watch: RunCallback,
    done: Mapping[str, Entry],
    command: str,
) -> Outcome:
    """A signal ended the run."""
    assert interrupts.received is not None
    message = (
        f"Stopped by {interrupts.received.name}; {_saved(watch, place)} Continue with: {command}"
        f"{_tune_error(watch)}"
    )
    return Outcome(interrupts.exit_code, str(place), message, tuple(done))


def failed(
    config: ExperimentConfig,
    place: Location,
    watch: RunCallback,
    done: Mapping[str, Entry],
    command: str,
) -> Outcome:
    """Some trials have not reached their end."""
    message = (
        f"{num_trials(config) - len(done)} of {num_trials(config)} trial(s) of {config.name} did "
        f"not finish:{_failures(watch)}\n{_kept(place)} When the cause is mended, continue with: {command}"
    )
    return Outcome(1, str(place), message, tuple(done))


def unreadable(
    config: ExperimentConfig, place: Location, watch: RunCallback, error: StorageError, command: str
) -> Outcome:
    """Storage does not say how the trials stand."""
    message = (
        f"{config.name} ended, and how cannot be read from storage: {error}{_failures(watch)}\nWhat was "
        f"committed is safe in {place}. When the storage answers, continue with: {command}"
    )
    return Outcome(1, str(place), message)


def _tune_error(watch: RunCallback) -> str:
    """A sentence for an error of Tune's own."""
    if watch.tune_error is None:
        return ""
    return f"\nTune ended with an error: {watch.tune_error.rstrip('.')}."


def _saved(watch: RunCallback, place: Location) -> str:
    """What became of the trials that ran when a signal came, as a sentence."""
    if not watch.unsaved:
        return f"saved in {place}." if _holds_something(place) else "there was nothing to save yet."
    lines = "".join(f"\n  {name}: {why.rstrip('.')}" for name, why in watch.unsaved.items())
    return (
        f"not everything was saved:{lines}\nWhat is lost is trained again from the newest checkpoint "
        f"in {place}, with the same result."
    )


def _failures(watch: RunCallback) -> str:
    errors = dict(watch.errors)
    if watch.tune_error is not None:
        errors["Tune"] = watch.tune_error
    return "".join(f"\n  {name}: {why}" for name, why in errors.items())


def _kept(place: Location) -> str:
    if _holds_something(place):
        return f"What was committed is safe in {place}."
    return "No checkpoint was committed yet, so it will begin again."


def _holds_something(place: Location) -> bool:
    """Whether any trial has a checkpoint to go on from."""
    entries = (entry for trial in trials(place) for entry in Catalogue(trial).entries())
    return any(entry.good is not False and entry.kind != "error" for entry in entries)


def _rank(entry: Entry, config: ExperimentConfig) -> float:
    """The score of a trial's best checkpoint, so that higher is better."""
    best = Catalogue(entry.location.parent).entry("best")
    found = score_of(entry if best is None else best, config.checkpoint)
    if found is None:
        return -math.inf
    score = found.value
    return score if config.checkpoint.score_order == "max" else -score


def _summary(done: Mapping[str, Entry], config: ExperimentConfig) -> str:
    metric = config.checkpoint.score

    def one(name: str, entry: Entry) -> str:
        found = score_of(entry, config.checkpoint)
        score = "" if found is None else f", score {found.value:g} ({metric}{found.over})"
        return f"{name} at iteration {entry.iteration}, {entry.timesteps:,} steps{score}"

    return "; ".join(one(name, entry) for name, entry in sorted(done.items()))


def _without_best(done: Mapping[str, Entry], config: ExperimentConfig) -> str:
    """What is to be said of finished trials of which no checkpoint had a score."""
    names = [
        name
        for name, entry in sorted(done.items())
        if Catalogue(entry.location.parent).entry("best") is None
    ]
    if not names:
        return ""
    which = "" if len(names) == len(done) else f" in {', '.join(names)}"
    score = config.checkpoint.score
    return f"\nThere is no best checkpoint{which}: checkpoint.score, {score!r}, never had a value."
