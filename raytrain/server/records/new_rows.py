"""The rows of a result.json that were written since it was read last.

A cursor is the end of the last line that was read, the length of the line, and its digest:

    18234.1520.6f0c...

A resume cuts the rows after its checkpoint, and writes others at the same place. Every row has the
time at which it was written, so if the bytes before the cursor are no longer that line, rows were
cut. Then the file is read from its beginning: `reset`.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from raytrain.records.row_files import read_row
from raytrain.storage import Location
from raytrain.storage.json import LARGEST

START = ""
_CURSOR = re.compile(r"\d{1,15}\.\d{1,15}\.[0-9a-f]{16}")
_BLOCK = 1 << 20


@contextmanager
def new_rows(results: Location, cursor: str = START) -> Iterator[NewRows]:
    """The rows of a file after a cursor; none if it does not exist. Raises OSError."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(results.reader())
        except FileNotFoundError:
            file = io.BytesIO()
        yield NewRows(file, cursor)


class NewRows:
    """To be iterated once, in the order of the file. `reset`: these are all rows, since those
    before the cursor were cut. After the iteration, `cursor` is where to continue, and `last` the
    row before it."""

    def __init__(self, file: Any, cursor: str) -> None:
        self._file = file
        self.cursor = cursor
        self.last: dict[str, Any] | None = None
        self.reset = cursor != START and not self._is_there()
        if self.reset:
            self.cursor = START

    def __iter__(self) -> Iterator[dict[str, Any]]:
        end, rest = _end(self.cursor), b""
        self._file.seek(end)
        while block := self._file.read(_BLOCK):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                end += len(line) + 1
                row = read_row(line)
                if row is not None:
                    self.last = row
                    self.cursor = f"{end}.{len(line) + 1}.{_digest(line)}"
                    yield row

    def _is_there(self) -> bool:
        end, length, digest = self.cursor.split(".")
        self._file.seek(max(0, int(end) - int(length)))
        line = self._file.read(min(int(length), LARGEST))
        if not line.endswith(b"\n") or _digest(line[:-1]) != digest:
            return False
        self.last = read_row(line)
        return True


def is_cursor(text: str) -> bool:
    """Whether a text may be a cursor."""
    return text == START or _CURSOR.fullmatch(text) is not None


def _end(cursor: str) -> int:
    return int(cursor.partition(".")[0]) if cursor != START else 0


def _digest(line: bytes) -> str:
    return hashlib.blake2b(line, digest_size=8).hexdigest()
