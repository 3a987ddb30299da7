"""Records under a kill at any moment, on full and read-only disks, and on disks that fail."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.killed_writers import killed_often
from support.record_files import assert_complete, raw_events, row, write
from support.small_disk import fill

from raytrain.records import EventLog, TrialRecords, read_events
from raytrain.records.append_file import replace_file
from raytrain.records.writer import RecordsError
from raytrain.trial.fencing import Superseded


def test_killed_many_times_every_iteration_is_there_once(tmp_path: Path) -> None:
    """A real process is killed at any moment, opening included, and then gets to the end."""
    last = killed_often("records", tmp_path / "trial", kills=40)
    assert_complete(tmp_path / "trial", last)


@pytest.mark.parametrize("leave", [0, 4096, 8192, 12288])
def test_a_full_disk_keeps_the_rows_until_there_is_space(small_disk: Path, leave: int) -> None:
    directory = small_disk / "trial"
    records = TrialRecords(directory)
    for iteration in (1, 2, 3):
        records.append(row(iteration))
    ballast = fill(small_disk, leave)
    # Iteration 5 has a new column, for which the CSV has to be rewritten.
    said = [text for i in range(4, 41) if (text := records.append(row(i)))]
    assert len(said) == 1 and str(directory) in said[0] and "No space left" in said[0]
    assert records.warnings == said
    for name in ("result.json", "progress.csv"):
        assert (directory / name).read_bytes().endswith(b"\n")
    steps = [event.step for event in raw_events(directory)]
    assert steps == list(range(1, len(steps) + 1)) and 3 <= len(steps) < 40
    with pytest.raises(RecordsError, match="kept in memory"):
        records.flush()
    ballast.unlink()
    assert records.append(row(41)) is None
    records.flush()
    records.close()
    assert_complete(directory, 41)


def test_a_disk_that_is_full_at_the_start_is_used_once_it_has_space(small_disk: Path) -> None:
    directory = small_disk / "trial"
    write(directory, 1, 6)
    (directory / "progress.csv").unlink()
    ballast = fill(small_disk, 0)
    records = TrialRecords(directory, 4)
    assert len(records.warnings) == 1
    for iteration in (5, 6, 7):
        records.append(row(iteration))
    ballast.unlink()
    records.flush()
    records.close()
    assert_complete(directory, 7)


def test_a_read_only_disk_keeps_the_rows(small_disk: Path) -> None:
    directory = small_disk / "trial"
    write(directory, 1, 3)
    # A file system with a file open for writing cannot be made read-only, so it is so at the start.
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    records = TrialRecords(directory, 3)
    records.append(row(4))
    assert len(records.warnings) == 1 and "Read-only" in records.warnings[0]
    with pytest.raises(RecordsError, match="Read-only"):
        records.flush()
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    records.flush()
    records.close()
    assert_complete(directory, 4)


def test_the_event_log_on_a_full_disk_keeps_its_events(small_disk: Path) -> None:
    log = EventLog(small_disk / "events.jsonl")
    log.write("a", "x" * 3000, attempt=1, iteration=1)
    ballast = fill(small_disk, 0)
    assert isinstance(log.write("b", "y" * 3000, attempt=1, iteration=2), OSError)
    ballast.unlink()
    assert log.write("c", "z", attempt=1, iteration=3) is None
    assert [event.kind for event in read_events(small_disk / "events.jsonl")] == ["a", "b", "c"]


@pytest.fixture
def failing_fsync(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Arm it with how a file's name begins: that file's next fsync fails, once, and loses data.

    What a kernel does whose disk failed: the bytes since the last good fsync are gone, and it knows
    of nothing more to write. They are zeros here.
    """
    armed: list[str] = []
    good: dict[int, int] = {}
    fsync = os.fsync

    def fake(descriptor: int) -> None:
        status = os.fstat(descriptor)
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        if armed and name.startswith(armed[0]):
            armed.clear()
            os.ftruncate(descriptor, good.get(status.st_ino, 0))
            os.ftruncate(descriptor, status.st_size)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)
        good[status.st_ino] = status.st_size

    monkeypatch.setattr(os, "fsync", fake)
    return armed


@pytest.mark.parametrize("name", ["result.json", "progress.csv", "events.out"])
@pytest.mark.parametrize("durable", [0, 2, 6])
def test_a_failed_fsync_has_the_rows_written_again(
    tmp_path: Path, failing_fsync: Any, name: str, durable: int
) -> None:
    records = TrialRecords(tmp_path)
    for iteration in range(1, durable + 1):
        records.append(row(iteration))
    records.flush()
    records.append(row(durable + 1))
    failing_fsync.append(name)
    with pytest.raises(RecordsError, match="Input/output error"):
        records.flush()
    assert failing_fsync == []
    records.append(row(durable + 2))
    records.flush()
    assert_complete(tmp_path, durable + 2)
    assert write(tmp_path, durable + 3, durable + 8) == []
    assert_complete(tmp_path, durable + 8)


def test_a_failed_fsync_that_a_new_column_meets(tmp_path: Path, failing_fsync: Any) -> None:
    """The CSV is copied for the new column, with what its old file has lost."""
    records = TrialRecords(tmp_path)
    for iteration in (1, 2, 3, 4):
        records.append(row(iteration))
    failing_fsync.append("progress.csv")
    assert "Input/output error" in str(records.append(row(5)))
    records.append(row(6))
    records.flush()
    assert_complete(tmp_path, 6)


def test_a_failure_that_append_is_told_fails_the_flush_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports it once, here to the `append` that comes while `flush` syncs."""
    records = TrialRecords(tmp_path)
    for iteration in (1, 2, 3, 4):
        records.append(row(iteration))
    fsync = os.fsync
    appended: list[Any] = []

    def fake(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if not appended:  # the flush has begun
            appended.append(name)
            records.append(row(5))
        elif len(appended) == 1 and name.endswith("progress.csv"):
            appended.append(name)
            os.truncate(name, 0)
            os.truncate(name, 100)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fake)
    with pytest.raises(RecordsError, match="Input/output error"):
        records.flush()
    assert len(appended) == 2
    records.flush()
    assert_complete(tmp_path, 5)


def test_rows_without_a_checkpoint_do_not_stay_in_memory_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raytrain.records.writer._MOST_NOT_DURABLE", 5)
    synced, fsync = [], os.fsync

    def counted(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(iteration)

    monkeypatch.setattr(os, "fsync", counted)
    records = TrialRecords(tmp_path)
    for iteration in range(1, 13):
        records.append({"training_iteration": iteration})
    # The first row brings the CSV's columns, and its file is replaced.
    assert sorted(set(synced)) == [1, 5, 10]


def test_two_that_replace_one_file_at_once_do_not_write_into_each_other(tmp_path: Path) -> None:
    """One was stopped in the middle, and goes on when another has taken over."""
    path = tmp_path / "progress.csv"
    (tmp_path / ".progress.csv.tmp").write_text("of a former version that was killed")
    replaced: list[Any] = []

    def fence() -> None:
        if replaced:
            raise Superseded("taken over")

    def chunks() -> Iterator[Any]:
        yield b"a,b\n"
        replace_file(path, [b"a,b\n1,2\n"], path.name)
        replaced.append(True)
        yield b"3,4\n" * 10_000

    with pytest.raises(Superseded):
        replace_file(path, chunks(), path.name, fence)
    assert path.read_bytes() == b"a,b\n1,2\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_flush_without_free_descriptors_fails_and_leaves_none_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = TrialRecords(tmp_path)
    records.append(row(1))
    opened: list[int] = []
    dup, before = os.dup, len(os.listdir("/proc/self/fd"))

    def scarce(descriptor: int) -> int:
        if len(opened) == 2:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        opened.append(dup(descriptor))
        return opened[-1]

    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", scarce)
        with pytest.raises(RecordsError, match="Too many open files"):
            records.flush()
    assert len(opened) == 2
    assert len(os.listdir("/proc/self/fd")) == before
    records.append(row(2))
    records.flush()
    assert_complete(tmp_path, 2)
