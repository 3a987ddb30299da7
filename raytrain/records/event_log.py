"""What went wrong with a trial and how it continued: `<trial>/events.jsonl`.

    {"time": 1700000000.0, "attempt": 2, "iteration": 41, "kind": "restored", "message": "..."}

One JSON object per line, only ever appended: a resume does not cut it as it cuts the other records,
for it reports on the attempts themselves. The driver and the trial both write to it. An event of
kind `recovered` also has `redone_s` and `away_s` (see `downtime`). One of kind `notice` says that a
node is about to end (`node_notice`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from raytrain.storage import Location
from raytrain.storage.json import is_amount, parse_json

EVENT_LOG = "events.jsonl"
_NOTICE = "notice"


@dataclass(frozen=True)
class LoggedEvent:
    """`time` in seconds since 1970; `attempt` counts the trial's processes from 1."""

    time: float
    attempt: int
    iteration: int
    kind: str
    message: str
    redone_s: float | None = None
    away_s: float | None = None


class EventLog:
    """Append events to `path`. Events that the disk refuses are written with the next one."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._waiting: list[bytes] = []

    def write(
        self, kind: str, message: str, *, attempt: int, iteration: int, **seconds: float
    ) -> OSError | None:
        """`seconds`: `redone_s` and `away_s` of a `LoggedEvent`.

        Returns the error if the event could not be written yet, and does not raise it.
        """
        event = LoggedEvent(self._clock(), attempt, iteration, kind, message, **seconds)
        plain = {key: value for key, value in asdict(event).items() if value is not None}
        self._waiting.append(json.dumps(plain).encode() + b"\n")
        try:
            self._append(b"".join(self._waiting))
        except OSError as error:
            return error
        self._waiting.clear()
        return None

    def _append(self, data: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                data = b"\n" + data  # leave a torn line to itself
            written = os.write(descriptor, data)
            if written < len(data):
                raise OSError(f"only {written} of {len(data)} bytes could be written")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_events(path: Path | Location) -> list[LoggedEvent]:
    """All whole lines, oldest first; torn and damaged lines are ignored. Empty without a file.

    Events are written again if a full disk cut some of them off, so one may be in the file twice:
    repeats are left out.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    events = dict.fromkeys(map(_read, lines))
    return [event for event in events if event is not None]


def node_notice(address: str, ends: float | None) -> tuple[str, str]:
    """Kind and message of the event that a node is drained. `ends`: seconds since 1970."""
    until = "" if ends is None else f" and ends at {datetime.fromtimestamp(ends, UTC):%H:%M:%S} UTC"
    return _NOTICE, f"the node {address} is being drained{until}"


def notices_of(address: str, events: Iterable[LoggedEvent], since: float) -> list[LoggedEvent]:
    """The events that say that the node at `address` is drained, from the time `since` on: another
    node may have had the address before."""
    begins = f"the node {address} "
    return [
        event
        for event in events
        if event.kind == _NOTICE and event.time >= since and event.message.startswith(begins)
    ]


def _read(line: bytes) -> LoggedEvent | None:
    try:
        event = LoggedEvent(**parse_json(line))
    except (ValueError, TypeError):
        return None
    lost = [seconds for seconds in (event.redone_s, event.away_s) if seconds is not None]
    numbers = (event.time, event.attempt, event.iteration, *lost)
    texts = (event.kind, event.message)
    valid = all(map(is_amount, numbers)) and all(isinstance(text, str) for text in texts)
    return event if valid else None
