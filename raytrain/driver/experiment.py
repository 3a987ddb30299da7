"""One experiment from start to end: what is there already, what has to be done, and how it ended.

train(config)   the directory is locked -> is it the same run? -> is it finished?
                -> how can its environments be snapshotted? -> experiment.json
                -> Ray -> Tuner (fresh, restored or built anew) -> fit -> outcome
resume(path)    the same, with the config stored in experiment.json
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytrain.checkpoint import (
    EXPERIMENT_FILE,
    Catalogue,
    Entry,
    ExperimentFile,
    ExperimentFileError,
    Manifest,
    is_of_run,
    require_key,
    trials,
)
from raytrain.checkpoint.manifest import INCOMPLETE_NAME
from raytrain.config import (
    ALGORITHM_SECTIONS,
    ExperimentConfig,
    allowed_on_continue,
    config_digest,
    config_from_dict,
    differences,
    env_creator,
    gives_up_exactness,
    has_digest,
    num_trials,
)
from raytrain.driver.action_spaces import require_served_actions
from raytrain.driver.console import ConsoleReporter
from raytrain.driver.fork import Fork, begin, refuse_other_parent, require_possible
from raytrain.driver.outcome import (
    Outcome,
    failed,
    finished,
    finished_before,
    interrupted,
    unreadable,
)
from raytrain.driver.signals import InterruptedEarly, Interrupts
from raytrain.driver.stages import (
    may_change,
    prove_stages,
    require_same_spaces,
    start_again_after,
    warnings_of,
)
from raytrain.errors import BadInput
from raytrain.ppo.curriculum import is_over
from raytrain.ppo.stopping import Progress, StopRule
from raytrain.storage import (
    LEASE_PATIENCE_S,
    STORE,
    DirectoryLock,
    Location,
    StorageError,
    in_parallel,
)
from raytrain.storage.location import storage_errors
from raytrain.storage.lock import LOCK_NAME
from raytrain.trial.fencing import FencingToken
from raytrain.versions import versions

if TYPE_CHECKING:
    from raytrain.driver.tune_callback import RunCallback

Say = Callable[[str], None]
_LOOKERS_S = 1.0


class ConfigChanged(BadInput):
    """The config is not that of the run in the directory."""


@dataclass(frozen=True)
class Beginning:
    """Where a person wants a run to begin, if not where it is."""

    fork: Fork | None = None
    from_stage: str | None = None


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
            with _lock(place, say) as lock:
                outcome = _train(
                    config,
                    place,
                    reporter,
                    interrupts,
                    lock,
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
    try:
        found = ExperimentFile.read(trial.parent)
    except ExperimentFileError:
        found = None
    if found is not None and not is_of_run(entry.manifest, found.run_id, trial):
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
    lock: DirectoryLock,
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
        return finished_before(config, place, before)
    experiment = _describe_run(config, place, found, say)
    lock.check()  # Nobody may have begun the run meanwhile.
    if fork is not None and found is None and not trials(place):
        experiment = _forked(experiment, fork, place, say)
    # Tune's files hold each trial's values. A job's working directory is another one each time.
    moved = (*ALGORITHM_SECTIONS, "import_path")
    if from_stage or any(name.split(".")[0] in moved for name in changed):
        from raytrain.driver.tuner import forget_tune_files

        forget_tune_files(place)
    lock.check()
    experiment.write(place)
    watch = _run(config, place, reporter, interrupts, address=address, finished=before)
    # The end is near, and what is said of it holds; a second signal leaves at once.
    interrupts.defer()
    try:
        after = finished_trials(config, place)
    except StorageError as error:
        return unreadable(config, place, watch, error, command)
    if len(after) == num_trials(config):
        return finished(config, place, watch, after)
    if interrupts.received is not None:
        return interrupted(interrupts, place, watch, after, command)
    return failed(config, place, watch, after, command)


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
) -> RunCallback:
    """Train under a Ray of this program's or of `address`; if it is lost, under another one."""
    from raytrain.driver.ray_session import (  # Ray is imported when there is work for it.
        RayLost,
        RaySession,
    )

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
            reporter.event(
                "raytrain",
                "info",
                f"{lost}. Ray is started again; each trial goes on from its newest good checkpoint.",
            )


def _read_experiment(place: Location, say: Say) -> ExperimentFile | None:
    try:
        return ExperimentFile.read(place)
    except ExperimentFileError as error:
        if not error.is_damage and not any(
            entry.good is not False
            for trial in trials(place)
            for entry in Catalogue(trial).entries()
        ):  # No checkpoint is good for this process either: the process is wrong, and not the file.
            raise
        aside = place.first_free(f"experiment.damaged.{number}.json" for number in count(1))
        with storage_errors("Keeping the damaged experiment.json", place):
            (place / EXPERIMENT_FILE).duplicate(aside)
        say(f"{error} It is written anew, and what was there is kept as {aside.name}.")
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
    """Of the checkpoints only the newest counts: what may change changed after others were written."""
    if config.search:
        return  # Each trial has its own values; which ones is not known without experiment.json.
    for trial in trials(place):
        entries = Catalogue(trial).entries()
        usable = [e for e in entries if e.good is not False and e.kind != "error"]
        for entry in usable[-1:]:
            if entry.manifest is not None and not has_digest(config, entry.manifest.config_digest):
                raise ConfigChanged(
                    f"{place} has no experiment.json, and {entry.location} was written by a run with "
                    "another config. Restore the config that the run had last; or begin anew with "
                    "--fresh; or start another run with --name NEW."
                )


def _describe_run(
    config: ExperimentConfig, place: Location, found: ExperimentFile | None, say: Say
) -> ExperimentFile:
    """The experiment's file for this start. How the environments are snapshotted is proved once, and
    again only when a library has changed."""
    env_creator(config)  # `resume` has not looked for the environment yet.
    require_same_spaces(config)
    known = found is not None and dict(found.versions) == versions()
    snapshot = prove_stages(config, found.snapshot if found is not None and known else None, say)
    if not known:
        require_served_actions(config, say)
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
        run_id=found.run_id if found else _run_id_of_checkpoints(place) or uuid.uuid4().hex,
        config=config.to_dict(),
        config_digest=config_digest(config),
        snapshot=snapshot,
        versions=dict(found.versions) if found else versions(),
        first_start=found.first_start if found else _now(),
        parent=found.parent if found else None,
        fork=found.fork if found else None,
    )


def _run_id_of_checkpoints(place: Location) -> str | None:
    """Which run most of the checkpoints are of, where experiment.json was lost."""
    entries = [entry for trial in trials(place) for entry in Catalogue(trial).entries()]
    ids = Counter(entry.manifest.run_id for entry in entries if entry.manifest is not None)
    return ids.most_common(1)[0][0] if ids else None


def _lock(place: Location, say: Say) -> DirectoryLock:
    # On a local disk somebody who looks at the lock holds it for a moment.
    wait = _LOOKERS_S if place.is_local else LEASE_PATIENCE_S
    return DirectoryLock(place, wait=wait, tell=say)


def _set_aside(place: Location, say: Say) -> None:
    with storage_errors("Setting the old directory aside", place):
        if not place.exists():
            return
        with DirectoryLock(place, tell=say):
            moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
            aside = place.parent / f"{place.name}.{moment}"
            attempts = {trial: FencingToken.last_of(trial) for trial in trials(place)}
            if place.is_local:
                place.move_tree(aside)
                _count_on(attempts)
            else:  # Whatever is left of it after a kill is whole.
                checkpoints = [each for trial in attempts for each in Catalogue(trial).entries()]
                names = place.files()
                _count_on(attempts)
                place.copy_tree(aside)
                (aside / LOCK_NAME).delete_file()
                for entry in checkpoints:
                    entry.remove()
                _clear(place, names)
    say(f"--fresh: the old directory is now {aside}.")


def _count_on(attempts: Mapping[Location, int]) -> None:
    """Let a process of the old run that lives on somewhere find that it was replaced."""
    for trial, last in attempts.items():
        FencingToken.count_on(trial, last)


def _clear(place: Location, names: Iterable[str]) -> None:
    """Delete these files, which lie on a store, but for the markers of checkpoints that were never complete: a
    file of one may still come. What has come since they were listed stays."""
    doomed = [name for name in names if not name.endswith(f"/{INCOMPLETE_NAME}")]
    in_parallel(lambda name: (place / name).delete_file(), doomed)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
