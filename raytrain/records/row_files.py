"""`result.json` and `progress.csv`, named and formatted as Tune's own loggers do.

    result.json     one JSON object per line, in order (NumPy numbers as plain numbers, NaN as NaN)
    progress.csv    a header, then one line per row: the row flattened with "/" and without
                    "config"; a row without a column leaves the cell empty

The CSV is a function of result.json: its cells are written from the encoded JSON row. So it can be
rebuilt from result.json at any time, byte for byte. It has every key that any row has: a new key
rewrites the file with one more column at the end. (Tune's logger keeps the columns of the first
result only.)

Images and videos, which callbacks may report among the metrics, are in no record: their number of
values stands in their place (`recordable`).

A resume cuts both files to the checkpoint's iteration; a rebuild is only for a damaged file. For
100,000 rows of 100 numbers a cut takes under 1 ms and a rebuild 40 s.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from raytrain.checkpoint.commit import Fence
from raytrain.records.append_file import (
    AppendOnlyFile,
    lines_from_end,
    read_in_blocks,
    replace_file,
)
from raytrain.storage import Location
from raytrain.storage.json import is_amount, parse_json

EVENT_FILE = "events.out.tfevents."
"""What the name of a TensorBoard file begins with."""
ROW_FILES = ("result.json", "progress.csv", f"{EVENT_FILE}*")
ITERATION = "training_iteration"
# Tune's names (`ray.air.constants`). This module imports Ray late: commands that only look at files
# need not wait for it.
_COUNTERS = (
    ITERATION,
    "num_env_steps_sampled_lifetime",
    "num_episodes_lifetime",
    "time_total_s",
    "timestamp",
)
_END_OF_TIME = 1e11  # seconds since 1970; calendars end soon after
_TAIL = 1 << 20  # bytes: a row has some thousand
_MOST_VALUES = 10_000  # of one metric
# By default the reader takes a cell of more than 131,072 characters for a mistake.
csv.field_size_limit(sys.maxsize)


@dataclass(frozen=True)
class Row:
    """One iteration's result: its line in result.json, and the same flattened. `left_out`: metrics
    that are too large to be recorded."""

    iteration: int
    line: bytes
    flat: dict[str, Any]
    left_out: tuple[str, ...] = ()


def encode_row(result: Mapping[str, Any]) -> Row:
    """Raises KeyError without `training_iteration`."""
    from ray.tune.logger.json import SafeFallbackEncoder

    plain, left_out = recordable(result)
    line = json.dumps(plain, cls=SafeFallbackEncoder)
    row = _row(line.encode() + b"\n", json.loads(line))
    return replace(row, left_out=left_out) if left_out else row


def recordable(result: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The metrics as they are recorded, and the keys of those that are too large for it."""
    left_out: list[str] = []
    plain: dict[str, Any] = _without_large(result, "", left_out)
    return plain, tuple(left_out)


def _without_large(value: Any, key: str, left_out: list[str]) -> Any:
    """The value with a text in the place of each metric of too many values."""
    if isinstance(value, Mapping):
        begin = f"{key}/" if key else ""
        return {k: _without_large(v, f"{begin}{k}", left_out) for k, v in value.items()}
    size = _size(value)
    if size <= _MOST_VALUES:
        return value
    left_out.append(key)
    return f"{size:,} values, which are not recorded"


def _size(value: Any) -> int:
    if isinstance(value, (list, tuple)):
        return sum(map(_size, value))
    numel = getattr(value, "numel", None)  # Torch's
    return int(value.size if isinstance(value, np.ndarray) else numel() if callable(numel) else 1)


def _row(line: bytes, decoded: dict[str, Any]) -> Row:
    decoded.pop("config", None)
    from ray.tune.utils import flatten_dict

    flat = flatten_dict(decoded, delimiter="/")
    return Row(int(flat[ITERATION]), line, flat)


def decode_row(line: bytes) -> Row | None:
    """None for a torn or damaged line."""
    row = read_row(line) if line.endswith(b"\n") else None
    return None if row is None else _row(line, row)


def read_row(line: bytes) -> dict[str, Any] | None:
    """An iteration's result; None for a damaged line or counters that are not amounts."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get(ITERATION), int):
        return None
    valid = all(is_amount(row.get(name, 0)) for name in _COUNTERS)
    return row if valid and row.get("timestamp", 0) < _END_OF_TIME else None


def last_row(results: Location) -> dict[str, Any] | None:
    """The last whole line of a result.json; None if there is none. Raises OSError."""
    try:
        with results.reader() as file:
            rows = (read_row(line) for _, line in lines_from_end(file, _TAIL))
            return next((row for row in rows if row is not None), None)
    except FileNotFoundError:
        return None


def rows_after(results: Location, iteration: int) -> Iterator[dict[str, Any]]:
    """The whole lines of a result.json after an iteration, the last first. Raises OSError."""
    try:
        with results.reader() as file:
            for _, line in lines_from_end(file):
                row = read_row(line)
                if row is not None and row[ITERATION] <= iteration:
                    return
                if row is not None:
                    yield row
    except FileNotFoundError:
        return


class RowFile(ABC):
    """One record file, and up to which iteration it has the rows."""

    def __init__(self, fence: Fence) -> None:
        self._fence = fence
        self._file: AppendOnlyFile | None = None
        self._written: int | None = None  # None: not open

    def catch_up(self, durable: int, rows: Iterable[Row]) -> None:
        """Write the rows that the file lacks; if it is not open, cut it to iteration `durable`.

        `rows` are all rows after `durable`, in order. Raises OSError; the next call continues.
        """
        if self._written is None:
            self.close()
            self._open(durable)
            self._written = durable
        for row in rows:
            if row.iteration > self._written:
                self._write(row)
                self._written = row.iteration

    def sync_at_exit(self, stack: ExitStack) -> None:
        """fsync the file, if it is open, when `stack` is left."""
        if self._file is not None:
            self._file.sync_at_exit(stack)

    def close(self) -> None:
        self._written = None
        if self._file is not None:
            self._file.close()
            self._file = None

    @abstractmethod
    def _open(self, upto: int) -> None:
        """Cut everything after iteration `upto`, and a torn end. Raises OSError."""

    @abstractmethod
    def _write(self, row: Row) -> None:
        """Raises OSError."""


class ResultJson(RowFile):
    """The file that the others can be rebuilt from."""

    def __init__(self, directory: Path, fence: Fence) -> None:
        super().__init__(fence)
        self.path = directory / "result.json"
        self.last = 0
        """Iteration of the last row that the file had when it was opened."""

    def _open(self, upto: int) -> None:
        end, self.last = _end_of(self.path, upto, _json_iteration)
        self._file = AppendOnlyFile(self.path, end, self._fence)

    def rows(self, upto: int) -> Iterator[Row]:
        """The rows up to iteration `upto`, in order."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            for line in file:
                row = decode_row(line)
                if row is not None and row.iteration <= upto:
                    yield row

    def _write(self, row: Row) -> None:
        assert self._file is not None
        self._file.append(row.line)


class ProgressCsv(RowFile):
    """progress.csv with all columns."""

    def __init__(self, directory: Path, source: ResultJson, fence: Fence) -> None:
        super().__init__(fence)
        self.path = directory / "progress.csv"
        self._source = source
        self._columns: dict[str, None] = {}  # an ordered set

    def _open(self, upto: int) -> None:
        """Cut to `upto`; rebuild from result.json if rows are missing."""
        columns = _read_columns(self.path)
        end, last = _end_of(self.path, upto, partial(_csv_iteration, columns=columns))
        if upto > 0 and (not end or last < self._source.last):
            self._rebuild(upto)
        else:
            self._columns = dict.fromkeys(columns if end else ())
            self._file = AppendOnlyFile(self.path, end, self._fence)

    def _rebuild(self, upto: int) -> None:
        columns: dict[str, None] = {}
        for row in self._source.rows(upto):
            columns.update(dict.fromkeys(row.flat))
        self._replace(columns, (_cells(row, columns) for row in self._source.rows(upto)))

    def _replace(self, columns: dict[str, None], rows: Iterable[Iterable[Any]]) -> None:
        lines = map(_csv_line, chain([columns] if columns else [], rows))
        replace_file(self.path, lines, self.path.name, self._fence)
        if self._file is not None:
            self._file.close()
        self._file = AppendOnlyFile(self.path, fence=self._fence)
        self._columns = columns

    def _write(self, row: Row) -> None:
        assert self._file is not None
        new = [key for key in row.flat if key not in self._columns]
        if new:
            # The last moment to learn that the rows to be copied never reached the disk.
            self._file.sync()
            columns = self._columns | dict.fromkeys(new)
            self._replace(columns, _widened(self.path, len(new)))
        self._file.append(_csv_line(_cells(row, self._columns)))


def _end_of(path: Path, upto: int, iteration_of: Callable[[bytes], int | None]) -> tuple[int, int]:
    """Where the last row not after `upto` ends, and its iteration; (0, 0) without one."""
    if upto > 0 and path.exists():
        with open(path, "rb") as file:
            for offset, line in lines_from_end(file):
                iteration = iteration_of(line)
                if iteration is not None and iteration <= upto:
                    return offset + len(line), iteration
    return 0, 0


def _json_iteration(line: bytes) -> int | None:
    row = decode_row(line)
    return None if row is None else row.iteration


def _csv_iteration(line: bytes, columns: list[str]) -> int | None:
    """The iteration of a whole row; None for a torn or damaged one, and for the header."""
    try:
        cells = next(csv.reader([line.decode()], strict=True))
        if line.endswith(b"\r\n") and len(cells) == len(columns):
            return int(cells[columns.index(ITERATION)])
    except (ValueError, csv.Error, StopIteration):
        pass
    return None


def _read_columns(path: Path) -> list[str]:
    """The header's names; empty if the file or the header is missing or damaged."""
    try:
        with open(path, "rb") as file:
            header = file.readline()
        columns = next(csv.reader([header.decode()], strict=True))
    except (FileNotFoundError, UnicodeDecodeError, csv.Error, StopIteration):
        return []
    return columns if header.endswith(b"\r\n") and ITERATION in columns else []


def _cells(row: Row, columns: Iterable[str]) -> list[Any]:
    return [row.flat.get(column, "") for column in columns]


def _csv_line(cells: Iterable[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue().encode()


def _widened(path: Path, extra: int) -> Iterator[list[str]]:
    """The rows of a CSV file, without its header, each with `extra` empty cells at the end."""
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.reader(file)
        next(rows, None)
        for cells in rows:
            yield cells + [""] * extra


def detach_row_files(directory: Path, fence: Fence) -> None:
    """Replace each row file by a copy of itself.

    A process that still has the old file open, on a node that was cut off, then writes where nobody
    reads. Raises OSError.
    """
    for pattern in ROW_FILES:
        for path in sorted(directory.glob(pattern)):
            # TensorBoard reads every file with "tfevents" in its name.
            name = path.name.replace("tfevents", "left_behind")
            replace_file(path, read_in_blocks(path, path.stat().st_size), name, fence)
