"""What `raytrain show`, `list` and `prune` say to a person."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from raytrain.cli.text_table import table
from raytrain.commands.prune import Plan
from raytrain.commands.status import CheckpointView, ExperimentView, TrialView
from raytrain.driver.console import duration
from raytrain.records.metrics import over_episodes
from raytrain.storage.escapes import printable


def show_text(found: ExperimentView) -> str:
    """An experiment: each trial in a few lines and its checkpoints, then how to go on."""
    lines = [f"{found.path}: {found.state}"]
    if found.writer is not None:
        lines[0] += f" ({found.writer})"
    lines.append(
        f"started {_moment(found.first_start)}, changed {_moment(found.changed_at)}, "
        f"checkpoints {size(found.size_bytes)}"
    )
    if found.parent is not None:
        parent = found.parent
        lines.append(
            f"forked from {parent['checkpoint']} of {parent['experiment']}/{parent['trial']}"
        )
    for trial in found.trials:
        lines += ["", *_trial_lines(trial, found.score), "", *_checkpoint_table(trial)]
    if not found.trials:
        lines.append("no trial has begun yet")
    said = {
        "running": "It is running; when it has stopped, go on with:",
        "finished": "It is finished. Raise a value in `stop` to train on; this says how it ended:",
    }
    lines += ["", said.get(found.state, "Go on with:"), f"  {found.resume}"]
    others = [
        f"  {each.resume}    # {trial.trial}/{each.path}"
        for trial in found.trials
        for each in trial.checkpoints
        if each.resume is not None and each.resume != found.resume
    ]
    if others:
        lines += ["From another checkpoint:", *others]
    return "".join(f"{printable(line.rstrip())}\n" for line in lines)


def _trial_lines(trial: TrialView, score: str) -> list[str]:
    share = "" if trial.progress is None else f" ({int(trial.progress * 100)}%)"
    first = f"{trial.trial}: {trial.state}, iteration {trial.iteration:,}, {trial.timesteps:,} steps{share}"
    if trial.stage is not None:
        first += f", stage {trial.stage}"
        if trial.stage_number is not None:
            first += f" ({trial.stage_number} of {trial.stages})"
    scores = [
        f"{name} {value:.6g}{over_episodes(episodes)}"
        for name, value, episodes in (
            ("best", trial.best_score, trial.best_score_episodes),
            ("last", trial.last_score, trial.last_score_episodes),
        )
        if value is not None
    ]
    lines = [first]
    if scores:
        lines.append(f"  {score}: {', '.join(scores)}")
    if trial.failures_survived:
        lost = trial.redone_s + trial.away_s
        lines.append(
            f"  survived {trial.failures_survived} failure{'s' * (trial.failures_survived > 1)}; "
            f"{duration(lost)} lost ({duration(trial.redone_s)} trained again, "
            f"{duration(trial.away_s)} away)"
        )
    given_back = [
        f"{name}: {count}"
        for name, count in (("nodes lost", trial.lost_nodes), ("preemptions", trial.preemptions))
        if count
    ]
    if given_back:
        lines.append(f"  {', '.join(given_back)} (not counted against failure.max_failures)")
    if trial.exact is False:
        lines.append("  not exact: `raytrain inspect` says why and since when")
    if trial.last_error is not None and trial.state == "failed":
        lines.append(f"  {trial.last_error}")
    return lines


def _checkpoint_table(trial: TrialView) -> list[str]:
    titles = ("checkpoint", "kind", "iteration", "steps", "stage", "score", "size", "saved", "")
    return table(titles, (_checkpoint_row(each) for each in trial.checkpoints)).splitlines()


def _checkpoint_row(found: CheckpointView) -> tuple[str, ...]:
    return (
        found.path,
        found.kind,
        "" if found.iteration < 0 else f"{found.iteration:,}",
        "" if found.timesteps is None else f"{found.timesteps:,}",
        found.stage or "",
        "" if found.score is None else f"{found.score:.6g}",
        size(found.size_bytes),
        "" if found.created_at is None else _moment(found.created_at),
        "" if found.good is not False else f"DAMAGED: {found.problem}",
    )


def list_text(found: Sequence[ExperimentView]) -> str:
    """A line for each experiment."""
    titles = ("experiment", "state", "trials", "steps", "done", "best", "size", "changed")
    return table(titles, (_experiment_row(each) for each in found)) + "\n"


def _experiment_row(found: ExperimentView) -> tuple[str, ...]:
    row = found.summary()
    best = found.best_score
    return (
        found.name,
        found.state,
        f"{row['finished']}/{row['trials']} finished",
        f"{row['timesteps']:,}",
        "" if row["progress"] is None else f"{int(row['progress'] * 100)}%",
        "" if best is None else f"{best:.6g}",
        size(found.size_bytes),
        _moment(found.changed_at),
    )


def prune_text(plan: Plan, *, done: bool) -> str:
    """What is, or was, deleted, and how much that frees."""
    if not plan.delete:
        return "Nothing to delete.\n"
    titles = ("checkpoint", "kind", "iteration", "size")
    rows = [
        (
            each.path,
            each.kind,
            "" if each.iteration < 0 else str(each.iteration),
            size(each.size_bytes),
        )
        for each in plan.delete
    ]
    end = f"{len(rows)} checkpoint{'s' * (len(rows) > 1)}, {size(plan.frees_bytes)}"
    refused = f"Would delete {end}. Nothing was deleted: give --yes to do it."
    said = f"Deleted {end}." if done else refused
    return f"{table(titles, rows)}\n{said} Kept: {', '.join(plan.keep)}.\n"


def size(number: int) -> str:
    """Bytes as a person says them, in powers of ten."""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _moment(text: str) -> str:
    """An ISO time in the local time zone, to the minute."""
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M")
