"""Rows that were written since a result.json was read last, and cuts in between."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from raytrain.server.records.new_rows import START, is_cursor, new_rows
from raytrain.storage import Location


class Results:
    """A result.json, and its reader."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cursor = START
        self.now = 0

    def write(self, *iterations: int) -> None:
        with self.path.open("a") as file:
            for iteration in iterations:
                self.now += 1
                row = {"training_iteration": iteration, "timestamp": 1_000_000 + self.now}
                file.write(json.dumps(row) + "\n")

    def cut(self, upto: int) -> None:
        lines = self.path.read_bytes().splitlines(keepends=True)
        os.truncate(self.path, sum(map(len, lines[:upto])))

    def read(self) -> tuple[list[int], bool]:
        with new_rows(Location.of(self.path), self.cursor) as rows:
            found = [row["training_iteration"] for row in rows]
        self.cursor = rows.cursor
        assert is_cursor(rows.cursor)
        expected: dict[str, Any] | None = None
        whole = [line for line in self._lines() if line.endswith(b"\n")]
        if whole:
            expected = json.loads(whole[-1])
        assert rows.last == expected
        return found, rows.reset

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "result.json")


def test_each_row_is_read_once(results: Results) -> None:
    assert results.read() == ([], False)
    results.write(1, 2)
    assert results.read() == ([1, 2], False)
    assert results.read() == ([], False)
    results.write(3)
    assert results.read() == ([3], False)


def test_a_torn_line_is_read_when_it_is_whole(results: Results) -> None:
    results.write(1)
    line = b'{"training_iteration": 2, "timestamp": 5}\n'
    with results.path.open("ab") as file:
        file.write(line[:20])
    assert results.read() == ([1], False)
    with results.path.open("ab") as file:
        file.write(line[20:])
    assert results.read() == ([2], False)


@pytest.mark.parametrize("again", [(), (3,), (3, 4, 5), (3, 4, 5, 6, 7, 8)])
def test_a_cut_is_seen_however_far_the_rows_have_come_again(
    results: Results, again: tuple[int, ...]
) -> None:
    results.write(1, 2, 3, 4, 5)
    results.read()
    results.cut(2)
    results.write(*again)
    assert results.read() == ([1, 2, *again], True)
    assert results.read() == ([], False)


def test_a_cut_of_what_was_not_read_yet_is_no_reset(results: Results) -> None:
    results.write(1, 2)
    results.read()
    results.write(3, 4)
    results.cut(2)
    results.write(3)
    assert results.read() == ([3], False)


def test_a_file_that_vanished_is_a_reset(results: Results) -> None:
    results.write(1)
    results.read()
    results.path.unlink()
    assert results.read() == ([], True)
    assert results.read() == ([], False)


def test_damaged_lines_are_left_out(results: Results) -> None:
    results.write(1)
    with results.path.open("ab") as file:
        file.write(b"\xff\n{}\n[1]\n")
    results.write(2)
    assert results.read() == ([1, 2], False)


def test_rows_longer_than_a_block(results: Results) -> None:
    with results.path.open("w") as file:
        for iteration in (1, 2, 3):
            file.write(json.dumps({"training_iteration": iteration, "x": "y" * 3_000_000}) + "\n")
    with new_rows(Location.of(results.path)) as rows:
        assert [row["training_iteration"] for row in rows] == [1, 2, 3]


@pytest.mark.parametrize(
    "text", ["1", "1.2", "a.b.c", "1.1." + "0" * 15, "9" * 16 + ".1." + "0" * 16]
)
def test_other_texts_are_no_cursors(text: str) -> None:
    assert not is_cursor(text)
