"""One experiment from start to end: what exists already, what has to be done, and how it ended.

train(config)   the directory is locked -> is it the same run? -> is it finished?
                -> how can its environments be snapshotted? -> experiment.json
                -> Ray -> Tuner (fresh, restored or built anew) -> fit -> outcome
resume(path)    the same, with the config stored in experiment.json
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytrain.checkpoint import (
    Catalogue,
    Entry,
    ExperimentFile,
    ExperimentFileError,
    Manifest,
    is_of_run,
    trials,
)
from raytrain.checkpoint.experiment_file import EXPERIMENT_FILE, require_key
from raytrain.config import (
    ALGORITHM_SECTIONS,
    ExperimentConfig,
    config_digest,
    config_from_dict,
    env_creator,
    num_trials,
)
from raytrain.driver.console import ConsoleReporter
from raytrain.driver.fork import Fork, begin, refuse_other_parent, require_possible
from raytrain.driver.outcome import Outcome, finished_before, outcome_of, unreadable
from raytrain.driver.same_run import require_same_run
from raytrain.driver.signals import InterruptedEarly, Interrupts
from raytrain.driver.spaces import require_actions
from raytrain.driver.stages import (
    prove_stages,
    require_same_spaces,
    start_again_after,
    warnings_of,
)
from raytrain.ppo.curriculum import is_over
from raytrain.ppo.stopping import Progress, StopRule
from raytrain.storage import (
    LEASE_PATIENCE_S,
    STORE,
    DirectoryLock,
    Location,
    StorageError,
    storage_errors,
)
from raytrain.trial.fresh_directory import set_directory_aside
from raytrain.versions import versions

if TYPE_CHECKING:
    from raytrain.driver.tune_callback import RunCallback

Say = Callable[[str], None]
_READER_S = 1.0  # On a local disk a command that only reads may hold the lock for a moment.


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
    with. `from_stage`: go back to the end of this stage first. `command`: the command line that
    continues the run, shown when it stops early.

    Raises:
        BadInput: the directory holds a run with another config; the environment cannot be made.
        Locked: another process is training in the same directory.
        StorageError: the storage cannot be read or written.
    """
    reporter = reporter or ConsoleReporter()
    warn = partial(reporter.note, level="warning")
    with Interrupts() as interrupts:
        try:
            place = Location.of(config.storage_path) / config.name
            if fork is not None:
                require_possible(fork, config, place, fresh=fresh)
            if fresh:
                set_directory_aside(place, reporter.note)
            STORE.listen(warn)
            wait = _READER_S if place.is_local else LEASE_PATIENCE_S
            with DirectoryLock(place, wait=wait, tell=warn) as lock:
                outcome = _train(
                    config,
                    place,
                    reporter,
                    interrupts,
                    lock,
                    fork=fork,
                    from_stage=from_stage,
                    address=address,
                    command=command,
                )
        except BaseException:
            if not interrupts.early:
                raise
            message = f"Stopped before training began; nothing was lost. Continue with: {command}"
            path = str(Location.of(config.storage_path) / config.name)
            outcome = Outcome(interrupts.exit_code, path, message)
        finally:
            reporter.close()
    reporter.finished(outcome.message)
    return outcome


def resume(path: str | Path, **options: Any) -> Outcome:
    """Continue the experiment in the directory `path`, which may have been moved."""
    place = Location.of(path)
    experiment = ExperimentFile.read(place)
    if experiment is None:
        raise ExperimentFileError(
            f"{place} holds no experiment.json, so it is not an experiment's directory. Give the "
            "directory that `raytrain train` printed, or run `raytrain train CONFIG`."
        )
    moved = {"name": place.name, "storage_path": str(place.parent)}
    return train(config_from_dict({**experiment.config, **moved}), **options)


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
    try:
        experiment = ExperimentFile.read(trial.parent)
    except ExperimentFileError:
        experiment = None
    if experiment is not None and not is_of_run(entry.manifest, experiment.run_id, trial):
        return None
    return entry if has_ended(config, entry.manifest) else None


def has_ended(config: ExperimentConfig, manifest: Manifest) -> bool:
    """Whether the checkpoint of `manifest` is at the end of the run (`stop`, or the last stage)."""
    if is_over(config, manifest.metrics):
        return True
    rule = StopRule.of(config.stop)
    return rule.reached(Progress.of(manifest), manifest.metrics) is not None


def _train(
    config: ExperimentConfig,
    place: Location,
    reporter: ConsoleReporter,
    interrupts: Interrupts,
    lock: DirectoryLock,
    *,
    fork: Fork | None,
    from_stage: str | None,
    address: str | None,
    command: str,
) -> Outcome:
    say = reporter.note
    stored = _read_experiment(place, say)
    if stored is not None:
        require_key(stored, place)
    if fork is not None and stored is not None:
        refuse_other_parent(fork, stored, place, say)
    changed = require_same_run(config, place, stored, say, from_stage)
    if from_stage is not None:
        start_again_after(from_stage, config, place, say)
    before = finished_trials(config, place)
    if stored is not None and len(before) == num_trials(config):
        return finished_before(config, place, before)
    experiment = _describe_run(config, place, stored, say)
    lock.check()  # Another process may have started the run meanwhile.
    if fork is not None and stored is None and not trials(place):
        origin: dict[str, Any] = begin(fork, place)
        say("A fork of {experiment}, {trial}, {checkpoint}.".format(**origin["parent"]))
        experiment = replace(experiment, **origin)
    # Tune's files hold each trial's values; a job's working directory is another one each time.
    in_tune_files = (*ALGORITHM_SECTIONS, "import_path")
    if from_stage or any(name.split(".")[0] in in_tune_files for name in changed):
        from raytrain.driver.tuner import forget_tune_files

        forget_tune_files(place)
    lock.check()
    experiment.write(place)
    watch = _run(config, place, reporter, interrupts, address=address, finished=before)
    # From here the outcome is only reported; a second signal exits at once.
    interrupts.defer()
    try:
        after = finished_trials(config, place)
    except StorageError as error:
        return unreadable(config, place, watch, error, command)
    return outcome_of(config, place, watch, interrupts, done=after, command=command)


def _run(
    config: ExperimentConfig,
    place: Location,
    reporter: ConsoleReporter,
    interrupts: Interrupts,
    *,
    address: str | None,
    finished: Mapping[str, Entry],
) -> RunCallback:
    """Train with a Ray of this program's or of `address`; if it is lost, with a new one."""
    # Ray is imported when there is work for it.
    from raytrain.driver.ray_session import RayLost, RaySession

    losses = 0
    while True:
        session = RaySession(config, address=address, interrupts=interrupts)
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
            reporter.note(
                f"{lost}. Ray is started again; each trial continues from its newest good "
                "checkpoint."
            )


def _read_experiment(place: Location, say: Say) -> ExperimentFile | None:
    try:
        return ExperimentFile.read(place)
    except ExperimentFileError as error:
        entries = (entry for trial in trials(place) for entry in Catalogue(trial).entries())
        if not error.is_damage and all(entry.good is False for entry in entries):
            raise  # No checkpoint is good for this process either: the file may well be whole.
        aside = place.first_free(f"experiment.damaged.{number}.json" for number in count(1))
        with storage_errors("Keeping the damaged experiment.json", place):
            (place / EXPERIMENT_FILE).duplicate(aside)
        say(f"{error} A new one is written; the old one is kept as {aside.name}.")
        return None


def _describe_run(
    config: ExperimentConfig, place: Location, stored: ExperimentFile | None, say: Say
) -> ExperimentFile:
    """The experiment's file for this start. How the environments are snapshotted is proved once,
    and again only when the version of a library has changed."""
    env_creator(config)  # `resume` has not looked for the environment yet.
    require_same_spaces(config)
    present = versions()
    proved = stored if stored is not None and dict(stored.versions) == present else None
    snapshot = prove_stages(config, proved.snapshot if proved is not None else None, say)
    if stored is not None and snapshot["strategy"] != stored.snapshot["strategy"]:
        # Snapshots on storage can only be read by the strategy that took them.
        say(
            f"Libraries changed; environments would now be saved by {snapshot['strategy']}, but "
            f"the run continues with {stored.snapshot['strategy']}."
        )
        snapshot = dict(stored.snapshot)
    if proved is None:
        require_actions(config, say)
        if snapshot["global_random"]:
            say(
                "The environment draws from the process's global random generators "
                f"({', '.join(snapshot['global_random'])}); they are saved with it."
            )
        for warning in warnings_of(snapshot):
            say(f"The environment: {warning}")
    if not snapshot["exact"]:
        say(
            "This run will NOT be exact after an interruption: the environment cannot be restored "
            f"({snapshot['reason']}). Training, checkpoints and retries work; running episodes are "
            "started again on a resume."
        )
    if stored is not None and proved is None:
        changed = ", ".join(
            f"{name} {stored.versions.get(name)} -> {version}"
            for name, version in present.items()
            if stored.versions.get(name) != version
        )
        say(
            f"Libraries differ from those of the run's start ({changed}); results are equal bit "
            "for bit only with the same versions."
        )
    values: dict[str, Any] = {
        "name": config.name,
        "config": config.to_dict(),
        "config_digest": config_digest(config),
        "snapshot": snapshot,
    }
    if stored is not None:
        return replace(stored, **values)
    return ExperimentFile(
        **values,
        run_id=_run_id_of_checkpoints(place) or uuid.uuid4().hex,
        versions=present,
        first_start=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _run_id_of_checkpoints(place: Location) -> str | None:
    """The run of most checkpoints, where experiment.json was lost."""
    entries = [entry for trial in trials(place) for entry in Catalogue(trial).entries()]
    ids = Counter(entry.manifest.run_id for entry in entries if entry.manifest is not None)
    return ids.most_common(1)[0][0] if ids else None
