"""The rows of a result.json that were written since it was read last.

A cursor is the end of the last line that was read, the length of the line, and its digest:

    18234.1520.6f0c...

A resume cuts the rows after its checkpoint, and writes others at the same place. Every row has the
time at which it was written, so if the bytes before the cursor are no longer that line, rows were
cut. Then the file is read from its beginning: `reset`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from raytrain.records.row_files import read_row
from raytrain.storage import Location

START = ""
_BLOCK = 1 << 20


class NewRows:
    """Iterate once over the rows after `cursor` (`START`: all of them), in the order of the file.
    Then `cursor` is where to continue, and `reset` is True if the rows are all that there are, and
    not those after the former cursor. Raises OSError."""

    def __init__(self, results: Location, cursor: str = START) -> None:
        self.cursor = cursor
        self.reset = False
        self._results = results

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            with self._results.reader() as file:
                yield from self._rows(file)
        except FileNotFoundError:
            self.reset = self.cursor != START
            self.cursor = START

    def _rows(self, file: Any) -> Iterator[dict[str, Any]]:
        end, rest = _position(self.cursor), b""
        if end and not self._is_there(file):
            self.reset, self.cursor, end = True, START, 0
        file.seek(end)
        while block := file.read(_BLOCK):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                end += len(line) + 1
                row = read_row(line)
                if row is not None:
                    self.cursor = f"{end}.{len(line) + 1}.{_digest(line)}"
                    yield row

    def _is_there(self, file: Any) -> bool:
        end, length, digest = self.cursor.split(".")
        file.seek(int(end) - int(length))
        line = file.read(int(length))
        return line.endswith(b"\n") and _digest(line[:-1]) == digest


def _position(cursor: str) -> int:
    return int(cursor.partition(".")[0]) if cursor != START else 0


def _digest(line: bytes) -> str:
    return hashlib.blake2b(line, digest_size=8).hexdigest()
