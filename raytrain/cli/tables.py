"""Tables, and the text of `raytrain show`, `list` and `prune`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from raytrain.commands.prune import Plan
from raytrain.commands.status import CheckpointView, ExperimentView, TrialView
from raytrain.driver.console import duration
from raytrain.records.metrics import over_episodes
from raytrain.storage.escapes import printable

if TYPE_CHECKING:
    from raytrain.commands.audit_nodes import AuditOnNodes, NodeAudit

_WIDTH_OF_A_PIPE = 240


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The rows below their titles. In a pipe, cells are not wrapped."""
    grid = Table(*titles, box=None, pad_edge=False)
    for row in rows:
        grid.add_row(*map(printable, row))
    # A cell is plain text, also if it looks like markup or contains the name of an emoji.
    console = Console(
        width=None if sys.stdout.isatty() else _WIDTH_OF_A_PIPE,
        color_system=None,
        markup=False,
        emoji=False,
        highlight=False,
    )
    with console.capture() as captured:
        console.print(grid)
    return captured.get().rstrip("\n")


def show_text(experiment: ExperimentView) -> str:
    """An experiment: its trials with their checkpoints, then the commands to continue."""
    writer = "" if experiment.writer is None else f" ({experiment.writer})"
    lines = [
        f"{experiment.path}: {experiment.state}{writer}",
        f"started {_moment(experiment.first_start)}, changed {_moment(experiment.changed_at)}, "
        f"checkpoints {decimal(experiment.size_bytes)}",
    ]
    if experiment.parent is not None:
        parent = experiment.parent
        lines.append(
            f"forked from {parent['checkpoint']} of {parent['experiment']}/{parent['trial']}"
        )
    if any((experiment.code or {}).values()):
        lines.append(f"code: {code_text(experiment.code or {})}")
    for trial in experiment.trials:
        rows = (_checkpoint_row(checkpoint) for checkpoint in trial.checkpoints)
        checkpoints = table(_TITLES, rows).splitlines()
        lines += ["", *_trial_lines(trial, experiment.score), "", *checkpoints]
    if not experiment.trials:
        lines.append("no trial has begun yet")
    titles = {
        "running": "The run is running. After it has stopped, continue with:",
        "finished": "The run is finished. To train on, raise a value in `stop`: give --set "
        "stop.KEY=VALUE to the command that prints its result again:",
    }
    lines += ["", titles.get(experiment.state, "Continue with:"), f"  {experiment.resume}"]
    others = [
        f"  {checkpoint.resume}    # {trial.trial}/{checkpoint.path}"
        for trial in experiment.trials
        for checkpoint in trial.checkpoints
        if checkpoint.resume is not None and checkpoint.resume != experiment.resume
    ]
    if others:
        lines += ["From another checkpoint:", *others]
    return "".join(f"{printable(line.rstrip())}\n" for line in lines)


def code_text(code: Mapping[str, Any]) -> str:
    """`code` of a manifest or of experiment.json: `my_env.py 0123456789ab, mujoco 3.3.0`."""
    files = [f"{key} {digest[:12]}" for key, digest in code.get("files", {}).items()]
    packages = [f"{name} {version}" for name, version in code.get("packages", {}).items()]
    return ", ".join([*files, *packages]) or "none of the user's, and no further package"


def _trial_lines(trial: TrialView, score: str) -> list[str]:
    first = (
        f"{trial.trial}: {trial.state}, iteration {trial.iteration:,}, {trial.timesteps:,} steps"
    )
    if trial.progress is not None:
        first += f" ({int(trial.progress * 100)}%)"
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
    uncounted = [
        f"{name}: {count}"
        for name, count in (
            ("nodes lost", trial.lost_nodes),
            ("preemptions", trial.preemptions),
            ("nodes left that compute differently", trial.relocations),
        )
        if count
    ]
    if uncounted:
        lines.append(f"  {', '.join(uncounted)} (not counted against failure.max_failures)")
    if trial.exact_lost is not None:
        lines.append(
            "  not exact from iteration {since_iteration} on: {why}".format(**trial.exact_lost)
        )
    if trial.last_error is not None and trial.state == "failed":
        lines.append(f"  {trial.last_error}")
    return lines


_TITLES = ("checkpoint", "kind", "iteration", "steps", "stage", "score", "size", "saved", "")


def _checkpoint_row(checkpoint: CheckpointView) -> tuple[str, ...]:
    return (
        checkpoint.path,
        checkpoint.kind,
        "" if checkpoint.iteration < 0 else f"{checkpoint.iteration:,}",
        "" if checkpoint.timesteps is None else f"{checkpoint.timesteps:,}",
        checkpoint.stage or "",
        "" if checkpoint.score is None else f"{checkpoint.score:.6g}",
        decimal(checkpoint.size_bytes),
        "" if checkpoint.created_at is None else _moment(checkpoint.created_at),
        "" if checkpoint.good is not False else f"DAMAGED: {checkpoint.problem}",
    )


def list_text(experiments: Sequence[ExperimentView]) -> str:
    """A line for each experiment."""
    titles = ("experiment", "state", "trials", "steps", "done", "best", "size", "changed")
    return table(titles, map(_experiment_row, experiments)) + "\n"


def _experiment_row(experiment: ExperimentView) -> tuple[str, ...]:
    row = experiment.summary()
    best = experiment.best_score
    return (
        experiment.name,
        experiment.state,
        f"{row['finished']}/{row['trials']} finished",
        f"{row['timesteps']:,}",
        "" if row["progress"] is None else f"{int(row['progress'] * 100)}%",
        "" if best is None else f"{best:.6g}",
        decimal(experiment.size_bytes),
        _moment(experiment.changed_at),
    )


def prune_text(plan: Plan, *, done: bool) -> str:
    """What is, or was, deleted, and how much space that frees."""
    if not plan.delete:
        return "Nothing to delete.\n"
    titles = ("checkpoint", "kind", "iteration", "size")
    rows = [
        (
            plan.path(entry),
            entry.kind,
            "" if entry.iteration < 0 else str(entry.iteration),
            decimal(entry.size_bytes),
        )
        for entry in plan.delete
    ]
    kept = ", ".join(map(plan.path, plan.keep))
    amount = f"{len(rows)} checkpoint{'s' * (len(rows) > 1)}, {decimal(plan.frees_bytes)}"
    planned = f"Would delete {amount}. Nothing was deleted: give --yes to delete."
    result = f"Deleted {amount}." if done else planned
    return f"{table(titles, rows)}\n{result} Kept: {kept}.\n"


def nodes_text(audit: AuditOnNodes) -> str:
    """What each node computed, and which of those that differ agree."""
    titles = ("node", "result", "iteration", "weights", "what differs")
    lines = []
    for trial in audit.trials:
        span = f"iterations {trial.start + 1} to {trial.end}"
        lines.append(f"{trial.trial}: {span} trained again on {len(trial.nodes)} nodes:")
        lines.append(table(titles, map(_node_row, trial.nodes)))
        for names in trial.agreeing:
            if len(names) > 1:
                lines.append(f"These nodes computed the same numbers: {', '.join(names)}.")
        if len(trial.agreeing) == 1 and len(trial.agreeing[0]) == len(trial.nodes) > 1:
            lines.append(
                "So the run was trained on a machine that computes differently, or a checkpoint or "
                "a record was changed."
            )
    return "".join(f"{line}\n" for line in lines)


def _node_row(found: NodeAudit) -> tuple[str, ...]:
    if found.audit is None:
        return (found.node, "not known", "", "", found.problem or "")
    result = "equal" if found.equal else "NOT equal"
    iteration = found.audit.difference.iteration if found.audit.difference else found.audit.end
    weights = found.audit.weights_sha256[:12]
    return (found.node, result, f"{iteration:,}", weights, found.audit.cause)


def _moment(text: str) -> str:
    """An ISO time in the local time zone, to the minute."""
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M")
