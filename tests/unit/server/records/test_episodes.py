"""Histograms of episodes."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pytest
from support.record_files import append_episodes, finished

from raytrain.records import EpisodeHistory
from raytrain.server.records.episodes import BINS, episodes, histogram
from raytrain.storage import Location, StorageError


def column(*values: float) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values)])


def test_every_episode_is_in_one_bin(tmp_path: Path) -> None:
    history = EpisodeHistory(tmp_path)
    for iteration in range(1, 40):
        append_episodes(history, iteration)
    history.flush(39)
    ended = [episode for i in range(1, 40) for episode in finished(i)]
    found = episodes(Location.of(tmp_path))
    for name, key in (("returns", "return"), ("lengths", "length")):
        edges, counts = found[name]["edges"], found[name]["counts"]
        assert len(edges) == len(counts) + 1
        expected = [0] * len(counts)
        for episode in ended:
            inside = [i for i in range(len(counts)) if edges[i] <= episode[key] < edges[i + 1]]
            expected[inside[0] if inside else -1] += 1
        assert sum(counts) == len(ended)
        assert all(abs(a - b) <= 1 for a, b in zip(counts, expected, strict=True))
    assert found["lengths"]["counts"] == expected


def test_without_episodes_there_is_no_bin(tmp_path: Path) -> None:
    nothing: dict[str, list[float]] = {"edges": [], "counts": []}
    assert episodes(Location.of(tmp_path)) == {"returns": nothing, "lengths": nothing}


@pytest.mark.parametrize(
    ("values", "whole", "edges", "counts"),
    [
        ((5.0,), False, [5.0, 5.0], [1]),
        ((5,), True, [5.0, 6.0], [1]),
        ((1, 1, 3), True, [1.0, 2.0, 3.0, 4.0], [2, 0, 1]),
        ((math.nan, math.inf, -math.inf, 1e305), False, [], []),
    ],
)
def test_small_histograms(
    values: tuple[float, ...], whole: bool, edges: list[float], counts: list[int]
) -> None:
    assert histogram(column(*values), whole=whole) == {"edges": edges, "counts": counts}


def test_the_highest_value_belongs_to_the_last_bin() -> None:
    found = histogram(column(*(float(i) for i in range(BINS + 1))))
    assert found["counts"] == [1] * (BINS - 1) + [2]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "episodes").mkdir()
    (tmp_path / "episodes" / "part-00000001-00000002.parquet").write_bytes(b"x" * 100)
    with pytest.raises(StorageError, match=r"Reading the episodes failed at .*episodes"):
        episodes(Location.of(tmp_path))
