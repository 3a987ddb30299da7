"""`result.json` and `progress.csv`, named and formatted as Tune's own loggers do.

    result.json     one JSON object a line, in order (numpy as plain numbers, NaN as NaN)
    progress.csv    a header, then one line a row, the row flattened with "/" and without "config";
                    a row without a column leaves the cell empty

The CSV is a function of result.json: its cells are written from the encoded JSON row. So it can be
written again from result.json at any time and comes out the same, byte for byte. It holds every key
that any row had: a new key rewrites the file with one more column at the end. (Tune's logger keeps
the columns of the first result only.)
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytrain.checkpoint.commit import Fence, nothing
from raytrain.errors import RaytrainError
from raytrain.records.append_file import AppendOnlyFile, lines_from_end, replace_file
from raytrain.storage.json import is_amount, parse_json

ITERATION = "training_iteration"
# Tune's names (`ray.air.constants`). Ray is not imported at the top of this module: commands that only
# look at files need not wait for it.
_COUNTERS = (
    ITERATION,
    "num_env_steps_sampled_lifetime",
    "num_episodes_lifetime",
    "time_total_s",
    "timestamp",
)
_END_OF_TIME = 1e11  # seconds since 1970; calendars end soon after
_RESULT_FILE, _PROGRESS_FILE = "result.json", "progress.csv"


@dataclass(frozen=True)
class Row:
    """One iteration's result: its line in result.json, and the same flattened."""

    iteration: int
    line: bytes
    flat: dict[str, Any]


def encode_row(result: Mapping[str, Any]) -> Row:
    """Raises KeyError without `training_iteration`."""
    from ray.tune.logger.json import SafeFallbackEncoder

    line = json.dumps(dict(result), cls=SafeFallbackEncoder)
    return _row(line.encode() + b"\n", json.loads(line))


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
    """An iteration's result; None for a damaged line, and for one whose counters are no such numbers."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get(ITERATION), int):
        return None
    right = all(is_amount(row.get(name, 0)) for name in _COUNTERS)
    return row if right and row.get("timestamp", 0) < _END_OF_TIME else None


class ResultJson:
    """The file that the other two can be rebuilt from."""

    def __init__(self, directory: Path, fence: Fence = nothing) -> None:
        self.path = directory / _RESULT_FILE
        self._fence = fence
        self._file: AppendOnlyFile | None = None
        self.last = 0

    def open(self, upto: int) -> None:
        """Cut everything after iteration `upto`, and a torn end. Raises OSError."""
        end, self.last = self._end_of(upto)
        self._file = AppendOnlyFile(self.path, end, self._fence)

    def _end_of(self, upto: int) -> tuple[int, int]:
        """Where the last row not after `upto` ends, and its iteration; (0, 0) without one."""
        if upto <= 0 or not self.path.exists():
            return 0, 0
        for offset, line in lines_from_end(self.path):
            row = decode_row(line)
            if row is not None and row.iteration <= upto:
                return offset + len(line), row.iteration
        return 0, 0

    def rows(self, upto: int) -> Iterator[Row]:
        """The rows up to iteration `upto`, in order."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            for line in file:
                row = decode_row(line)
                if row is not None and row.iteration <= upto:
                    yield row

    def write(self, row: Row) -> None:
        assert self._file is not None
        self._file.append(row.line)

    def descriptor(self) -> int | None:
        return None if self._file is None else self._file.duplicate()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class ProgressCsv:
    """progress.csv with all columns."""

    def __init__(self, directory: Path, source: ResultJson, fence: Fence = nothing) -> None:
        self.path = directory / _PROGRESS_FILE
        self._source = source
        self._fence = fence
        self._file: AppendOnlyFile | None = None
        self._columns: list[str] = []
        self._known: set[str] = set()

    def open(self, upto: int) -> None:
        """Cut to `upto`; rebuild from result.json if rows are missing. Raises OSError."""
        self.close()
        if upto <= 0:
            self._set_columns([])
            self._file = AppendOnlyFile(self.path, 0, self._fence)
            return
        columns = _read_columns(self.path)
        end, last = self._end_of(columns, upto)
        if columns and last >= self._source.last:
            self._set_columns(columns)
            self._file = AppendOnlyFile(self.path, end, self._fence)
        else:
            self._rebuild(upto)

    def _end_of(self, columns: list[str], upto: int) -> tuple[int, int]:
        if not columns:
            return 0, 0
        for offset, line in lines_from_end(self.path):
            iteration = _csv_iteration(line, columns)
            if iteration is not None and iteration <= upto:
                return offset + len(line), iteration
        # No row fits: the header stays, if the rows were only after `upto`.
        return len(_csv_line(columns)), 0

    def _rebuild(self, upto: int) -> None:
        columns: dict[str, None] = {}
        for row in self._source.rows(upto):
            columns.update(dict.fromkeys(row.flat))
        self._set_columns(list(columns))
        self._replace(self._line(row.flat) for row in self._source.rows(upto))

    def _set_columns(self, columns: list[str]) -> None:
        self._columns, self._known = columns, set(columns)

    def _line(self, flat: Mapping[str, Any]) -> bytes:
        return _csv_line([flat.get(column, "") for column in self._columns])

    def _replace(self, lines: Iterable[bytes]) -> None:
        def chunks() -> Iterator[bytes]:
            if self._columns:
                yield _csv_line(self._columns)
            yield from lines

        replace_file(self.path, chunks(), self.path.name, self._fence)
        if self._file is not None:
            self._file.close()
        self._file = AppendOnlyFile(self.path, fence=self._fence)

    def write(self, row: Row) -> None:
        new = [key for key in row.flat if key not in self._known]
        if new:
            self._add_columns(new)
        assert self._file is not None
        self._file.append(self._line(row.flat))

    def _add_columns(self, new: list[str]) -> None:
        assert self._file is not None
        # The last moment to learn that the rows to be copied never reached the disk.
        self._file.sync()
        old, size = self._columns, self._file.size
        self._set_columns([*old, *new])
        try:
            self._replace(_widened(self.path, size, len(new)))
        except (OSError, RaytrainError):
            self._set_columns(old)
            raise

    def descriptor(self) -> int | None:
        return None if self._file is None else self._file.duplicate()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _csv_line(cells: Iterable[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue().encode()


def _read_columns(path: Path) -> list[str]:
    """The header's names; empty if the file or the header is missing or damaged."""
    try:
        with open(path, "rb") as file:
            header = file.readline()
        columns = next(csv.reader([header.decode()], strict=True))
    except (FileNotFoundError, UnicodeDecodeError, csv.Error, StopIteration):
        return []
    return columns if header.endswith(b"\r\n") and ITERATION in columns else []


def _csv_iteration(line: bytes, columns: list[str]) -> int | None:
    """The iteration of a whole row; None for a torn or damaged one, and for the header."""
    if not line.endswith(b"\r\n"):
        return None
    try:
        cells = next(csv.reader([line.decode()], strict=True))
        if len(cells) != len(columns):
            return None
        return int(cells[columns.index(ITERATION)])
    except (ValueError, csv.Error, StopIteration):
        return None


def _widened(path: Path, size: int, extra: int) -> Iterator[bytes]:
    """The rows in the first `size` bytes of a CSV file, without its header, with empty cells."""
    if size == 0:
        return
    with open(path, "rb") as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
        rows = csv.reader(text)
        end = 0
        for number, cells in enumerate(rows):
            end += len(_csv_line(cells))
            if end > size:
                return  # the remains of a failed write
            if number:
                yield _csv_line(cells + [""] * extra)
