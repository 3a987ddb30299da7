"""What is asked of the history: functions of a connection."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, func, literal_column, or_, select, update

from raytrain.driver.command_text import command_for
from raytrain.errors import BadInput
from raytrain.server.history.tables import changes, checkpoints, runs, trials
from raytrain.storage.escapes import printable

GONE = "gone"
STATES = ("running", "finished", "failed", "interrupted", "stopped", "empty", GONE)
"""The states of `raytrain show`; a run that was deleted from storage counts as gone alone."""
_LARGEST = 2**63 - 1
_MOST_PER_PAGE = 1000
_HIDDEN = {"stamp", "lock_stamp", "change", "run_id", "ancestors", "config", "config_digest"}
_SHOWN = [column for column in runs.columns if column.name not in _HIDDEN]
_SCORE = {"score_metric": "metric", "score_order": "order", "best_score": "best"}
_SCORE |= {"last_score": "last"}
SORTABLE: Mapping[str, ColumnElement[Any]] = {
    "lost_s": runs.c.redone_s + runs.c.away_s,
    **{
        column.name: column
        for column in runs.columns
        if column.name not in _HIDDEN | {"sparkline", "exact_lost", "parent"}
    },
}
"""What runs are sorted by."""
USABLE = or_(checkpoints.c.good.is_(None), checkpoints.c.good) & (checkpoints.c.kind != "error")


@dataclass(frozen=True)
class RunQuery:
    """Which runs, in which order. `q`: a part of the name or path; `sort`: a key of `SORTABLE`,
    with "-" for the highest first; pages are counted from 1."""

    q: str = ""
    state: str | None = None
    sort: str = "-changed_at"
    page: int = 1
    per_page: int = 50
    include_gone: bool = True


@dataclass(frozen=True)
class RunPage:
    """`total`: of all pages; `states`: how many runs that match `q` are in each state."""

    runs: list[dict[str, Any]]
    total: int
    page: int
    pages: int
    states: dict[str, int]


def page_of_runs(connection: Connection, query: RunQuery) -> RunPage:
    """See `History.runs`."""
    if query.state is not None and query.state not in STATES:
        raise BadInput(f"There is no state {query.state!r}. States: {', '.join(STATES)}.")
    if query.page < 1 or not 1 <= query.per_page <= _MOST_PER_PAGE:
        raise BadInput(f"Pages begin with 1 and have 1 to {_MOST_PER_PAGE} runs each.")
    # A literal: to PostgreSQL two parameters make two expressions, and then it cannot group.
    shown = case((runs.c.gone_at.is_not(None), literal_column(f"'{GONE}'")), else_=runs.c.state)
    where = _matching(query)
    counted = connection.execute(select(shown, func.count()).where(*where).group_by(shown))
    states = dict.fromkeys(STATES, 0) | {row[0]: row[1] for row in counted}
    if query.state is not None:
        where.append(shown == query.state)
    total = sum(states.values()) if query.state is None else states[query.state]
    found = connection.execute(
        select(*_SHOWN)
        .where(*where)
        .order_by(*_order(query.sort))
        .limit(query.per_page)
        .offset((query.page - 1) * query.per_page)
    )
    pages = max(1, math.ceil(total / query.per_page))
    return RunPage([run_row(row) for row in found.mappings()], total, query.page, pages, states)


def _matching(query: RunQuery) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = []
    if query.q:
        columns = (runs.c.name, runs.c.path)
        where.append(or_(*(column.icontains(query.q, autoescape=True) for column in columns)))
    if not query.include_gone:
        where.append(runs.c.gone_at.is_(None))
    return where


def _order(sort: str) -> list[ColumnElement[Any]]:
    name = sort.removeprefix("-")
    if name not in SORTABLE:
        raise BadInput(f"Runs are not sorted by {name!r}. Keys: {', '.join(SORTABLE)}.")
    column = SORTABLE[name]
    first = column.desc() if sort.startswith("-") else column.asc()
    return [first.nulls_last(), runs.c.id.asc()]


def run_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A run as the API shows it."""
    plain = {column.name: row[column.name] for column in _SHOWN}
    score = {short: plain.pop(name) for name, short in _SCORE.items()}
    return {**plain, "score": score, "resume": command_for("resume", row["path"], [])}


def run(connection: Connection, run_id: str) -> dict[str, Any] | None:
    """See `History.run`; with `config` and `config_digest`."""
    return _whole_run(connection, runs.c.id == run_id)


def run_at(connection: Connection, path: str) -> dict[str, Any] | None:
    """See `History.run_at`; as `run`."""
    return _whole_run(connection, (runs.c.path == path) & runs.c.gone_at.is_(None))


def _whole_run(connection: Connection, where: ColumnElement[bool]) -> dict[str, Any] | None:
    row = connection.execute(select(runs).where(where)).mappings().first()
    if row is None:
        return None
    return {
        **run_row(row),
        "config": json.loads(row["config"]),
        "config_digest": row["config_digest"],
    }


def storages(connection: Connection) -> list[str]:
    """See `History.storages`."""
    here = select(runs.c.storage).where(runs.c.gone_at.is_(None)).distinct()
    return sorted(connection.execute(here).scalars())


def trials_of(connection: Connection, run_id: str) -> list[dict[str, Any]]:
    """See `History.trials`."""
    found = connection.execute(
        select(trials.c.document).where(trials.c.run == run_id).order_by(trials.c.place)
    )
    return list(found.scalars())


def checkpoints_of(
    connection: Connection, run_id: str, kind: str | None = None, latest: bool = False
) -> list[dict[str, Any]]:
    """The fields of a `CheckpointView` without `resume`, and `trial` and `full_path`; the newest
    last. `latest`: only the newest of each trial that can be continued from."""
    columns = [column for column in checkpoints.columns if column.name != "run"]
    where = [checkpoints.c.run == run_id]
    where += [] if kind is None else [checkpoints.c.kind == kind]
    where += [USABLE] if latest else []
    found = connection.execute(
        select(*columns, runs.c.path.label("of_run"))
        .join(runs)
        .where(*where)
        .order_by(checkpoints.c.trial, checkpoints.c.iteration, checkpoints.c.path)
    )
    rows = [_with_full_path(row) for row in found.mappings()]
    return list({row["trial"]: row for row in rows}.values()) if latest else rows


def _with_full_path(row: Mapping[Any, Any]) -> dict[str, Any]:
    plain = dict(row)
    place = plain.pop("of_run")
    return {**plain, "full_path": f"{place}/{row['trial']}/{row['path']}"}


def comparison(connection: Connection, ids: Sequence[str]) -> dict[str, Any]:
    """{"runs": [row, ...], "config": [{"key", "values": one for each run}, ...] for the keys whose
    values differ, "curves": {run: {trial: [[iteration, timesteps, time_s, score], ...]}}}"""
    found = [run(connection, each) for each in ids]
    rows = [row for row in found if row is not None]
    missing = [each for each, row in zip(ids, found, strict=True) if row is None]
    if missing:
        raise BadInput(f"There is no run {missing[0]!r} in the history.")
    configs = [row.pop("config") for row in rows]
    curves = score_series(connection, ids)
    return {"runs": rows, "config": different_values(configs), "curves": curves}


def score_series(connection: Connection, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The scores of each run's trials, by name: [[iteration, timesteps, time_s, score], ...]."""
    found: dict[str, dict[str, Any]] = {each: {} for each in ids}
    columns = trials.c.run, trials.c.name, trials.c.series
    kept = select(*columns).where(trials.c.run.in_(list(ids))).order_by(trials.c.place)
    for run_id, name, series in connection.execute(kept):
        found[run_id][name] = series["points"]
    return found


def different_values(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The keys whose values are not the same in all configs, in order: {"key": "training.lr",
    "values": one for each config, null where it is not there}."""
    flat = [dict(_flat(config)) for config in configs]
    keys = dict.fromkeys(key for config in flat for key in config)
    values = ((key, [config.get(key) for config in flat]) for key in keys)
    return [{"key": key, "values": each} for key, each in values if any(v != each[0] for v in each)]


def _flat(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


# -- changes ---------------------------------------------------------------------------------------


def changes_since(connection: Connection, since: int) -> tuple[int, list[str]]:
    """See `History.changes`."""
    last = connection.execute(select(changes.c.last)).scalar_one()
    found = connection.execute(
        select(runs.c.id)
        .where(runs.c.change > since, runs.c.change <= last)
        .order_by(runs.c.change)
    )
    return last, list(found.scalars())


def count_change(connection: Connection, ids: Iterable[str]) -> int:
    """Give these runs the next number."""
    connection.execute(update(changes).values(last=changes.c.last + 1))
    number: int = connection.execute(select(changes.c.last)).scalar_one()
    connection.execute(update(runs).where(runs.c.id.in_(list(ids))).values(change=number))
    return number


def storable(value: Any) -> Any:
    """A value that every database takes and gives back as it is: numbers that are finite and fit,
    text without what UTF-8 and PostgreSQL lack, lists for tuples."""
    if isinstance(value, Mapping):
        return {storable(str(key)): storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return max(-_LARGEST, min(value, _LARGEST))
    if isinstance(value, str) and not _is_utf8(value):
        return printable(value, lines=True)
    return value


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
