"""TensorBoard event files, with every step exactly once and in order in the raw files.

    events.out.tfevents.<seconds>.<host>      one or more files, read in the order of their names
    file    record*
    record  length u64 | masked CRC-32C of those 8 bytes | data | masked CRC-32C of data
    data    an Event: the file's version in the first, a step with its scalars in the others

All scalars of an iteration are in one Event, not one Event each as Tune's logger writes them: this
is cheaper, and an iteration is there completely or not at all. Tags are Tune's,
`ray/tune/<flattened key>`; the step is `training_iteration` (Tune prefers `timesteps_total`, which
RLlib's new API stack does not report); NaN and values that are not numbers are left out.

TensorBoard's EventFileWriter appends to a new file and cannot cut one. TensorBoard's RecordWriter
computes the checksum in Python, which takes 1 ms per iteration instead of 1 µs, also for each row
that a resume checks.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from raytrain.checkpoint.commit import Fence
from raytrain.records.append_file import AppendOnlyFile, read_in_blocks, replace_file
from raytrain.records.metrics import double
from raytrain.records.row_files import EVENT_FILE, ResultJson, Row, RowFile
from raytrain.storage.location import fsync

# Not "tfevents": TensorBoard reads every file with that in its name.
_TEMPORARY = "events"
_NOT_LOGGED = {"config", "pid", "timestamp", "time_total_s", "training_iteration"}
_ILLEGAL_IN_TAG = re.compile(r"[^-/\w\.]")
_HEAD = 12  # bytes of a record before its data
_TAIL = 4


def _check(data: bytes) -> bytes:
    """The masked CRC-32C of a record."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", (crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF)


def _record(event: Event) -> bytes:
    data: bytes = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + _check(length) + data + _check(data)


def _version_record() -> bytes:
    return _record(Event(wall_time=time.time(), file_version="brain.Event:2"))


def _row_record(row: Row) -> bytes:
    values = [
        Summary.Value(tag=_tag(key), simple_value=double(value))
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


def _wall_time(flat: Mapping[str, Any]) -> float:
    timestamp = flat.get("timestamp")
    return float(timestamp) if isinstance(timestamp, (int, float)) else time.time()


def scan(path: Path) -> tuple[list[tuple[int, int]], bool]:
    """(step, end) of every record, step 0 for the file's version; and whether nothing follows.

    The first record that is torn or damaged ends the scan.
    """
    records: list[tuple[int, int]] = []
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        position = 0
        while (data := _read_record(file, size - position)) is not None:
            position += _HEAD + len(data) + _TAIL
            records.append((Event.FromString(data).step, position))
    return records, position == size


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


class EventFiles(RowFile):
    """All event files of a trial's directory; the last one is written to."""

    def __init__(self, directory: Path, source: ResultJson, fence: Fence) -> None:
        super().__init__(fence)
        self._directory = directory
        self._source = source

    def paths(self) -> list[Path]:
        return sorted(self._directory.glob(f"{EVENT_FILE}*"))

    def _open(self, upto: int) -> None:
        """Cut to `upto`; rebuild from result.json if steps are missing or repeated."""
        scans = [(path, *scan(path)) for path in self.paths()]
        steps = [step for _, records, _ in scans for step, _ in records if 0 < step <= upto]
        if self._is_incomplete(steps, upto):
            self._rebuild(upto)
            return
        # A file that is cut is not continued: a TensorBoard that is watching stays behind its old
        # end, and would miss what is written before that.
        continued: Path | None = None
        for path, records, is_whole in scans:
            kept = list(takewhile(lambda record: record[0] <= upto, records))
            continued = path if is_whole and kept == records else None
            if continued is None:
                self._cut(path, kept)
        if continued is not None:
            self._file = AppendOnlyFile(continued, fence=self._fence)

    def _is_incomplete(self, steps: list[int], upto: int) -> bool:
        """Whether result.json has what the event files lack or repeat."""
        last = self._source.last
        if last < max(steps, default=0) or last == 0:
            return False
        # result.json may begin later, if a user deleted it in the meantime.
        first = min(next(self._source.rows(upto)).iteration, *steps[:1], last)
        return steps != list(range(first, last + 1))

    def _cut(self, path: Path, kept: list[tuple[int, int]]) -> None:
        if any(step > 0 for step, _ in kept):
            replace_file(path, read_in_blocks(path, kept[-1][1]), _TEMPORARY, self._fence)
        else:
            self._fence()
            path.unlink()

    def _rebuild(self, upto: int) -> None:
        old, path = self.paths(), self._next_path()

        def records() -> Iterator[bytes]:
            yield _version_record()
            yield from map(_row_record, self._source.rows(upto))

        replace_file(path, records(), _TEMPORARY, self._fence)
        fsync(self._directory)
        # A crash before the last deletion leaves repeated steps, and the next start rebuilds again.
        for outdated in old:
            self._fence()
            outdated.unlink()
        self._file = AppendOnlyFile(path, fence=self._fence)

    def _next_path(self) -> Path:
        """A new name that sorts behind the present ones."""
        seconds = int(time.time())
        for path in self.paths():
            number = path.name.removeprefix(EVENT_FILE).split(".")[0]
            seconds = max(seconds, int(number) + 1 if number.isdecimal() else 0)
        return self._directory / f"{EVENT_FILE}{seconds:010d}.{socket.gethostname()}"

    def _write(self, row: Row) -> None:
        if self._file is None:
            self._file = AppendOnlyFile(self._next_path())
        if self._file.size == 0:
            self._file.append(_version_record())
        self._file.append(_row_record(row))
