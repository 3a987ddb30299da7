"""Rows found by bisection are those that a search finds."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from raytrain.server.records.row_lookup import row_lookup
from raytrain.storage import Location


@pytest.mark.parametrize("seed", range(30))
def test_the_rows_around_any_iteration(tmp_path: Path, seed: int) -> None:
    drawn = random.Random(seed)
    count = drawn.choice([0, 1, 2, 3, 50, 400])
    iterations = sorted(drawn.sample(range(1, 500), count))
    file = tmp_path / "result.json"
    with file.open("w") as stream:
        for each in iterations:
            line = json.dumps({"training_iteration": each, "x": "y" * drawn.randint(0, 300)})
            stream.write(line + "\n" + "torn {\n" * (drawn.random() < 0.1))
        stream.write('{"training_iter')
    with row_lookup(Location.of(file)) as rows:
        assert (rows.last or {}).get("training_iteration") == max(iterations, default=None)
        for wanted in [0, 501, *drawn.sample(range(1, 500), 100)]:
            before, after = rows.around(wanted)
            found = [row and row["training_iteration"] for row in (before, after)]
            assert found == [
                max((i for i in iterations if i <= wanted), default=None),
                min((i for i in iterations if i > wanted), default=None),
            ]


def test_without_a_file_there_are_no_rows(tmp_path: Path) -> None:
    with row_lookup(Location.of(tmp_path / "result.json")) as rows:
        assert rows.around(3) == (None, None) and rows.last is None
