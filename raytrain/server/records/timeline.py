"""Where a trial's time went, from its rows, attempts and events.

    attempt 1   waiting | training ............... |  the process dies
                                                      away
    attempt 2                                              waiting | repeated .... | training

    waiting      from the start of an attempt to its first iteration
    training     iterations; also those that were lost with their process
    repeated     the first iterations after a failure, as long as those that were lost
    away         no process trained
    preempted    the same, since the trial's node was lost or taken away

Times are those of the machines that trained, to the second. When an attempt began is known from its
event `recovered`, else from its file, unless a copy of the directory has changed the file's time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raytrain.records import EVENT_LOG, read_events
from raytrain.records.downtime import RECOVERED
from raytrain.records.event_log import LoggedEvent
from raytrain.records.row_files import ITERATION
from raytrain.server.records.row_lookup import RowLookup, row_lookup
from raytrain.storage import Location, storage_errors
from raytrain.trial.fencing import Attempt, attempts_of

_TAKEN = frozenset({"lost_node", "preemption", "relocation"})
_ABOUT_S = 5.0  # Rows have whole seconds, and clocks of two machines may differ a little.


@dataclass(frozen=True)
class Span:
    """`begin` and `end` in seconds since 1970; `text`: a sentence."""

    kind: str
    begin: float
    end: float
    text: str


def timeline(trial: Location) -> list[dict[str, Any]]:
    """The spans of a trial, in order and without overlaps, as dictionaries with the fields of
    `Span`. Raises `StorageError`."""
    with storage_errors("Reading the trial's records", trial):
        events = read_events(trial / EVENT_LOG)
        attempts = attempts_of(trial)
        with row_lookup(trial / "result.json") as rows:
            stretches = list(_stretches(attempts, rows))
    return [asdict(span) for span in _in_order(_spans(stretches, events)) if span.end > span.begin]


@dataclass(frozen=True)
class _Stretch:
    """What is left of an attempt: its first and last row, None if it has none."""

    number: int
    attempt: Attempt
    first: Mapping[str, Any] | None
    last: Mapping[str, Any] | None

    @property
    def begin(self) -> float | None:
        """When its first iteration began."""
        if self.first is None:
            return None
        return _number(self.first, "timestamp") - _number(self.first, "time_this_iter_s")

    @property
    def end(self) -> float | None:
        return None if self.last is None else _number(self.last, "timestamp")


def _number(row: Mapping[str, Any], key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def _stretches(attempts: Mapping[int, Attempt], rows: RowLookup) -> Iterator[_Stretch]:
    numbers = list(attempts)
    for place, number in enumerate(numbers):
        after = attempts[number].began_after
        # Later attempts cut the rows after their beginnings.
        upto = min((attempts[each].began_after for each in numbers[place + 1 :]), default=None)
        first = rows.around(after)[1]
        last = rows.last if upto is None else rows.around(upto)[0]
        is_empty = first is None or last is None or last[ITERATION] < first[ITERATION]
        yield _Stretch(number, attempts[number], *((None, None) if is_empty else (first, last)))


def _spans(stretches: Sequence[_Stretch], events: Sequence[LoggedEvent]) -> Iterator[Span]:
    recovered = {event.attempt: event for event in events if event.kind == RECOVERED}
    free_from: float | None = None  # When the attempt before ended.
    owed_s = 0.0  # Training that was lost, and is not done again yet.
    for place, stretch in enumerate(stretches):
        number, recovery = stretch.number, recovered.get(stretch.number)
        started = _started(stretch, recovery, free_from)
        # An attempt that dies before it has done all of that again leaves the rest to the next one.
        owed_s = max(owed_s, (recovery and recovery.redone_s) or 0.0)
        if free_from is not None and started is not None:
            yield _gap(free_from, started, events, failed=recovery is not None)
        following = stretches[place + 1].number if place + 1 < len(stretches) else None
        lost = None if following is None else recovered.get(following)
        died_at = None if lost is None else lost.time - (lost.away_s or 0.0)
        begin, end = stretch.begin, stretch.end
        if begin is None and died_at is not None and lost is not None and (lost.redone_s or 0) > 0:
            begin, end = died_at - (lost.redone_s or 0.0), died_at
        if begin is None or end is None:
            if started is not None:
                free_from = started
            continue
        if started is not None:
            yield Span("waiting", started, begin, f"Attempt {number} was starting.")
        redone = min(begin + owed_s, end)
        text = f"Attempt {number} trained again what the failure before it had cost."
        yield Span("repeated", begin, redone, text)
        owed_s = max(0.0, owed_s - ((stretch.end or begin) - begin))
        end = max(end, died_at) if died_at is not None else end
        yield Span("training", redone, end, _training(stretch, lost))
        free_from = end


def _started(
    stretch: _Stretch, recovery: LoggedEvent | None, free_from: float | None
) -> float | None:
    """When an attempt began, if that is known."""
    if recovery is not None:
        return recovery.time
    moment, begin = stretch.attempt.began_at, stretch.begin
    if begin is None or moment > begin or (free_from is not None and moment < free_from):
        return begin
    return moment


def _gap(begin: float, end: float, events: Sequence[LoggedEvent], *, failed: bool) -> Span:
    within = [event for event in events if begin - _ABOUT_S <= event.time <= end + _ABOUT_S]
    taken = next((event for event in within if event.kind in _TAKEN), None)
    if taken is not None:
        return Span("preempted", begin, end, taken.message)
    cause = next((event for event in within if event.kind == "failed"), None)
    if cause is not None:
        return Span("away", begin, end, cause.message)
    text = "The process ended without saving." if failed else "Stopped after saving."
    return Span("away", begin, end, f"{text} Nothing was trained.")


def _training(stretch: _Stretch, lost: LoggedEvent | None) -> str:
    text = f"Attempt {stretch.number} trained"
    if stretch.first is not None and stretch.last is not None:
        text += f" iterations {stretch.first[ITERATION]} to {stretch.last[ITERATION]}"
    if lost is not None and lost.redone_s:
        text += f"; the last {lost.redone_s:.0f} s were lost with its process"
    return f"{text}."


def _in_order(spans: Iterator[Span]) -> Iterator[Span]:
    """Without overlaps: clocks may differ, and rows have whole seconds."""
    reached = 0.0
    for span in spans:
        begin = max(span.begin, reached)
        reached = max(begin, span.end)
        yield Span(span.kind, begin, reached, span.text)
