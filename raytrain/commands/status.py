"""`raytrain show` and `raytrain list`: what there is in an experiment's directory, read from storage.

    view(place)      one experiment: its trials, how far each is, what it survived, its checkpoints
    views(storage)   all experiments directly in a directory, the one that changed last first

Nothing is locked, written or unpickled, so a run may be going on meanwhile. Checkpoints are checked by
names and sizes; `raytrain verify` reads every byte.

States of a trial:

    running       a process holds the trial's lock
    finished      `final` is there, and past the present `stop`
    failed        it ended with an error
    interrupted   stopped by a signal, after saving
    stopped       it ended without a word (killed), or nobody has continued it yet
    empty         nothing was trained yet
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from raytrain.checkpoint import Catalogue, Entry, ExperimentFile, is_trial, trials
from raytrain.checkpoint.resolve import require_directory
from raytrain.cluster.restart_counts import RestartCounts
from raytrain.commands.next_commands import Commands
from raytrain.config import ExperimentConfig, config_from_dict, total_timesteps
from raytrain.driver.experiment import has_ended
from raytrain.errors import BadInput
from raytrain.records import EVENT_LOG, read_events
from raytrain.records.downtime import RECOVERED
from raytrain.records.metrics import Averaged, metric
from raytrain.records.row_files import last_row
from raytrain.storage import Location, in_parallel, who_writes
from raytrain.storage.location import storage_errors
from raytrain.trial.score import reported_score, score_of

_T = TypeVar("_T")
Track = Callable[[Iterable[_T]], Iterable[_T]]
"""Passes items on and shows how many are done."""


@dataclass(frozen=True)
class CheckpointView:
    """One checkpoint. `path` is relative to the trial; `good` is False if it is damaged (`problem` says
    how), None if names and sizes are right. `resume` is the command that goes on from it, or None."""

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
    resume: str | None


@dataclass(frozen=True)
class TrialView:
    """One trial. `progress` is the share of `stop` that is done, if that can be told; `..._score_episodes`:
    how many episodes a score is the mean of, where that is known; seconds lost:
    trained again, and without training (see `downtime`). `failures_survived`: starts of the trial after
    one that ended without saving, whatever ended it; lost nodes and preemptions are not counted
    against `failure.max_failures`."""

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
    failures_survived: int
    lost_nodes: int
    preemptions: int
    redone_s: float
    away_s: float
    last_error: str | None
    changed_at: str | None
    checkpoints: tuple[CheckpointView, ...]

    @property
    def size_bytes(self) -> int:
        return sum(each.size_bytes for each in self.checkpoints)


@dataclass(frozen=True)
class ExperimentView:
    """One experiment. `size_bytes` counts the checkpoints; `writer` is who trains there now."""

    path: str
    name: str
    state: str
    writer: str | None
    first_start: str
    changed_at: str
    score: str
    score_order: str
    parent: Mapping[str, str] | None
    size_bytes: int
    resume: str
    trials: tuple[TrialView, ...]

    @property
    def best_score(self) -> float | None:
        scores = [each.best_score for each in self.trials if each.best_score is not None]
        return (min if self.score_order == "min" else max)(scores, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, but for numbers that are not finite."""
        return asdict(self)

    def summary(self) -> dict[str, Any]:
        """A row of `raytrain list --json`."""
        plain = self.to_dict()
        done = [each.progress for each in self.trials if each.progress is not None]
        return {
            **{key: plain[key] for key in _SUMMARY},
            "trials": len(self.trials),
            "finished": sum(each.state == "finished" for each in self.trials),
            "timesteps": sum(each.timesteps for each in self.trials),
            "progress": sum(done) / len(self.trials) if done else None,
            "best_score": self.best_score,
            "failures_survived": sum(each.failures_survived for each in self.trials),
        }


_SUMMARY = ("path", "name", "state", "first_start", "changed_at", "size_bytes", "resume")
_NEEDED = ("environment", "stop", "checkpoint", "curriculum")


def view(argument: str | Location) -> ExperimentView:
    """What is in an experiment's directory.

    Raises:
        BadInput: it is none, or its experiment.json is damaged.
        StorageError: the storage cannot be read.
    """
    place = Location.of(argument)
    with storage_errors("Looking at the experiment", place):
        require_directory(place)
        if is_trial(place) and ExperimentFile.read(place) is None:
            place = place.parent
        found = trials(place)
    experiment = ExperimentFile.read(place)
    if experiment is None:
        raise BadInput(
            f"{place} holds no experiment.json, so it is not an experiment's directory. Give the "
            "directory that `raytrain train` printed; `raytrain list STORAGE` shows what is there."
        )
    config = _sections(experiment)
    commands = Commands.of(place, experiment, alone=len(found) <= 1)
    views = in_parallel(lambda t: _trial(t, config, commands), found, serial=place.is_local)
    writer = who_writes(place)
    changed = [each.changed_at for each in views if each.changed_at is not None]
    return ExperimentView(
        path=str(place),
        name=place.name,
        state=_overall([each.state for each in views], writer),
        writer=writer,
        first_start=experiment.first_start,
        changed_at=max([experiment.first_start, *changed]),
        score=config.checkpoint.score,
        score_order=config.checkpoint.score_order,
        parent=experiment.parent,
        size_bytes=sum(each.size_bytes for each in views),
        resume=commands.resume,
        trials=tuple(views),
    )


def views(storage: str, track: Track[Location] = iter) -> tuple[list[ExperimentView], list[str]]:
    """All experiments in a directory, the one that changed last first; and a sentence for each that
    cannot be read.

    Raises:
        BadInput: there is no such directory.
    """
    place = Location.of(storage)
    with storage_errors("Listing the experiments", place):
        if not place.is_dir():
            raise BadInput(
                f"There is no directory {place}. Give the `storage_path` of your runs: the directory "
                "that holds the experiments' directories."
            )
        below = [place / name for name in place.subdirectories() if not name.startswith(".")]
    found, problems = [], []
    for each in track(below):
        try:
            if ExperimentFile.read(each) is not None:
                found.append(view(each))
        except BadInput as error:
            problems.append(str(error))
    return sorted(found, key=lambda each: each.changed_at, reverse=True), problems


def _sections(experiment: ExperimentFile) -> ExperimentConfig:
    """The config as far as it is needed here: another version's may have other keys elsewhere."""
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
        row = last_row(trial / "result.json")
    usable = [each for each in entries if each.good is not False and each.kind != "error"]
    newest = max(usable, key=lambda each: each.iteration, default=None)
    best = next((each for each in entries if each.path == "best"), None)
    recovered = [event for event in events if event.kind == RECOVERED]
    iteration, timesteps, episodes = _reached(row, newest)
    manifest = None if newest is None else newest.manifest
    number = manifest.stage_number if manifest else None
    losses = RestartCounts(trial)
    state = _state(trial, config, entries, row, losses)
    last_score, best_score = _last_score(row, newest, config), _score_of(best, config)
    return TrialView(
        trial=trial.name,
        state=state,
        iteration=iteration,
        timesteps=timesteps,
        episodes=episodes,
        progress=(
            1.0 if state == "finished" else _progress(config, iteration, timesteps, episodes, row)
        ),
        stage=manifest.stage if manifest else None,
        stage_number=number[0] if number else None,
        stages=number[1] if number else None,
        last_score=last_score.value if last_score else None,
        last_score_episodes=last_score.episodes if last_score else None,
        best_score=best_score.value if best_score else None,
        best_score_episodes=best_score.episodes if best_score else None,
        exact=manifest.exact if manifest else None,
        failures_survived=len(recovered),
        lost_nodes=losses.counts["lost_node"],
        preemptions=losses.counts["preemption"],
        redone_s=sum(event.redone_s or 0.0 for event in recovered),
        away_s=sum(event.away_s or 0.0 for event in recovered),
        last_error=losses.ended_with,
        changed_at=_changed_at(entries, row),
        checkpoints=tuple(_checkpoint(each, newest, trial, config, commands) for each in entries),
    )


def _score_of(entry: Entry | None, config: ExperimentConfig) -> Averaged | None:
    return None if entry is None else score_of(entry, config.checkpoint)


def _last_score(
    row: Mapping[str, Any] | None, newest: Entry | None, config: ExperimentConfig
) -> Averaged | None:
    """Of the last iteration; if it has none (it was not evaluated), then of the newest checkpoint."""
    return (reported_score(row) if row else None) or _score_of(newest, config)


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
        # Those of one iteration hold one state: `best` may be as new as `final`.
        resume=commands.for_checkpoint(
            entry, trial, is_newest=newest is not None and entry.iteration == newest.iteration
        ),
    )


def _reached(row: Mapping[str, Any] | None, newest: Entry | None) -> tuple[int, int, int | None]:
    """Iteration, timesteps and episodes of the newest that is known, trained or saved."""
    trained = int(row.get("training_iteration", 0)) if row else 0
    if newest is not None and newest.manifest is not None and newest.iteration >= trained:
        return newest.iteration, newest.manifest.timesteps, newest.manifest.episodes
    if row is None:
        return 0, 0, 0
    steps = metric(row, "num_env_steps_sampled_lifetime") or 0.0
    episodes = metric(row, "num_episodes_lifetime")
    return trained, int(steps), None if episodes is None else int(episodes)


def _progress(
    config: ExperimentConfig,
    iteration: int,
    timesteps: int,
    episodes: int | None,
    row: Mapping[str, Any] | None,
) -> float | None:
    """The share of the first criterion of `stop` (or of the stages' timesteps) that will be met; a
    return's cannot be told."""
    stop = config.stop
    seconds = float(row.get("time_total_s", 0.0)) if row else 0.0
    reached = (
        (iteration, stop.iterations),
        (timesteps, total_timesteps(config)),
        (episodes, stop.episodes),
        (seconds, stop.time_s),
    )
    shares = [done / limit for done, limit in reached if done is not None and limit]
    return min(1.0, max(shares)) if shares else None


def _state(
    trial: Location,
    config: ExperimentConfig,
    entries: list[Entry],
    row: Mapping[str, Any] | None,
    losses: RestartCounts,
) -> str:
    if who_writes(trial) is not None:
        return "running"
    final = next((each for each in entries if each.path == "final" and each.good is None), None)
    if final is not None and final.manifest is not None and has_ended(config, final.manifest):
        return "finished"
    usable = [each for each in entries if each.good is None and each.kind != "error"]
    if losses.ended_with is not None:
        return "failed"
    if row is None and not usable:
        return "empty"
    reached = int(row.get("training_iteration", 0)) if row else 0
    saved = [each for each in usable if each.kind == "interrupted" and each.iteration >= reached]
    return "interrupted" if saved else "stopped"


def _changed_at(entries: list[Entry], row: Mapping[str, Any] | None) -> str | None:
    moments = [
        datetime.fromisoformat(each.manifest.created_at).astimezone(UTC)
        for each in entries
        if each.manifest is not None
    ]
    if row is not None and isinstance(row.get("timestamp"), int | float):
        moments.append(datetime.fromtimestamp(row["timestamp"], UTC))
    return max(moments).isoformat(timespec="seconds") if moments else None
