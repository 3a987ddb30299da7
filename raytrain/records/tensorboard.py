"""TensorBoard event files, with every step exactly once and in order in the raw files.

    events.out.tfevents.<seconds>.<host>      one or more files, read in the order of their names
    file    record*
    record  length u64 | masked CRC-32C of those 8 bytes | data | masked CRC-32C of data
    data    an Event: the file's version in the first, a step with its scalars in the others

All scalars of an iteration are in one Event, not one Event each as Tune's logger writes them: it is
cheaper and an iteration is there completely or not at all. Tags are Tune's, `ray/tune/<flattened
key>`; the step is `training_iteration` (Tune prefers `timesteps_total`, which RLlib's new API stack
does not report); NaN is left out, as is what is not a number. There is no SummaryWriter here: those
append to a file of their own and cannot cut one.
"""

from __future__ import annotations

import math
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from raytrain.checkpoint.commit import Fence, nothing
from raytrain.records.append_file import (
    AppendOnlyFile,
    read_in_blocks,
    replace_file,
    sync_directory,
)
from raytrain.records.row_files import ResultJson, Row

_PREFIX = "events.out.tfevents."
# Not "tfevents": TensorBoard reads every file with that in its name.
_TEMPORARY = "events"
_NOT_LOGGED = {"config", "pid", "timestamp", "time_total_s", "training_iteration"}
_ILLEGAL_IN_TAG = re.compile(r"[^-/\w\.]")
_HEAD = 12  # bytes of a record before its data
_TAIL = 4


def _check(data: bytes) -> bytes:
    """The masked CRC-32C, as it stands in a record."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", (crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF)


def _record(event: Event) -> bytes:
    data: bytes = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + _check(length) + data + _check(data)


def _version_record(now: float) -> bytes:
    return _record(Event(wall_time=now, file_version="brain.Event:2"))


def _row_record(row: Row) -> bytes:
    values = [
        Summary.Value(tag=_tag(key), simple_value=_double(value))
        for key, value in row.flat.items()
        if isinstance(value, (int, float))
        and value == value  # noqa: PLR0124 - false for NaN
        and key not in _NOT_LOGGED
    ]
    return _record(
        Event(wall_time=_wall_time(row.flat), step=row.iteration, summary=Summary(value=values))
    )


@lru_cache(maxsize=4096)
def _tag(key: str) -> str:
    return _ILLEGAL_IN_TAG.sub("_", f"ray/tune/{key}")


def _double(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond double precision
        return math.inf if value > 0 else -math.inf


def _wall_time(flat: Mapping[str, Any]) -> float:
    timestamp = flat.get("timestamp")
    return float(timestamp) if isinstance(timestamp, (int, float)) else time.time()


@dataclass(frozen=True)
class _Scan:
    """The whole records of one file: (step, start, end); step 0 is the file's version."""

    path: Path
    records: list[tuple[int, int, int]]
    whole: bool  # nothing behind the last record

    def steps(self, upto: int) -> list[int]:
        return [step for step, _, _ in self.records if 0 < step <= upto]

    def to_drop(self, upto: int) -> bool:
        return not self.whole or any(step > upto for step, _, _ in self.records)


def scan(path: Path) -> _Scan:
    """Read and check every record. The first that does not hold together ends the scan."""
    records: list[tuple[int, int, int]] = []
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        position = 0
        while (data := _read_record(file, size - position)) is not None:
            end = position + _HEAD + len(data) + _TAIL
            records.append((Event.FromString(data).step, position, end))
            position = end
    return _Scan(path, records, position == size)


def _read_record(file: BinaryIO, left: int) -> bytes | None:
    """The data of the next record; None if it is torn, damaged or missing."""
    head = file.read(_HEAD)
    if len(head) < _HEAD or _check(head[:8]) != head[8:]:
        return None
    (length,) = struct.unpack("<Q", head[:8])
    if _HEAD + length + _TAIL > left:
        return None
    data, check = file.read(length), file.read(_TAIL)
    return data if _check(data) == check else None


class EventFiles:
    """All event files of a trial's directory."""

    def __init__(
        self,
        directory: Path,
        source: ResultJson,
        clock: Callable[[], float] = time.time,
        fence: Fence = nothing,
    ) -> None:
        self._directory = directory
        self._fence = fence
        self._source = source
        self._clock = clock
        self._file: AppendOnlyFile | None = None

    def paths(self) -> list[Path]:
        return sorted(self._directory.glob(f"{_PREFIX}*"))

    def open(self, upto: int) -> None:
        """Drop what is after `upto`; rebuild from result.json if steps lack. Raises OSError."""
        self.close()
        scans = [scan(path) for path in self.paths()]
        steps = [step for each in scans for step in each.steps(upto)]
        if self._is_incomplete(steps, upto):
            self._rebuild(upto)
            return
        changed = [self._cut(each, upto) for each in scans]
        # A file that was cut is not continued: a TensorBoard that is watching stays behind its old
        # end, and would miss what is written before that.
        if scans and not changed[-1]:
            self._file = AppendOnlyFile(scans[-1].path, fence=self._fence)

    def _is_incomplete(self, steps: list[int], upto: int) -> bool:
        """Whether result.json has what the event files lack or repeat."""
        last = self._source.last
        if last < max(steps, default=0) or last == 0:
            return False
        # result.json may begin later, if somebody deleted it in the meantime.
        first = min(next(self._source.rows(upto)).iteration, *steps[:1], last)
        return steps != list(range(first, last + 1))

    def _cut(self, scanned: _Scan, upto: int) -> bool:
        """Rewrite a file that holds something to drop; true if it did."""
        if not scanned.to_drop(upto):
            return False
        path = scanned.path
        kept = [(start, end) for step, start, end in scanned.records if step <= upto]
        if scanned.steps(upto):
            blocks = (block for start, end in kept for block in read_in_blocks(path, start, end))
            replace_file(path, blocks, _TEMPORARY, self._fence)
        else:
            self._fence()
            path.unlink()
        return True

    def _rebuild(self, upto: int) -> None:
        old, path = self.paths(), self._next_path()

        def records() -> Iterator[bytes]:
            yield _version_record(self._clock())
            for row in self._source.rows(upto):
                yield _row_record(row)

        replace_file(path, records(), _TEMPORARY, self._fence)
        sync_directory(self._directory)
        # A crash before the last of these leaves repeated steps, and the next start rebuilds again.
        for each in old:
            self._fence()
            each.unlink()
        self._file = AppendOnlyFile(path, fence=self._fence)

    def _next_path(self) -> Path:
        """A new name that sorts behind the present ones."""
        seconds = int(self._clock())
        for path in self.paths():
            number = path.name.removeprefix(_PREFIX).split(".")[0]
            seconds = max(seconds, int(number) + 1 if number.isdecimal() else 0)
        return self._directory / f"{_PREFIX}{seconds:010d}.{socket.gethostname()}"

    def write(self, row: Row) -> None:
        if self._file is None:
            self._file = AppendOnlyFile(self._next_path())
        if self._file.size == 0:
            self._file.append(_version_record(self._clock()))
        self._file.append(_row_record(row))

    def descriptor(self) -> int | None:
        return None if self._file is None else self._file.duplicate()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
