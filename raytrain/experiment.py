"""One experiment from start to end: what is there already, what has to be done, and how it ended.

train(config)   the directory is locked -> is it the same run? -> is it finished?
                -> how can its environments be snapshotted? -> experiment.json
                -> Ray -> Tuner (fresh, restored or built anew) -> fit -> outcome
resume(path)    the same, with the config stored in experiment.json
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytrain.action_spaces import require_served_actions
from raytrain.checkpoint import (
    LEASE_PATIENCE_S,
    STORE,
    Catalogue,
    DirectoryLock,
    Entry,
    ExperimentFile,
    ExperimentFileError,
    Location,
    Manifest,
    StorageError,
    require_key,
    trials,
)
from raytrain.checkpoint.storage import storage_errors
from raytrain.config import (
    ALGORITHM_SECTIONS,
    ExperimentConfig,
    allowed_on_continue,
    config_digest,
    config_from_dict,
    differences,
    env_creator,
    gives_up_exactness,
    has_search,
    num_trials,
)
from raytrain.errors import BadInput, RaytrainError
from raytrain.faults import InterruptedEarly, Interrupts
from raytrain.forking import Fork, begin, refuse_other_parent, require_possible
from raytrain.reporting import ConsoleReporter
from raytrain.stages import (
    may_change,
    prove_stages,
    require_same_spaces,
    start_again_after,
    warnings_of,
)
from raytrain.trainable.cadence import Progress, StopRule, score_of
from raytrain.trainable.curriculum import is_over
from raytrain.versions import versions

if TYPE_CHECKING:
    from raytrain.watch import Watch

Say = Callable[[str], None]
_LOOKERS_S = 1.0


class ConfigChanged(BadInput):
    """The config is not that of the run in the directory."""


class RunFailed(RaytrainError):
    """Trials ended with an error."""


@dataclass(frozen=True)
class Beginning:
    """Where a person wants a run to begin, if not where it is."""

    fork: Fork | None = None
    from_stage: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `exit_code`: 0 finished, 1 failed, 128 and its number: stopped by a signal after
    saving (130: SIGINT, 143: SIGTERM).
    `trials`: directory names of those that are finished, the best first."""

    exit_code: int
    path: str
    message: str
    trials: tuple[str, ...] = field(default=())


def train(
    config: ExperimentConfig,
    *,
    fresh: bool = False,
    fork: Fork | None = None,
    from_stage: str | None = None,
    address: str | None = None,
    reporter: ConsoleReporter | None = None,
    command: str = "",
) -> Outcome:
    """Start the run, continue it, or find it finished. `fork`: a checkpoint of another run to begin
    with. `from_stage`: go back to the end of this stage first. `command` is what a person would give
    to continue it (shown when it stops early).

    Raises:
        BadInput: the directory holds a run with another config; the environment cannot be made.
        Locked: another process is training in the same directory.
        StorageError: the storage cannot be read or written.
    """
    reporter = reporter or ConsoleReporter()

    def say(text: str) -> None:
        reporter.event("raytrain", "warning", text)

    with Interrupts() as interrupts:
        try:
            place = Location.of(config.storage_path) / config.name
            if fork is not None:
                require_possible(fork, config, place, fresh=fresh)
            if fresh:
                _set_aside(place, lambda text: reporter.event("raytrain", "info", text))
            STORE.listen(say)
            with _lock(place, say):
                outcome = _train(
                    config,
                    place,
                    reporter,
                    interrupts,
                    beginning=Beginning(fork, from_stage),
                    address=address,
                    command=command,
                )
        except BaseException:
            if not interrupts.early:
                raise
            said = f"Stopped before training began; nothing was lost. Continue with: {command}"
            outcome = Outcome(
                interrupts.exit_code, str(Location.of(config.storage_path) / config.name), said
            )
        finally:
            reporter.close()
    reporter.finished(outcome.message)
    return outcome


def resume(path: str | Path, **options: Any) -> Outcome:
    """Continue the experiment in the directory `path`, wherever that lies now."""
    place = Location.of(path)
    return train(stored_config(place), **options)


def stored_config(place: Location) -> ExperimentConfig:
    """The config in an experiment's directory, with the directory's present name and place."""
    found = ExperimentFile.read(place)
    if found is None:
        raise ExperimentFileError(
            f"{place} holds no experiment.json, so it is not an experiment's directory. Give the "
            "directory that `raytrain train` printed, or run `raytrain train CONFIG`."
        )
    return config_from_dict({**found.config, "name": place.name, "storage_path": str(place.parent)})


def finished_trials(config: ExperimentConfig, place: Location) -> dict[str, Entry]:
    """The trials that have ended under the config's present `stop`, by directory name, with their
    last checkpoint."""
    found = {trial.name: finished_trial(config, trial) for trial in trials(place)}
    return {name: entry for name, entry in found.items() if entry is not None}


def finished_trial(config: ExperimentConfig, trial: Location) -> Entry | None:
    """The last checkpoint of a trial that has ended under the config's present `stop`."""
    entry = Catalogue(trial).entry("final", verify=True)
    if entry is None or not entry.good or entry.manifest is None:
        return None
    return entry if has_ended(config, entry.manifest) else None


def has_ended(config: ExperimentConfig, manifest: Manifest) -> bool:
    """Whether a run that is where `manifest` says has reached its end: `stop`, or that of its last
    stage."""
    if is_over(config, manifest.metrics):
        return True
    progress = Progress(
        manifest.iteration,
        manifest.timesteps,
        manifest.episodes,
        float(manifest.metrics.get("time_total_s", 0.0)),
    )
    return StopRule.of(config.stop).reached(progress, manifest.metrics) is not None


def _train(
    config: ExperimentConfig,
    place: Location,
    reporter: ConsoleReporter,
    interrupts: Interrupts,
    *,
    beginning: Beginning,
    address: str | None,
    command: str,
) -> Outcome:
    def say(text: str) -> None:
        reporter.event("raytrain", "info", text)

    found = _read_experiment(place, say)
    if found is not None:
        require_key(found, place)
    fork, from_stage = beginning.fork, beginning.from_stage
    if fork is not None and found is not None:
        refuse_other_parent(fork, found, place, say)
    changed = _refuse_other_run(config, place, found, say, from_stage)
    if from_stage is not None:
        start_again_after(from_stage, config, place, say)
    before = finished_trials(config, place)
    if found is not None and len(before) == num_trials(config):
        return Outcome(
            0,
            str(place),
            f"{config.name} is finished: {_summary(before, config)}. Raise a value in `stop` to train on, or "
            f"use --fresh to begin again. Results: {place}",
            tuple(before),
        )
    experiment = _describe_run(config, found, say)
    if fork is not None and found is None and not trials(place):
        experiment = _forked(experiment, fork, place, say)
    # Tune's files hold each trial's values. A job's working directory is another one each time.
    moved = (*ALGORITHM_SECTIONS, "import_path")
    if from_stage or any(name.split(".")[0] in moved for name in changed):
        from raytrain.tuner import forget_tune_files

        forget_tune_files(place)
    experiment.write(place)
    watch = _run(config, place, reporter, interrupts, address=address, finished=before)
    # The end is near, and what is said of it holds; a second signal leaves at once.
    interrupts.defer()
    try:
        after = finished_trials(config, place)
    except StorageError as error:
        return Outcome(
            1,
            str(place),
            f"{config.name} ended, and how cannot be read from storage: {error}{_failures(watch)}\nWhat was "
            f"committed is safe in {place}. When the storage answers, continue with: {command}",
        )
    if interrupts.received is not None and len(after) < num_trials(config):
        stopped = f"Stopped by {interrupts.received.name}; {_saved(watch, place)}"
        return Outcome(
            interrupts.exit_code,
            str(place),
            f"{stopped} Continue with: {command}{_tune_error(watch)}",
            tuple(after),
        )
    if len(after) < num_trials(config):
        return Outcome(
            1,
            str(place),
            f"{num_trials(config) - len(after)} of {num_trials(config)} trial(s) of {config.name} did "
            f"not finish:{_failures(watch)}\n{_kept(place)} When the cause is mended, continue with: {command}",
            tuple(after),
        )
    ranked = sorted(after, key=lambda name: _rank(after[name], config), reverse=True)
    said = _without_best(after, config) + _tune_error(watch)
    message = f"{config.name} finished: {_summary(after, config)}.{said}"
    return Outcome(0, str(place), message, tuple(ranked))


def _forked(experiment: ExperimentFile, fork: Fork, place: Location, say: Say) -> ExperimentFile:
    begun = begin(fork, place)
    say(
        f"A fork of {', '.join(begun.parent[key] for key in ('experiment', 'trial', 'checkpoint'))}."
    )
    return replace(experiment, parent=begun.parent, fork=begun.fork)


def _run(
    config: ExperimentConfig,
    place: Location,
    reporter: ConsoleReporter,
    interrupts: Interrupts,
    *,
    address: str | None,
    finished: Mapping[str, Entry],
) -> Watch:
    """Train under a Ray of this program's or of `address`; if it is lost, under another one."""
    from raytrain.session import RayLost, Session  # Ray is imported when there is work for it.

    losses = 0
    while True:
        session = Session(config, address=address, interrupts=interrupts)
        try:
            with session:
                return session.run(
                    place,
                    reporter,
                    finished=finished,
                    find_finished=partial(finished_trial, config),
                )
        except RayLost as lost:
            if interrupts.received is not None:
                if session.watch is None:
                    raise InterruptedEarly from None
                session.watch.unsaved.setdefault("Ray", str(lost))
                return session.watch
            losses += 1
            finished = finished_trials(config, place)
            if 0 <= config.failure.max_failures < losses:
                raise
            reporter.event(
                "raytrain",
                "info",
                f"{lost}. Ray is started again; each trial goes on from its newest good checkpoint.",
            )


def _tune_error(watch: Watch) -> str:
    """A sentence for an error of Tune's that did no harm."""
    if watch.tune_error is None:
        return ""
    return (
        f"\nTune ended with an error: {watch.tune_error.rstrip('.')}. What was saved has been verified "
        "and is complete."
    )


def _saved(watch: Watch, place: Location) -> str:
    """What became of the trials that ran when a signal came, as a sentence."""
    if not watch.unsaved:
        return f"saved in {place}." if _holds_something(place) else "there was nothing to save yet."
    lines = "".join(f"\n  {name}: {why.rstrip('.')}" for name, why in watch.unsaved.items())
    return (
        f"not everything was saved:{lines}\nWhat is lost is trained again from the newest checkpoint "
        f"in {place}, with the same result."
    )


def _failures(watch: Watch) -> str:
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


def _read_experiment(place: Location, say: Say) -> ExperimentFile | None:
    try:
        return ExperimentFile.read(place)
    except ExperimentFileError as error:
        say(f"{error} It is written anew.")
        return None


def _refuse_other_run(
    config: ExperimentConfig,
    place: Location,
    found: ExperimentFile | None,
    say: Say,
    from_stage: str | None,
) -> list[str]:
    """Raise `ConfigChanged` unless `config` may continue what lies in the directory. Returns the
    fields that differ from those of the last start."""
    if found is None:
        _refuse_other_digest(config, place)
        return []
    changed = differences(dict(found.config), config)
    stages = next((each for each in changed if each.field == "curriculum"), None)
    why = stages and may_change(place, stages.old or [], stages.new or [], from_stage)
    wrong = [
        each
        for each in changed
        if not _may_change(each.field) and not (each.field == "curriculum" and why is None)
    ]
    if wrong:
        lines = "".join(f"\n  {d.field}: was {d.old!r}, is now {d.new!r}" for d in wrong)
        lines += f"\n  (curriculum: {why})" if why else ""
        raise ConfigChanged(
            f"{place} holds a run with another config:{lines}\nA run that continues must be the same "
            "run. Put these values back; or begin anew with --fresh, which sets the old directory "
            f"aside; or fork it, with --from {place} --name NEW: a new run that goes on from there and "
            "may change anything."
        )
    for each in changed:
        if gives_up_exactness(each.field):
            say(
                f"{each.field} changes from {each.old!r} to {each.new!r}: the run continues, but is not "
                "exact from here on; its manifests say so."
            )
    return [each.field for each in changed]


def _may_change(name: str) -> bool:
    return allowed_on_continue(name) or gives_up_exactness(name)


def _refuse_other_digest(config: ExperimentConfig, place: Location) -> None:
    if has_search(config):
        return  # Each trial has its own values; which ones is not known without experiment.json.
    for trial in trials(place):
        for entry in reversed(Catalogue(trial).entries()):
            if entry.manifest is not None and entry.manifest.config_digest != config_digest(config):
                raise ConfigChanged(
                    f"{place} has no experiment.json, and {entry.location} was written by a run with "
                    "another config. Restore the config the run began with; or begin anew with --fresh; "
                    "or start another run with --name NEW."
                )


def _describe_run(
    config: ExperimentConfig, found: ExperimentFile | None, say: Say
) -> ExperimentFile:
    """The experiment's file for this start. How the environments are snapshotted is proved once, and
    again only when a library has changed."""
    env_creator(config)  # `resume` has not looked for the environment yet.
    require_same_spaces(config)
    known = found is not None and dict(found.versions) == versions()
    if not known:
        require_served_actions(config, say)
    snapshot = prove_stages(config, found.snapshot if found is not None and known else None, say)
    if found is not None and snapshot["strategy"] != found.snapshot["strategy"]:
        # Snapshots on storage can only be read by the strategy that took them.
        say(
            f"Libraries changed; environments would now be saved by {snapshot['strategy']}, but the "
            f"run goes on with {found.snapshot['strategy']}."
        )
        snapshot = dict(found.snapshot)
    if not known and snapshot["global_random"]:
        say(
            f"The environment draws from the process's global random generators "
            f"({', '.join(snapshot['global_random'])}); they are saved with it."
        )
    if not known:
        for warning in warnings_of(snapshot):
            say(f"The environment: {warning}")
    if not snapshot["exact"]:
        say(
            "This run will NOT be exact after an interruption: the environment cannot be restored "
            f"({snapshot['reason']}). Training, checkpoints and retries work; running episodes start "
            "anew on a resume."
        )
    if found is not None and dict(found.versions) != versions():
        changed = [
            f"{name} {found.versions.get(name)} -> {version}"
            for name, version in versions().items()
            if found.versions.get(name) != version
        ]
        say(
            f"Libraries differ from those of the run's start ({', '.join(changed)}); bit-for-bit "
            "equality is promised only for the same versions."
        )
    return ExperimentFile(
        name=config.name,
        run_id=found.run_id if found else uuid.uuid4().hex,
        config=config.to_dict(),
        config_digest=config_digest(config),
        snapshot=snapshot,
        versions=dict(found.versions) if found else versions(),
        first_start=found.first_start if found else _now(),
        parent=found.parent if found else None,
        fork=found.fork if found else None,
    )


def _lock(place: Location, say: Say) -> DirectoryLock:
    if place.is_local:
        # Somebody who looks at the lock holds it for a moment.
        return DirectoryLock(place, wait=_LOOKERS_S)
    # The lease of a run that died elsewhere takes a minute to go stale.
    return DirectoryLock(place, wait=LEASE_PATIENCE_S, tell=say)


def _set_aside(place: Location, say: Say) -> None:
    with storage_errors("Setting the old directory aside", place):
        if not place.exists():
            return
        with DirectoryLock(place):
            moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
            aside = place.parent / f"{place.name}.{moment}"
            place.move_tree(aside)
    say(f"--fresh: the old directory is now {aside}.")


def _rank(entry: Entry, config: ExperimentConfig) -> float:
    """The score of a trial's best checkpoint, so that higher is better."""
    best = Catalogue(entry.location.parent).entry("best")
    score = best.score if best is not None else entry.score
    if score is None:
        return -math.inf
    return score if config.checkpoint.score_order == "max" else -score


def _summary(done: dict[str, Entry], config: ExperimentConfig) -> str:
    metric = config.checkpoint.score

    def one(name: str, entry: Entry) -> str:
        found = score_of(entry)
        score = "" if found is None else f", score {found.value:g} ({metric}{found.over})"
        return f"{name} at iteration {entry.iteration}, {entry.timesteps:,} steps{score}"

    return "; ".join(one(name, entry) for name, entry in sorted(done.items()))


def _without_best(done: dict[str, Entry], config: ExperimentConfig) -> str:
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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def command_for(verb: str, target: str | os.PathLike[str], extra: list[str]) -> str:
    """The command line that continues a run."""
    return shlex.join([*_program(), verb, str(target), *extra])


def next_steps(outcome: Outcome) -> str:
    """What a person may want to do with a finished run."""
    program = shlex.join(_program())
    trial = Location.of(outcome.path) / outcome.trials[0]
    alone = len(outcome.trials) == 1
    which = "final" if Catalogue(trial).entry("best") is None else "best"
    chosen = f"{outcome.path if alone else trial}:{which}"
    return (
        f"Results:      {outcome.path}\n"
        f"Curves:       tensorboard --logdir {shlex.quote(outcome.path)}\n"
        f"Checkpoints:  {program} checkpoints {shlex.quote(outcome.path)}\n"
        f"Play:         {program} evaluate {shlex.quote(chosen)} --episodes 20\n"
        f"In Python:    raytrain.load_policy({chosen!r}).act(observation)"
    )


def _program() -> list[str]:
    """How this program was called, so that a command can be copied from the screen."""
    called = Path(sys.argv[0])
    if called.name == "raytrain":
        return ["raytrain" if shutil.which("raytrain") == str(called) else str(called)]
    return ["python", "-m", "raytrain"]
