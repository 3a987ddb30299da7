"""`raytrain show` and `raytrain list`: the state of experiments, read from storage.

    view(place)      one experiment: its trials with progress, failures and checkpoints
    views(storage)   all experiments directly in a directory, the one that changed last first

Nothing is locked, written or unpickled, so the run may be running. Checkpoints are checked by names
and sizes; `raytrain verify` reads every byte.

States of a trial:

    running       a process holds the trial's lock
    finished      `final` exists and fulfils the present `stop`
    failed        the trial ended with an error
    interrupted   stopped by a signal, after saving
    stopped       killed, or not continued yet
    empty         nothing was trained yet
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from raytrain.checkpoint import Catalogue, Entry, ExperimentFile, trials
from raytrain.checkpoint.lineage import ancestors
from raytrain.checkpoint.resolve import is_trial, require_directory
from raytrain.cluster.restart_counts import RestartCounts
from raytrain.commands.next_commands import Commands
from raytrain.config import ExperimentConfig, config_from_dict, total_timesteps
from raytrain.driver.outcome import has_ended
from raytrain.errors import BadInput
from raytrain.records import EVENT_LOG, read_events
from raytrain.records.downtime import RECOVERED
from raytrain.records.metrics import Averaged, metric
from raytrain.records.row_files import last_row
from raytrain.storage import Location, in_parallel, who_writes
from raytrain.storage.location import storage_errors
from raytrain.trial.score import reported_score, score_of


@dataclass(frozen=True)
class CheckpointView:
    """One checkpoint. `path` is relative to the trial; `good` is False for a damaged checkpoint
    (see `problem`), None if names and sizes are right. `resume` is the command to continue."""

    path: str
    kind: str
    iteration: int
    timesteps: int | None
    stage: str | None
    score: float | None
    size_bytes: int
    good: bool | None
    problem: str | None
    created_at: str | None
    weights_sha256: str | None
    resume: str | None


@dataclass(frozen=True)
class TrialView:
    """One trial.

    `progress` is the fraction of `stop` that is done, None if unknown; `..._score_episodes` is the
    number of episodes that a score is averaged over, None if unknown. `failures_survived` counts
    starts after a process that ended without saving; lost nodes and preemptions do not count
    against `failure.max_failures`. `exact_lost` has `why` and `since_iteration`.
    `redone_s` and `away_s` are the seconds that were trained again and the seconds without training
    (see `downtime`).
    """

    trial: str
    state: str
    iteration: int
    timesteps: int
    episodes: int | None
    progress: float | None
    stage: str | None
    stage_number: int | None
    stages: int | None
    last_score: float | None
    last_score_episodes: int | None
    best_score: float | None
    best_score_episodes: int | None
    exact: bool | None
    exact_lost: Mapping[str, Any] | None
    failures_survived: int
    lost_nodes: int
    preemptions: int
    relocations: int
    redone_s: float
    away_s: float
    last_error: str | None
    changed_at: str | None
    checkpoints: tuple[CheckpointView, ...]

    @property
    def size_bytes(self) -> int:
        return sum(checkpoint.size_bytes for checkpoint in self.checkpoints)


@dataclass(frozen=True)
class ExperimentView:
    """One experiment. `size_bytes`: of the checkpoints; `writer`: the process that trains.
    `code`: the users' code and the packages of its last start, None for one of an earlier version.
    `ancestors`: the generations of a fork, its parent first (see `checkpoint.lineage`). `config`:
    that of the last start, as it is in experiment.json.
    """

    path: str
    name: str
    run_id: str
    state: str
    writer: str | None
    first_start: str
    changed_at: str
    score: str
    score_order: str
    parent: Mapping[str, str] | None
    ancestors: tuple[Mapping[str, Any], ...]
    config: Mapping[str, Any]
    config_digest: str
    code: Mapping[str, Any] | None
    size_bytes: int
    resume: str
    trials: tuple[TrialView, ...]

    @property
    def best_score(self) -> float | None:
        scores = [trial.best_score for trial in self.trials if trial.best_score is not None]
        return (min if self.score_order == "min" else max)(scores, default=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values, except for numbers that are not finite."""
        return asdict(self)

    def summary(self) -> dict[str, Any]:
        """A row of `raytrain list --json`."""
        done = [trial.progress for trial in self.trials if trial.progress is not None]
        return {
            **{key: getattr(self, key) for key in _SUMMARY},
            "trials": len(self.trials),
            "finished": sum(trial.state == "finished" for trial in self.trials),
            "timesteps": sum(trial.timesteps for trial in self.trials),
            "progress": sum(done) / len(self.trials) if done else None,
            "best_score": self.best_score,
            "failures_survived": sum(trial.failures_survived for trial in self.trials),
        }


_SUMMARY = ("path", "name", "state", "first_start", "changed_at", "size_bytes", "resume")
_NEEDED = ("environment", "stop", "checkpoint", "curriculum")


def view(argument: str | Location) -> ExperimentView:
    """The experiment in a directory, or around a trial's directory.

    Raises:
        BadInput: there is no experiment, or its experiment.json is damaged.
        StorageError: the storage cannot be read.
    """
    place = Location.of(argument)
    with storage_errors("Reading the experiment", place):
        require_directory(place)
        if is_trial(place) and ExperimentFile.read(place) is None:
            place = place.parent
        places = trials(place)
    experiment = ExperimentFile.existing(place)
    config = _sections(experiment)
    commands = Commands(str(place), place.name, alone=len(places) <= 1)
    views = in_parallel(lambda t: _trial(t, config, commands), places, serial=place.is_local)
    writer = who_writes(place)
    changed = [trial.changed_at for trial in views if trial.changed_at is not None]
    return ExperimentView(
        path=str(place),
        name=place.name,
        run_id=experiment.run_id,
        state=_overall([trial.state for trial in views], writer),
        writer=writer,
        first_start=experiment.first_start,
        changed_at=max([experiment.first_start, *changed]),
        score=config.checkpoint.score,
        score_order=config.checkpoint.score_order,
        parent=experiment.parent,
        ancestors=tuple(ancestors(experiment)),
        config=experiment.config,
        config_digest=experiment.config_digest,
        code=experiment.code,
        size_bytes=sum(trial.size_bytes for trial in views),
        resume=commands.resume,
        trials=tuple(views),
    )


def views(
    storage: str, track: Callable[[Iterable[Location]], Iterable[Location]] = iter
) -> tuple[list[ExperimentView], list[str]]:
    """All experiments in a directory, the one that changed last first; and a message for each that
    cannot be read. `track` passes the directories on and may show how many are done.

    Raises:
        BadInput: there is no such directory.
    """
    place = Location.of(storage)
    with storage_errors("Listing the experiments", place):
        if not place.is_dir():
            raise BadInput(
                f"There is no directory {place}. Give the `storage_path` of your runs: the "
                "directory that contains the experiments' directories."
            )
        below = [place / name for name in place.subdirectories() if not name.startswith(".")]
    experiments, problems = [], []
    for directory in track(below):
        try:
            if ExperimentFile.read(directory) is not None:
                experiments.append(view(directory))
        except BadInput as error:
            problems.append(str(error))
    experiments.sort(key=lambda experiment: experiment.changed_at, reverse=True)
    return experiments, problems


def _sections(experiment: ExperimentFile) -> ExperimentConfig:
    """The sections that are needed here: other sections may have keys of another version."""
    kept = {key: experiment.config[key] for key in _NEEDED if key in experiment.config}
    return config_from_dict({**kept, "name": experiment.name})


def _overall(states: list[str], writer: str | None) -> str:
    if writer is not None:
        return "running"
    for state in ("failed", "stopped", "interrupted", "empty"):
        if state in states:
            return state
    return "finished" if states else "empty"


def _trial(trial: Location, config: ExperimentConfig, commands: Commands) -> TrialView:
    entries = Catalogue(trial).entries()
    with storage_errors("Reading the trial's records", trial):
        events = read_events(trial / EVENT_LOG)
        row = last_row(trial / "result.json") or {}
    usable = [entry for entry in entries if entry.good is not False and entry.kind != "error"]
    newest = max(usable, key=lambda entry: entry.iteration, default=None)
    best = next((entry for entry in entries if entry.path == "best"), None)
    recovered = [event for event in events if event.kind == RECOVERED]
    reached = iteration, timesteps, episodes = _reached(row, newest)
    manifest = None if newest is None else newest.manifest
    number, stages = (manifest and manifest.stage_number) or (None, None)
    counts = RestartCounts(trial)
    state = _state(trial, config, entries, row, counts)
    # The score of the last iteration; without one (no evaluation), that of the newest checkpoint.
    last_score = reported_score(row) or _score_of(newest, config)
    best_score = _score_of(best, config)
    return TrialView(
        trial=trial.name,
        state=state,
        iteration=iteration,
        timesteps=timesteps,
        episodes=episodes,
        progress=1.0 if state == "finished" else _progress(config, reached, row),
        stage=manifest.stage if manifest else None,
        stage_number=number,
        stages=stages,
        last_score=last_score.value if last_score else None,
        last_score_episodes=last_score.episodes if last_score else None,
        best_score=best_score.value if best_score else None,
        best_score_episodes=best_score.episodes if best_score else None,
        exact=manifest.exact if manifest else None,
        exact_lost=asdict(manifest.exact_lost) if manifest and manifest.exact_lost else None,
        failures_survived=len(recovered),
        lost_nodes=counts.counts["lost_node"],
        preemptions=counts.counts["preemption"],
        relocations=counts.counts["relocation"],
        redone_s=sum(event.redone_s or 0.0 for event in recovered),
        away_s=sum(event.away_s or 0.0 for event in recovered),
        last_error=counts.ended_with,
        changed_at=_changed_at(entries, row),
        checkpoints=tuple(_checkpoint(entry, newest, trial, config, commands) for entry in entries),
    )


def _score_of(entry: Entry | None, config: ExperimentConfig) -> Averaged | None:
    return None if entry is None else score_of(entry, config.checkpoint)


def _checkpoint(
    entry: Entry,
    newest: Entry | None,
    trial: Location,
    config: ExperimentConfig,
    commands: Commands,
) -> CheckpointView:
    manifest, score = entry.manifest, _score_of(entry, config)
    return CheckpointView(
        path=entry.path,
        kind=entry.kind,
        iteration=entry.iteration,
        timesteps=entry.timesteps,
        stage=manifest.stage if manifest else None,
        score=score.value if score else None,
        size_bytes=entry.size_bytes,
        good=entry.good,
        problem=entry.problem,
        created_at=manifest.created_at if manifest else None,
        weights_sha256=entry.weights_sha256,
        # Checkpoints of one iteration hold the same state: `best` may be as new as `final`.
        resume=commands.for_checkpoint(
            entry, trial, is_newest=newest is not None and entry.iteration == newest.iteration
        ),
    )


Reached = tuple[int, int, int | None]
"""Iteration, timesteps and episodes; None: unknown."""


def _reached(row: Mapping[str, Any], newest: Entry | None) -> Reached:
    """The latest counters that were recorded or saved."""
    trained = int(row.get("training_iteration", 0))
    if newest is not None and newest.manifest is not None and newest.iteration >= trained:
        return newest.iteration, newest.manifest.timesteps, newest.manifest.episodes
    if not row:
        return 0, 0, 0
    steps = metric(row, "num_env_steps_sampled_lifetime") or 0.0
    episodes = metric(row, "num_episodes_lifetime")
    return trained, int(steps), None if episodes is None else int(episodes)


def _progress(config: ExperimentConfig, reached: Reached, row: Mapping[str, Any]) -> float | None:
    """The fraction of the criterion of `stop` (or of the stages' timesteps) that is nearest to its
    end. Returns and metrics have no fraction."""
    stop = config.stop
    done = (*reached, float(row.get("time_total_s", 0.0)))
    limits = (stop.iterations, total_timesteps(config), stop.episodes, stop.time_s)
    shares = [
        part / limit for part, limit in zip(done, limits, strict=True) if part is not None and limit
    ]
    return min(1.0, max(shares)) if shares else None


def _state(
    trial: Location,
    config: ExperimentConfig,
    entries: list[Entry],
    row: Mapping[str, Any],
    counts: RestartCounts,
) -> str:
    if who_writes(trial) is not None:
        return "running"
    usable = [entry for entry in entries if entry.good is None and entry.kind != "error"]
    final = [entry.manifest for entry in entries if entry.path == "final" and entry.good is None]
    if any(manifest is not None and has_ended(config, manifest) for manifest in final):
        return "finished"
    if counts.ended_with is not None:
        return "failed"
    if not row and not usable:
        return "empty"
    reached = int(row.get("training_iteration", 0))
    saved = any(entry.kind == "interrupted" and entry.iteration >= reached for entry in usable)
    return "interrupted" if saved else "stopped"


def _changed_at(entries: list[Entry], row: Mapping[str, Any]) -> str | None:
    moments = [
        datetime.fromisoformat(entry.manifest.created_at).astimezone(UTC)
        for entry in entries
        if entry.manifest is not None
    ]
    if isinstance(row.get("timestamp"), int | float):
        moments.append(datetime.fromtimestamp(row["timestamp"], UTC))
    return max(moments).isoformat(timespec="seconds") if moments else None
