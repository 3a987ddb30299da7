"""The history of finished episodes: each once, numbered in order, whatever happened."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.killed_writers import killed_often
from support.record_files import append_episodes, finished
from support.small_disk import fill

from raytrain.records import EpisodeHistory, read_episodes
from raytrain.records.writer import RecordsError


def expected(last: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for iteration in range(1, last + 1):
        for each in sorted(finished(iteration), key=lambda row: row["group"]):
            rows.append(
                {
                    "episode": len(rows),
                    "iteration": iteration,
                    "timestep": iteration * 4000,
                    "runner": each["group"],
                    "stage": None if iteration < 3 else "hard",
                    "custom/goals": None,
                    **each,
                }
            )
    return rows


def write(directory: Path, first: int, last: int, every: int = 1) -> EpisodeHistory:
    history = EpisodeHistory(directory, first - 1)
    for iteration in range(first, last + 1):
        append_episodes(history, iteration)
        if iteration % every == 0 or iteration == last:
            history.flush(iteration)
    return history


def parts(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "episodes").iterdir())


def plain(directory: Path) -> list[int]:
    """What a reader sees who knows nothing of our rules."""
    return sorted(pq.read_table(directory / "episodes")["episode"].to_pylist())


def test_episodes_are_numbered_and_complete(tmp_path: Path) -> None:
    history = write(tmp_path, 1, 13, every=3)
    table = read_episodes(tmp_path)
    assert table.to_pylist() == expected(13)
    assert [str(field.type) for field in table.schema] == [
        *["int64"] * 6,
        "double",
        "int64",
        "string",
        "double",
    ]
    assert history._next == len(expected(13))
    assert parts(tmp_path)[0] == "part-00000001-00000003.parquet"


def test_a_plain_reader_reads_parts_with_different_custom_columns(tmp_path: Path) -> None:
    trial = tmp_path / "trial_lr=0.1"  # not to be taken for a partition
    history = EpisodeHistory(trial)
    episode: dict[str, Any] = {"group": 0, "env_index": 0, "return": 1.0, "length": 5}
    customs: list[dict[str, Any]] = [
        {"custom/a": 1},
        {"custom/b": 2.5},
        {},
        {"custom/a": 3, "custom/c": 4.0},
    ]
    for iteration, custom in enumerate(customs, start=1):
        history.append(iteration, 10, None, [{**custom, **episode}])
        history.flush(iteration)
    table = pq.read_table(trial / "episodes")
    assert table.schema.names[-2:] == ["stage", "custom/a"]
    assert table["custom/a"].to_pylist() == [1.0, None, None, 3.0]
    table = read_episodes(trial)
    assert table["custom/b"].to_pylist() == [None, 2.5, None, None]
    assert table["custom/c"].to_pylist() == [None, None, None, 4.0]


def test_nothing_is_seen_before_the_flush_and_the_future_stays_out(tmp_path: Path) -> None:
    history = EpisodeHistory(tmp_path)
    assert len(read_episodes(tmp_path)) == 0
    for iteration in (1, 2, 3):
        append_episodes(history, iteration)
    assert len(read_episodes(tmp_path)) == 0
    history.flush(2)
    assert len(read_episodes(tmp_path)) == len(expected(2))
    history.flush(3)
    assert read_episodes(tmp_path)["episode"].to_pylist() == list(range(len(expected(3))))


@pytest.mark.parametrize("kept", [0, 1, 2, 4, 7, 8, 11, 12])
@pytest.mark.parametrize("every", [1, 4, 12])
def test_episodes_after_the_checkpoint_are_cut_and_written_again(
    tmp_path: Path, kept: int, every: int
) -> None:
    write(tmp_path, 1, 12, every)
    history = EpisodeHistory(tmp_path, kept)
    assert history._next == len(expected(kept))
    assert plain(tmp_path) == list(range(len(expected(kept)))) if kept > 1 else True
    write(tmp_path, kept + 1, 14, every)
    assert read_episodes(tmp_path).to_pylist() == expected(14)


def test_many_parts_become_one(tmp_path: Path) -> None:
    write(tmp_path, 1, 200)
    assert len(parts(tmp_path)) <= 65
    assert read_episodes(tmp_path).to_pylist() == expected(200)
    assert plain(tmp_path) == list(range(len(expected(200))))


def test_a_reader_never_sees_a_gap_or_a_repeat(tmp_path: Path) -> None:
    """Read again and again while another thread writes, merges and cuts."""
    EpisodeHistory(tmp_path)
    over, began, problems = threading.Event(), threading.Event(), []

    def read() -> None:
        while not over.is_set():
            numbers = read_episodes(tmp_path)["episode"].to_pylist()
            began.set()
            if numbers != list(range(len(numbers))):
                problems.append(numbers)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert began.wait(600)
        write(tmp_path, 1, 150)
        write(tmp_path, 101, 200)
        write(tmp_path, 42, 100, every=10)
    finally:
        over.set()
        reader.join()
    assert problems == []


def superseded(tmp_path: Path, names: list[str]) -> None:
    """Put back what a crash before the deletion would have left."""
    source = tmp_path / "source"
    write(source, 1, 8, every=2)
    for name in names:
        os.link(source / "episodes" / name, tmp_path / "trial" / "episodes" / name)


def test_a_crash_before_the_merged_parts_are_deleted(tmp_path: Path) -> None:
    trial = tmp_path / "trial"
    write(trial, 1, 8, every=8)
    superseded(tmp_path, ["part-00000001-00000002.parquet", "part-00000005-00000006.parquet"])
    assert read_episodes(trial).to_pylist() == expected(8)
    EpisodeHistory(trial, 8)
    assert parts(trial) == ["part-00000001-00000008.parquet"]


def test_a_crash_before_the_cut_part_is_deleted(tmp_path: Path) -> None:
    trial = tmp_path / "trial"
    write(trial, 1, 8, every=8)
    superseded(tmp_path, ["part-00000001-00000002.parquet"])  # the copy, shortened to 2
    for left in (".part.tmp", ".part.tmp.0a1b2c3d"):
        (trial / "episodes" / left).write_bytes(b"PAR1 half a file")
    assert plain(trial)  # a temporary file is passed over
    EpisodeHistory(trial, 2)
    assert parts(trial) == ["part-00000001-00000002.parquet"]
    assert read_episodes(trial)["episode"].to_pylist() == list(range(len(expected(2))))


@pytest.mark.parametrize("damage", ["empty", "half", "middle"])
def test_a_damaged_part_is_set_aside_and_said(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 1, 6, every=3)
    path = tmp_path / "episodes" / "part-00000004-00000006.parquet"
    data = path.read_bytes()
    cut = len(data) // 2
    path.write_bytes(
        {
            "empty": b"",
            "half": data[:cut],
            "middle": data[: cut - 500] + bytes(1000) + data[cut + 500 :],
        }[damage]
    )
    known = len(expected(6))
    history = EpisodeHistory(tmp_path, 6, next_episode=known)
    assert len(history.warnings) == 2
    assert "iterations 4 to 6 are unreadable" in history.warnings[0]
    assert f"counts {known}" in history.warnings[1]
    assert parts(tmp_path)[0] == ".damaged-part-00000004-00000006.parquet"
    append_episodes(history, 7)
    history.flush(7)
    numbers = read_episodes(tmp_path)["episode"].to_pylist()
    assert numbers == [*range(len(expected(3))), *range(known, len(expected(7)))]


def test_an_iteration_cannot_be_appended_twice(tmp_path: Path) -> None:
    history = write(tmp_path, 1, 3)
    with pytest.raises(ValueError, match="iteration 3"):
        append_episodes(history, 3)


def test_a_full_disk_keeps_the_episodes(small_disk: Path) -> None:
    history = write(small_disk, 1, 3)
    ballast = fill(small_disk)
    append_episodes(history, 5)
    with pytest.raises(RecordsError, match="No space left"):
        history.flush(5)
    assert not list((small_disk / "episodes").glob(".*"))
    append_episodes(history, 6)
    ballast.unlink()
    history.flush(6)
    assert read_episodes(small_disk)["iteration"].to_pylist()[-5:] == [5, 5, 5, 6, 6]


def test_killed_many_times_every_episode_is_there_once(tmp_path: Path) -> None:
    """A real process is killed at any moment, merging and cutting included."""
    last = killed_often("episodes", tmp_path / "trial", kills=12)
    assert read_episodes(tmp_path / "trial").to_pylist() == expected(last)
    assert plain(tmp_path / "trial") == list(range(len(expected(last))))


def test_a_replaced_writer_deletes_no_file_that_its_successor_writes(tmp_path: Path) -> None:
    """It was stopped between its fence and its deletions, and continues while the other writes."""
    replaced = write(tmp_path, 1, 1)
    calls: list[Any] = []

    def fence() -> None:
        calls.append(None)
        if len(calls) == 3:  # Opened; then before and after the temporary file is written.
            append_episodes(replaced, 2)
            replaced.flush(2)

    successor = EpisodeHistory(tmp_path, 1, attempt=2, fence=fence)
    append_episodes(successor, 2)
    successor.flush(2)
    assert len(calls) == 3
    numbers = read_episodes(tmp_path)["episode"].to_pylist()
    assert numbers == list(range(len(expected(2))))
