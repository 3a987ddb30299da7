"""The curves of trials: metrics over the iterations, and the marks on them.

    {"cursor": for the next call,
     "metrics": the names that the last rows have,
     "trials": {TRIAL: {
         "series": {METRIC: [[iteration, timesteps, time_s, value], ...]},
         "reset": whether these are all points, and not only those after the cursor,
         "attempts": [{"attempt", "iteration", "timesteps", "time_s"}]     where each began
         "failures": [{"kind", "message", "time", "iteration", "timesteps", "time_s"}]
         "stages": [{"name", "begin": {"iteration", "timesteps", "time_s"}, "end": ... or null}]
     }}}

Only rows after the cursor are read. The marks are complete each time: the cursor says where those
before it are, so nothing is kept in this process, and any server can go on.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import astuple, dataclass, field
from typing import Any, TypeAlias

from raytrain.errors import BadInput
from raytrain.records import EVENT_LOG, read_events
from raytrain.records.downtime import RECOVERED
from raytrain.records.metrics import metric
from raytrain.records.row_files import ITERATION
from raytrain.server.records.new_rows import START, is_cursor, new_rows
from raytrain.server.records.row_lookup import row_lookup
from raytrain.server.records.score_series import (
    Point,
    Position,
    point_of,
    position_before,
    position_of,
)
from raytrain.storage import Location, in_parallel, storage_errors
from raytrain.storage.json import parse_json
from raytrain.trial.fencing import Attempt, attempts_of
from raytrain.trial.score import score_in_row

SCORE = "checkpoint/score"
"""The metric of `checkpoint.score`, averaged over its window."""
MARKS = ("attempts", "failures", "stages")
FAILURES = frozenset({RECOVERED, "failed", "lost_node", "preemption", "relocation"})
"""The kinds of events that are marked."""
_NO_METRICS = frozenset(
    {"config", "curriculum", "stop", "date", "timestamp", "pid", "training_iteration", "done"}
)
_MOST_OF_A_CURSOR = 1 << 20


_Stage: TypeAlias = tuple[str, Position, Position | None]
"""Name, begin and end."""


@dataclass(frozen=True)
class _Seen:
    """What is known of a trial up to a cursor: where marked iterations are, and what cannot be read
    from the rows after it."""

    cursor: str = START
    positions: Mapping[int, Position] = field(default_factory=dict)
    stages: tuple[_Stage, ...] = ()
    attempts: Mapping[int, Attempt] = field(default_factory=dict)


def curves(
    place: Location,
    trials: Sequence[str],
    *,
    score: str,
    metrics: Sequence[str] = (),
    since: str = "",
    points: int | None = None,
) -> dict[str, Any]:
    """See the module's docstring. `place`: of the experiment; `score`: the metric that
    `checkpoint.score` names; `metrics`: by default the score alone; `since`: the cursor of an
    earlier answer for the same metrics; `points`: thin each series to about as many.

    Raises:
        BadInput: `since` is no cursor.
        StorageError: the files cannot be read.
    """
    names = tuple(metrics) or (SCORE,)
    seen = _read_cursor(since, names)

    def read(trial: str) -> tuple[dict[str, Any], _Seen, set[str]]:
        return _trial(place / trial, names, score, seen.get(trial, _Seen()))

    found = dict(zip(trials, in_parallel(read, trials, serial=place.is_local), strict=True))
    answers = {trial: answer for trial, (answer, _, _) in found.items()}
    if points is not None:
        for answer in answers.values():
            series = answer["series"]
            answer["series"] = {name: thinned(each, points) for name, each in series.items()}
    known = set().union(*(names for _, _, names in found.values())) - {SCORE}
    return {
        "cursor": _cursor(names, {trial: after for trial, (_, after, _) in found.items()}),
        "metrics": [SCORE, *sorted(known)],
        "trials": answers,
    }


def _trial(
    trial: Location, names: Sequence[str], score: str, seen: _Seen
) -> tuple[dict[str, Any], _Seen, set[str]]:
    """The answer for a trial, what has been seen with it, and the metrics of the last row."""
    results = trial / "result.json"
    with storage_errors("Reading the trial's records", trial):
        with new_rows(results, seen.cursor) as rows:
            if rows.reset:
                seen = _Seen(attempts=seen.attempts)
            series: dict[str, list[Point]] = {name: [] for name in names}
            stages = list(seen.stages)
            for row in rows:
                _add_stage(stages, row)
                for name in names:
                    value = score_in_row(row, score) if name == SCORE else metric(row, name)
                    point = point_of(row, value)
                    if point is not None:
                        series[name].append(point)
        attempts = attempts_of(trial, seen.attempts)
        events = [event for event in read_events(trial / EVENT_LOG) if event.kind in FAILURES]
        marked = {attempt.began_after for attempt in attempts.values()}
        marked |= {int(event.iteration) for event in events}
        at, for_good = _positions(results, marked, seen.positions)
    answer = {
        "series": series,
        "reset": seen.cursor == START,
        "attempts": [
            {"attempt": number, **_plain(at[attempt.began_after])}
            for number, attempt in attempts.items()
        ],
        "failures": [
            {"kind": event.kind, "message": event.message, "time": event.time}
            | _plain(at[int(event.iteration)])
            for event in events
        ],
        "stages": [
            {"name": name, "begin": _plain(begin), "end": None if end is None else _plain(end)}
            for name, begin, end in stages
        ],
    }
    after = _Seen(rows.cursor, for_good, tuple(stages), attempts)
    return answer, after, set() if rows.last is None else set(_numbers(rows.last))


def _add_stage(stages: list[_Stage], row: Mapping[str, Any]) -> None:
    name = row.get("stage")
    if not isinstance(name, str) or (stages and stages[-1][0] == name):
        return
    begin = position_before(row)
    if stages:
        stages[-1] = (*stages[-1][:2], begin)
    stages.append((name, begin, None))


def _positions(
    results: Location, iterations: Set[int], known: Mapping[int, Position]
) -> tuple[dict[int, Position], dict[int, Position]]:
    """Where the curve is at the end of each of these iterations, or of the nearest one before; and
    those of them that do not change when rows are added."""
    for_good = {each: known[each] for each in iterations if each in known}
    at = dict(for_good)
    missing = iterations - for_good.keys()
    if missing:
        with row_lookup(results) as rows:
            for each in missing:
                before, after = rows.around(each)
                if before is not None:
                    at[each] = position_of(before)
                else:  # A fork's rows begin after its parent's checkpoint.
                    at[each] = (each, 0.0, 0.0) if after is None else position_before(after)
                if after is not None or (before is not None and before[ITERATION] == each):
                    for_good[each] = at[each]
    return at, for_good


def _plain(position: Position) -> dict[str, float]:
    return dict(zip(("iteration", "timesteps", "time_s"), position, strict=True))


def _numbers(part: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The paths of all numbers of a row that may be drawn."""
    for key, value in part.items():
        if above or key not in _NO_METRICS:
            path = f"{above}{key}"
            if isinstance(value, Mapping):
                yield from _numbers(value, f"{path}/")
            elif isinstance(value, int | float) and not isinstance(value, bool):
                yield path


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """About `most` of these points: the lowest and the highest of each of `most / 2` stretches of
    equal length, so that no peak is lost."""
    if len(points) <= most:
        return list(points)
    length = math.ceil(2 * len(points) / max(2, most))
    kept: list[Point] = []
    for begin in range(0, len(points), length):
        stretch = points[begin : begin + length]
        lowest = min(stretch, key=lambda point: point[3])
        highest = max(stretch, key=lambda point: point[3])
        kept += sorted({lowest, highest})
    return kept


# -- the cursor ------------------------------------------------------------------------------------


def _cursor(names: Sequence[str], seen: Mapping[str, _Seen]) -> str:
    plain = {
        trial: [
            each.cursor,
            list(each.positions.values()),
            each.stages,
            [(number, *astuple(attempt)) for number, attempt in each.attempts.items()],
            list(each.positions),
        ]
        for trial, each in seen.items()
    }
    return base64.urlsafe_b64encode(zlib.compress(json.dumps([names, plain]).encode())).decode()


def _read_cursor(text: str, names: Sequence[str]) -> dict[str, _Seen]:
    """Nothing if it is of other metrics."""
    if not text:
        return {}
    try:
        packed = zlib.decompressobj().decompress(base64.urlsafe_b64decode(text), _MOST_OF_A_CURSOR)
        known, plain = parse_json(packed)
        if known != list(names):
            return {}
        return {trial: _seen(*values) for trial, values in plain.items()}
    except (ValueError, TypeError, AttributeError, KeyError, zlib.error):
        raise BadInput("`since` is not the cursor of an earlier answer.") from None


def _seen(
    cursor: str, positions: list[Any], stages: list[Any], attempts: list[Any], at: list[int]
) -> _Seen:
    if not is_cursor(cursor):
        raise ValueError(cursor)
    return _Seen(
        cursor,
        {each: _position(position) for each, position in zip(at, positions, strict=True)},
        tuple(
            (str(name), _position(begin), None if end is None else _position(end))
            for name, begin, end in stages
        ),
        {number: Attempt(after, at) for number, after, at in attempts},
    )


def _position(values: list[float]) -> Position:
    iteration, timesteps, time_s = values
    return int(iteration), float(timesteps), float(time_s)
