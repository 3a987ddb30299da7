"""Single rows of a result.json, found by bisection: it has each iteration once and in order."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from typing import Any

from raytrain.records.append_file import lines_from_end
from raytrain.records.row_files import ITERATION, read_row
from raytrain.storage import Location

Row = dict[str, Any]


@contextmanager
def row_lookup(results: Location) -> Iterator[RowLookup]:
    """The rows of a file; none if it does not exist. Raises OSError."""
    with ExitStack() as stack:
        file: Any = io.BytesIO()
        with suppress(FileNotFoundError):
            if results.is_local:
                file = stack.enter_context(io.BufferedReader(stack.enter_context(results.reader())))
            else:  # Each step would be a request.
                file = io.BytesIO(results.read_bytes())
        yield RowLookup(file)


class RowLookup:
    """See `row_lookup`."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)

    @cached_property
    def last(self) -> Row | None:
        """The last row of the file."""
        rows = (read_row(line) for _, line in lines_from_end(self._file))
        return next((row for row in rows if row is not None), None)

    def around(self, iteration: int) -> tuple[Row | None, Row | None]:
        """The last row not after an iteration, and the first row after it."""
        before = after = None
        low, high = 0, self._size
        while low < high:
            middle = (low + high) // 2
            row, end = self._first_from(middle)
            if row is not None and row[ITERATION] <= iteration:
                before, low = row, end
            else:
                after, high = row or after, middle
        return before, after

    def _first_from(self, position: int) -> tuple[Row | None, int]:
        """The first row that begins at a position or after it, and where it ends."""
        self._file.seek(max(0, position - 1))
        if position:
            self._file.readline()
        while line := self._file.readline():
            row = read_row(line)
            if row is not None:
                return row, self._file.tell()
        return None, self._size
