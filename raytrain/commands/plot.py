"""`raytrain plot`: the learning curves of an experiment as a PNG or SVG file.

A line for each trial over environment steps, from result.json. A cross marks where a trial
continued after a failure, a dashed line the end of a stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from raytrain.checkpoint import Catalogue
from raytrain.commands.status import view
from raytrain.config.metric_names import nearest_first
from raytrain.errors import BadInput, require
from raytrain.records import EVENT_LOG, read_events
from raytrain.records.downtime import RECOVERED
from raytrain.records.metrics import metric as metric_of
from raytrain.records.row_files import read_row
from raytrain.storage import Location
from raytrain.storage.escapes import printable
from raytrain.storage.location import storage_errors
from raytrain.trial.missing_metrics import metric_names
from raytrain.trial.score import score_in_row

_ENDINGS = (".png", ".svg")
_STEPS = "num_env_steps_sampled_lifetime"
_DEFAULT = "curves.png"
_SHOWN = 8


@dataclass(frozen=True)
class Curve:
    """One trial: a point for each iteration in which the metric is a number, the points at which
    the trial continued after a failure, and the steps at which each stage ended."""

    trial: str
    points: tuple[tuple[float, float], ...]
    failures: tuple[tuple[float, float], ...]
    stages: Mapping[str, int]


def plot(experiment_dir: str, *, out: str | None = None, metric: str | None = None) -> Path:
    """Draw the curves of `metric` (by default the score), and return the path of the file.

    Raises:
        BadInput: there is no experiment, nothing to draw yet, or the file is no .png or .svg.
        MissingExtra: matplotlib is not installed.
    """
    require("plot", "matplotlib", what="Plotting")
    experiment = view(experiment_dir)
    place = Location.of(experiment.path)
    path = _target(place, out)
    name = experiment.score if metric is None else metric
    read, label = (score_in_row, f"{name} (score)") if metric is None else (metric_of, name)
    trials = [place / trial.trial for trial in experiment.trials]
    curves = [_curve(trial, partial(read, name=name)) for trial in trials]
    if not any(curve.points for curve in curves):
        raise BadInput(
            f"There is nothing to draw yet in {place}: no iteration has a number for {name!r}."
            + _other_names(name, trials)
        )
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # A dollar sign in a name is no formula.
        _draw(experiment.name, label, curves, path)
    return path


def _other_names(name: str, trials: list[Location]) -> str:
    names: set[str] = set()
    for trial in trials:
        names.update(*(metric_names(row) for row in _rows(trial)))
    if not names:
        return " Wait for the first iteration."
    nearest = printable(", ".join(nearest_first(name, names)[:_SHOWN]))
    return f" Name another metric with --metric. The most similar metrics: {nearest}."


def _target(place: Location, out: str | None) -> Path:
    if out is None and not place.is_local:
        raise BadInput(f"{place} is not on this machine: name the file to write with --out FILE.")
    path = Path(out) if out is not None else place.local_path / _DEFAULT
    if path.suffix.lower() not in _ENDINGS:
        raise BadInput(f"--out {path}: the name must end in {' or '.join(_ENDINGS)}.")
    if not path.parent.is_dir():
        raise BadInput(f"--out {path}: there is no directory {path.parent}.")
    return path


def _curve(trial: Location, value_of: Callable[[Mapping[str, Any]], float | None]) -> Curve:
    rows = _rows(trial)
    with storage_errors("Reading the trial's records", trial):
        events = [event for event in read_events(trial / EVENT_LOG) if event.kind == RECOVERED]
    points, at = [], {}
    for row in rows:
        steps, value = metric_of(row, _STEPS), value_of(row)
        if steps is not None and value is not None and math.isfinite(value):
            points.append((steps, value))
            at[int(row["training_iteration"])] = (steps, value)
    # The iteration after which the trial continued, or the nearest one with a number.
    failures = [at[min(at, key=lambda i: abs(i - event.iteration))] for event in events if at]
    stages = {
        printable(entry.path.removeprefix("stages/")): entry.manifest.timesteps
        for entry in Catalogue(trial).entries()
        if entry.path.startswith("stages/") and entry.manifest is not None
    }
    return Curve(printable(trial.name), tuple(points), tuple(failures), stages)


def _rows(trial: Location) -> list[dict[str, Any]]:
    with storage_errors("Reading the trial's records", trial):
        try:
            lines = (trial / "result.json").read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
    # The last line may be torn while it is being written.
    return [row for line in lines if (row := read_row(line)) is not None]


def _draw(title: str, label: str, curves: list[Curve], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)  # Never opens a window.
    axes = figure.add_subplot()
    for number, curve in enumerate(curves):
        color = f"C{number}"
        if curve.points:
            axes.plot(*zip(*curve.points, strict=True), color=color, label=curve.trial)
        if curve.failures:
            axes.scatter(
                *zip(*curve.failures, strict=True),
                marker="x",
                color=color,
                zorder=3,
                label=f"{curve.trial}: continued after a failure ({len(curve.failures)})",
            )
        for stage, steps in curve.stages.items():
            axes.axvline(steps, linestyle="--", linewidth=0.8, color="grey")
            axes.annotate(
                stage,
                (steps, 1.0),
                xycoords=("data", "axes fraction"),
                rotation=90,
                ha="right",
                va="top",
                fontsize="small",
                color="grey",
            )
    axes.set_xlabel("environment steps")
    axes.set_ylabel(printable(label))
    axes.set_title(printable(title))
    axes.grid(alpha=0.3)
    if len(curves) <= 20:
        axes.legend(fontsize="small")
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise BadInput(f"--out {path}: it cannot be written: {error}") from error
