"""What the index holds of one run, made from its `ExperimentView`, and how it is written.

A run's id is made of its place and its run id: two servers, and a database that was made anew, give
it the same. A directory that was begun anew (`--fresh`) is another run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC
from typing import Any

from sqlalchemy import Connection, Table, delete, insert, select, update

from raytrain.commands.status import CheckpointView, ExperimentView, TrialView
from raytrain.server.history.queries import count_change, storable
from raytrain.server.history.tables import ID_LENGTH, checkpoints, runs, trials
from raytrain.server.records.new_rows import START, new_rows
from raytrain.server.records.score_series import ScoreSeries
from raytrain.storage import Location, storage_errors
from raytrain.storage.json import moment

Row = dict[str, Any]


@dataclass(frozen=True)
class Indexed:
    """The rows of one run."""

    run: Row
    trials: list[Row]
    checkpoints: list[Row]

    @property
    def id(self) -> str:
        return str(self.run["id"])


def id_of(path: str, run_id: str) -> str:
    """`path`: of the experiment's directory, as `Location` writes it."""
    text = f"{path}\0{run_id}".encode(errors="surrogatepass")
    return hashlib.sha256(text).hexdigest()[:ID_LENGTH]


def indexed(
    view: ExperimentView,
    place: Location,
    storage: str,
    *,
    stamp: str,
    lock_stamp: str,
    known: Callable[[str], Mapping[str, tuple[Mapping[str, Any], str]]],
) -> Indexed:
    """The rows of a run, which is at `place`. `known(run)`: the series and the cursor that the
    index has for each of its trials.

    Raises:
        StorageError: the rows of a trial cannot be read.
    """
    run = id_of(view.path, view.run_id)
    before = known(run)
    series: dict[str, ScoreSeries] = {}
    rows: list[Row] = []
    for number, trial in enumerate(view.trials):
        series[trial.trial], cursor = _series(
            place / trial.trial, view.score, before.get(trial.trial)
        )
        document = {key: value for key, value in asdict(trial).items() if key != "checkpoints"}
        rows.append(
            {
                "run": run,
                "name": trial.trial,
                "place": number,
                "state": trial.state,
                "document": document,
                "series": series[trial.trial].to_dict(),
                "cursor": cursor,
            }
        )
    shown = _shown(view)
    return Indexed(
        storable(
            {
                **_summary(view),
                "id": run,
                "storage": storage,
                "run_id": view.run_id,
                "first_start": utc(view.first_start),
                "changed_at": utc(view.changed_at),
                "iteration": max((trial.iteration for trial in view.trials), default=0),
                "episodes": _sum(trial.episodes for trial in view.trials),
                "score_metric": view.score,
                "score_order": view.score_order,
                "last_score": None if shown is None else shown.last_score,
                "sparkline": [] if shown is None else series[shown.trial].sparkline(),
                "exact": _all(trial.exact for trial in view.trials),
                "exact_lost": _first(trial.exact_lost for trial in view.trials),
                "preemptions": sum(trial.preemptions for trial in view.trials),
                "lost_nodes": sum(trial.lost_nodes for trial in view.trials),
                "redone_s": sum(trial.redone_s for trial in view.trials),
                "away_s": sum(trial.away_s for trial in view.trials),
                "stage": _first(trial.stage for trial in view.trials if trial.state != "finished"),
                "last_error": _first(trial.last_error for trial in view.trials),
                "writer": view.writer,
                "parent": view.parent,
                "ancestors": view.ancestors,
                "config": json.dumps(view.config),
                "config_digest": view.config_digest,
                "gone_at": None,
                "stamp": stamp,
                "lock_stamp": lock_stamp,
            }
        ),
        storable(rows),
        storable(
            [
                _checkpoint(run, trial.trial, each)
                for trial in view.trials
                for each in trial.checkpoints
            ]
        ),
    )


def _summary(view: ExperimentView) -> Row:
    """Without the command, which says how the program was started that asks for it."""
    return {key: value for key, value in view.summary().items() if key != "resume"}


def _series(
    trial: Location, metric: str, known: tuple[Mapping[str, Any], str] | None
) -> tuple[ScoreSeries, str]:
    series, cursor = ScoreSeries(metric), START
    if known is not None and known[0]["metric"] == metric:
        series, cursor = ScoreSeries.of(known[0]), known[1]
    with (
        storage_errors("Reading the trial's records", trial),
        new_rows(trial / "result.json", cursor) as rows,
    ):
        series = (ScoreSeries(metric) if rows.reset else series).with_rows(rows)
        return series, rows.cursor


def _shown(view: ExperimentView) -> TrialView | None:
    """The trial whose score is that of the run: the best one, or the first."""
    with_best = [trial for trial in view.trials if trial.best_score == view.best_score]
    return next(iter([*with_best, *view.trials]), None)


def _checkpoint(run: str, trial: str, checkpoint: CheckpointView) -> Row:
    row = {"run": run, "trial": trial, **asdict(checkpoint)}
    del row["resume"]
    created_at = row["created_at"]
    return {**row, "created_at": None if created_at is None else utc(created_at)}


def utc(text: str) -> str:
    return moment(text).astimezone(UTC).isoformat(timespec="seconds")


def _first(values: Iterable[Any]) -> Any:
    return next((value for value in values if value is not None), None)


def _sum(values: Iterable[int | None]) -> int | None:
    """None if one of them is unknown."""
    known = list(values)
    return None if None in known else sum(filter(None, known))


def _all(values: Iterable[bool | None]) -> bool | None:
    """None if none of them is known."""
    known = [value for value in values if value is not None]
    return all(known) if known else None


# -- writing ---------------------------------------------------------------------------------------

_STAMPS = {"stamp", "lock_stamp"}


def put(connection: Connection, index: Indexed) -> bool:
    """Write a run, unless the same is there; whether more than its stamps has changed."""
    before = connection.execute(select(runs).where(runs.c.id == index.id)).mappings().first()
    different = (
        set(index.run)
        if before is None
        else {key for key, value in index.run.items() if before[key] != value}
    )
    others = {
        table: rows
        for table, rows in ((trials, index.trials), (checkpoints, index.checkpoints))
        if _by_key(table, _rows_of(connection, table, index.id)) != _by_key(table, rows)
    }
    if before is None:
        connection.execute(insert(runs).values(**index.run, change=0))
    elif different:
        changed = {key: index.run[key] for key in different}
        connection.execute(update(runs).where(runs.c.id == index.id).values(changed))
    for table, rows in others.items():
        connection.execute(delete(table).where(table.c.run == index.id))
        if rows:
            connection.execute(insert(table), rows)
    if not others and different <= _STAMPS:
        return False
    count_change(connection, [index.id])
    return True


def _rows_of(connection: Connection, table: Table, run: str) -> list[Row]:
    found = connection.execute(select(table).where(table.c.run == run))
    return [dict(row) for row in found.mappings()]


def _by_key(table: Table, rows: Iterable[Row]) -> dict[tuple[Any, ...], Row]:
    keys = [column.name for column in table.primary_key]
    return {tuple(row[key] for key in keys): row for row in rows}
