"""TensorBoard event files, with every step exactly once and in order in the raw files.

    events.out.tfevents.<seconds>.<host>      one or more files, read in the order of their names
    file    record*
    record  length u64 | masked CRC-32C of those 8 bytes | data | masked CRC-32C of data
    data    an Event: wall_time = 1 (double), step = 2 (int64), file_version = 3 (string),
            summary = 5 { repeated value = 1 { tag = 1 (string), simple_value = 2 (float) } }

All scalars of an iteration are in one Event, not one Event each as Tune's logger writes them: it is
cheaper and an iteration is there completely or not at all. Tags are Tune's, `ray/tune/<flattened
key>`; the step is `training_iteration` (Tune prefers `timesteps_total`, which RLlib's new API stack
does not report); NaN is left out, as is what is not a number. Events are encoded here: importing
tensorboardX takes longer than a restart can spare.
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
from pathlib import Path
from typing import Any

from raytrain.reporting.appending import AppendOnlyFile, read_in_blocks, replace_file
from raytrain.reporting.crc32c import masked_crc32c
from raytrain.reporting.tabular import ResultJson, Row

_PREFIX = "events.out.tfevents."
# Not to contain "tfevents": TensorBoard reads every file with that in its name.
_TEMPORARY = ".events.tmp"
_NOT_LOGGED = {"config", "pid", "timestamp", "time_total_s", "training_iteration"}
_ILLEGAL_IN_TAG = re.compile(r"[^-/\w\.]")


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _sized(tag: bytes, payload: bytes) -> bytes:
    return tag + _varint(len(payload)) + payload


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    checks = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return length + next(checks) + data + next(checks)


def _version_record(now: float) -> bytes:
    return _record(b"\x09" + struct.pack("<d", now) + _sized(b"\x1a", b"brain.Event:2"))


def _single(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except (OverflowError, struct.error):  # beyond single or double precision
        return struct.pack("<f", math.inf if value > 0 else -math.inf)


class EventEncoder:
    """Row -> record. Remembers the encoded tags, which are most of the bytes."""

    def __init__(self) -> None:
        self._tags: dict[str, bytes] = {}

    def _tag(self, key: str) -> bytes:
        """A Summary.Value up to the four bytes of its number."""
        encoded = self._tags.get(key)
        if encoded is None:
            name = _ILLEGAL_IN_TAG.sub("_", f"ray/tune/{key}").encode()
            value = _sized(b"\x0a", name) + b"\x15"
            encoded = self._tags[key] = b"\x0a" + _varint(len(value) + 4) + value
        return encoded

    def record(self, row: Row) -> bytes:
        values = b"".join(
            self._tag(key) + _single(value)
            for key, value in row.flat.items()
            if isinstance(value, (int, float))
            and value == value  # noqa: PLR0124 - false for NaN
            and key not in _NOT_LOGGED
        )
        wall_time = _wall_time(row.flat)
        head = b"\x09" + struct.pack("<d", wall_time) + b"\x10" + _varint(row.iteration)
        return _record(head + _sized(b"\x2a", values))


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


def _step(data: bytes) -> int:
    """The step of an Event, whose fields come in the order of their numbers."""
    if data[:1] != b"\x09" or data[9:10] != b"\x10":
        return 0
    step = 0
    for shift, byte in enumerate(data[10:20]):
        step |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            break
    return step


def scan(path: Path) -> _Scan:
    """Hop from record to record without reading their contents; the last one is checked in full.

    A kill tears the end only, so the first record that does not hold together ends the scan.
    """
    records: list[tuple[int, int, int]] = []
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        position = 0
        while position + 16 <= size:
            head = os.pread(file.fileno(), 32, position)
            length, check = struct.unpack("<QI", head[:12])
            end = position + 16 + length
            if end > size or masked_crc32c(head[:8]) != check:
                break
            records.append((_step(head[12 : 12 + length]), position, end))
            position = end
        while records and not _is_sound(file.fileno(), *records[-1][1:]):
            position = records.pop()[1]
    return _Scan(path, records, position == size)


def _is_sound(descriptor: int, start: int, end: int) -> bool:
    data = os.pread(descriptor, end - start - 12, start + 12)
    return struct.pack("<I", masked_crc32c(data[:-4])) == data[-4:]


class EventFiles:
    """All event files of a trial's directory."""

    def __init__(
        self, directory: Path, source: ResultJson, clock: Callable[[], float] = time.time
    ) -> None:
        self._directory = directory
        self._source = source
        self._clock = clock
        self._encoder = EventEncoder()
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
            self._file = AppendOnlyFile(scans[-1].path)

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
            replace_file(path, blocks, _TEMPORARY)
        else:
            path.unlink()
        return True

    def _rebuild(self, upto: int) -> None:
        old, path = self.paths(), self._next_path()

        def records() -> Iterator[bytes]:
            yield _version_record(self._clock())
            for row in self._source.rows(upto):
                yield self._encoder.record(row)

        replace_file(path, records(), _TEMPORARY)
        # A crash before the last of these leaves repeated steps, and the next start rebuilds again.
        for each in old:
            each.unlink()
        self._file = AppendOnlyFile(path)

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
        self._file.append(self._encoder.record(row))

    def descriptor(self) -> int | None:
        return None if self._file is None else self._file.duplicate()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
