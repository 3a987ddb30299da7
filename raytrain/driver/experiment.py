"""One experiment from start to end: what exists already, what has to be done, and how it ended.

train(config)   the directory is locked -> is it the same run? -> is it finished?
                -> how can its environments be snapshotted? -> experiment.json
                -> Ray -> Tuner (fresh, restored or built anew) -> fit -> outcome
resume(path)    the same, with the config stored in experiment.json
fork(checkpoint, name=...)   another run, with the config of the checkpoint's
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    resolve,
    trials,
)
from raytrain.checkpoint.experiment_file import EXPERIMENT_FILE, require_key
from raytrain.checkpoint.lineage import experiment_around, trial_of
from raytrain.config import (
    ALGORITHM_SECTIONS,
    ExperimentConfig,
    config_digest,
    env_creator,
    num_trials,
    stored_config,
)
from raytrain.config.own_code import require_own_code
from raytrain.config.run_code import named
from raytrain.driver.arithmetic import settings_for
from raytrain.driver.changed_code import PresentCode, newest_manifests
from raytrain.driver.console import ConsoleReporter
from raytrain.driver.fork import Fork, begin, refuse_other_parent, require_possible
from raytrain.driver.outcome import (
    Outcome,
    finished_before,
    finished_trials,
    outcome_of,
)
from raytrain.driver.own_code import OWN_CODE, with_own_code
from raytrain.driver.same_run import require_same_run
from raytrain.driver.signals import InterruptedEarly, Interrupts
from raytrain.driver.spaces import Say, require_actions
from raytrain.driver.stages import (
    prove_stages,
    require_same_spaces,
    start_again_after,
    warnings_of,
)
from raytrain.errors import BadInput
from raytrain.storage import (
    LEASE_PATIENCE_S,
    READER_S,
    STORE,
    DirectoryLock,
    Location,
    storage_errors,
)
from raytrain.trial.changed_code import changes_since
from raytrain.trial.fresh_directory import set_directory_aside
from raytrain.versions import changed_versions, versions

if TYPE_CHECKING:
    from raytrain.driver.tune_callback import RunCallback


def train(
    config: ExperimentConfig,
    *,
    fresh: bool = False,
    fork: Fork | None = None,
    from_stage: str | None = None,
    address: str | None = None,
    reporter: ConsoleReporter | None = None,
    command: str = "",
    callbacks: Sequence[Any] = (),
    write_code: Callable[[], None] | None = None,
) -> Outcome:
    """Start the run, continue it, or find it finished. `fork`: a checkpoint of another run to begin
    with. `from_stage`: go back to the end of this stage first. `command`: the command line that
    continues the run, shown when it stops early. `callbacks`: Tune's, beside raytrain's own.
    `write_code`: writes modules into the run's directory, once it is known that it is this run's.

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
            wait = READER_S if place.is_local else LEASE_PATIENCE_S
            with DirectoryLock(place, wait=wait, tell=warn) as lock:
                run = _Run(
                    config,
                    place,
                    reporter,
                    interrupts,
                    address,
                    command,
                    tuple(callbacks),
                    write_code,
                )
                outcome = run.outcome(lock, fork, from_stage)
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


def resume(path: str | Path, *, overrides: Sequence[str] = (), **options: Any) -> Outcome:
    """Continue the experiment in the directory `path`, which may have been moved. `overrides`:
    `KEY=VALUE` in place of what its config says."""
    return train(_stored(Location.of(path), overrides), **options)


def fork(
    checkpoint: str,
    *,
    name: str,
    overrides: Sequence[str] = (),
    weights_only: bool = False,
    **options: Any,
) -> Outcome:
    """Begin a run at a checkpoint, with the config of the checkpoint's experiment, beside it.

    Raises:
        BadInput: there is no such checkpoint, or it is in no experiment.
    """
    entry = resolve(checkpoint)
    parent = trial_of(entry).parent
    if experiment_around(entry) is None:
        raise BadInput(
            f"{checkpoint} is not in an experiment (no {EXPERIMENT_FILE} above it), so there is no "
            "config to begin with. Use `raytrain train CONFIG --from CHECKPOINT --name NEW`."
        )
    config = _stored(parent, overrides, name)
    return train(config, fork=Fork(checkpoint, weights_only), **options)


def _stored(place: Location, overrides: Sequence[str], name: str | None = None) -> ExperimentConfig:
    config = ExperimentFile.existing(place).config
    moved = {"name": name or place.name, "storage_path": str(place.parent)}
    return stored_config({**config, **moved}, overrides)


@dataclass(frozen=True)
class _Run:
    """A run in its locked directory."""

    config: ExperimentConfig
    place: Location
    reporter: ConsoleReporter
    interrupts: Interrupts
    address: str | None
    command: str
    callbacks: Sequence[Any] = ()
    write_code: Callable[[], None] | None = None

    def outcome(self, lock: DirectoryLock, fork: Fork | None, from_stage: str | None) -> Outcome:
        """Train what is not finished yet."""
        config, place, say = self.config, self.place, self.reporter.note
        stored = _read_experiment(place, say)
        if stored is not None:
            require_key(stored, place)
        if fork is not None and stored is not None:
            refuse_other_parent(fork, stored, place, say)
        changed = require_same_run(config, place, stored, say, from_stage)
        if from_stage is not None:
            start_again_after(from_stage, config, place, say)
        if self.write_code is not None:
            self.write_code()
        finished = finished_trials(config, place)
        if stored is not None and len(finished) == num_trials(config):
            return finished_before(config, place, finished)
        experiment = _describe_run(config, place, stored, say)
        lock.check()  # Another process may have started the run meanwhile.
        if fork is not None and stored is None and not trials(place):
            origin: dict[str, Any] = begin(fork, place)
            say("A fork of {experiment}, {trial}, {checkpoint}.".format(**origin["parent"]))
            experiment = replace(experiment, **origin)
        # Tune's files hold each trial's values; a job's working directory is another one each time.
        in_tune_files = (*ALGORITHM_SECTIONS, "import_path")
        if from_stage or any(name.split(".")[0] in in_tune_files for name in changed):
            from raytrain.driver.tuner import read_tune_files, set_aside

            set_aside(place, read_tune_files(place).names)
        lock.check()
        experiment.write(place)
        watch = self._train(finished, experiment)
        # From here the outcome is only reported; a second signal exits at once.
        self.interrupts.defer()
        return outcome_of(config, place, watch, self.interrupts, self.command)

    def _train(self, finished: Mapping[str, Entry], experiment: ExperimentFile) -> RunCallback:
        """Train with a Ray of this program's or of `address`; if it is lost, with a new one."""
        # Ray is imported when there is work for it.
        from raytrain.driver.ray_session import RayLost, RaySession

        losses, settings = 0, settings_for(self.config, experiment)
        while True:
            session = RaySession(
                self.config,
                variables=settings.variables(),
                address=self.address,
                interrupts=self.interrupts,
            )
            try:
                with session:
                    return session.run(self.place, self.reporter, finished, self.callbacks)
            except RayLost as lost:
                if self.interrupts.received is not None:
                    if session.watch is None:
                        raise InterruptedEarly from None
                    session.watch.unsaved.setdefault("Ray", str(lost))
                    return session.watch
                losses += 1
                finished = finished_trials(self.config, self.place)
                if 0 <= self.config.failure.max_failures < losses:
                    raise
                self.reporter.note(
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
    and again only when the version of a library, or the code of the environment, has changed."""
    env_creator(config)  # `resume` has not looked for the environment yet.
    require_own_code(config)
    require_same_spaces(config)
    trained = newest_manifests(place)
    present = PresentCode(config, stored, trained, say)
    proved = stored
    if stored is not None and (present.changed or changed_versions(stored.versions)):
        proved = None
    known_proof = proved.snapshot if proved is not None else None
    settings = settings_for(config, stored)
    snapshot = prove_stages(config, known_proof, say, settings.hash_seed)
    snapshot = with_own_code(config, snapshot, say, settings.hash_seed)
    code = present.code
    if stored is None or snapshot != stored.snapshot:
        code = present.after_trial(snapshot)
    if trained and stored is not None and snapshot["strategy"] != stored.snapshot["strategy"]:
        # Snapshots on storage can only be read by the strategy that took them.
        say(
            f"Libraries or code changed; environments would now be saved by "
            f"{snapshot['strategy']}, but the run continues with {stored.snapshot['strategy']}."
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
    if not snapshot["exact"] and not snapshot.get(OWN_CODE, {}).get("exact", True):
        say(f"This run will NOT be exact after an interruption: {snapshot['reason']}.")
    elif not snapshot["exact"]:
        say(
            "This run will NOT be exact after an interruption: the environment cannot be restored "
            f"({snapshot['reason']}). Training, checkpoints and retries work; running episodes are "
            "started again on a resume."
        )
    changes = [change for manifest in trained for change in changes_since(manifest, code)]
    if changes:
        say(
            f"{named(list(dict.fromkeys(changes)))} since the run was last trained: it continues, "
            "but is not exact from here on; its manifests say so."
        )
    values: dict[str, Any] = {
        "name": config.name,
        "config": config.to_dict(),
        "config_digest": config_digest(config),
        "snapshot": snapshot,
        "versions": versions(),
        "code": code.to_dict(),
    }
    known = {} if stored is None else stored.arithmetic or {}
    values["arithmetic"] = {**known, "settings": settings.to_dict()}
    if stored is not None:
        return replace(stored, **values)
    return ExperimentFile(
        **values,
        run_id=_run_id_of_checkpoints(place) or uuid.uuid4().hex,
        first_start=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _run_id_of_checkpoints(place: Location) -> str | None:
    """The run of most checkpoints, where experiment.json was lost."""
    entries = [entry for trial in trials(place) for entry in Catalogue(trial).entries()]
    ids = Counter(entry.manifest.run_id for entry in entries if entry.manifest is not None)
    return ids.most_common(1)[0][0] if ids else None
