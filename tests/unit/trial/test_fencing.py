"""The fence: a trial that was cut off and lives on changes nothing in the directory of the one that
was started in its place."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkpoint_children import manifest, place, put
from support.running import began_after, rows

from raytrain.checkpoint import BestPolicy, Catalogue, Manifest, RetentionPolicy, replace
from raytrain.checkpoint.commit import commit
from raytrain.storage import DirectoryLock, Location, Locked, StorageError, lock
from raytrain.storage.lock import Times
from raytrain.trial.directory import TrialDirectory
from raytrain.trial.fencing import SUPERSEDED, FencingToken, Superseded


@pytest.fixture(autouse=True)
def machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes a lock is on a machine of its own."""
    numbers = itertools.count()
    monkeypatch.setattr(lock, "_identity", lambda: {"host": f"m{next(numbers)}", "boot": None})


def directory(
    where: Location, node: str, gone: Callable[[str], bool] = lambda node: False
) -> TrialDirectory:
    return TrialDirectory(
        where,
        retention=RetentionPolicy(3),
        best=BestPolicy(),
        max_failed_saves=3,
        node=node,
        node_is_gone=gone,
    )


def told(attempt: int, iteration: int) -> Manifest:
    return manifest(iteration, attempt=attempt, score=None)


def write(staging: Path) -> None:
    (staging / "state").write_text("state")


def train(trial: TrialDirectory, *iterations: int) -> None:
    for iteration in iterations:
        trial.record({"training_iteration": iteration, "by": trial.attempt}, [], iteration * 10)


def save(trial: TrialDirectory, iteration: int) -> None:
    trial.save(f"checkpoint_{iteration:06d}", told(trial.attempt, iteration), write)
    trial.poll(wait=True)


def begun(where: Location, node: str = "a") -> TrialDirectory:
    """An attempt with rows 1 to 3 and a checkpoint of iteration 2."""
    trial = directory(where, node)
    assert trial.open() is None
    trial.open_records(resume_from=0, next_episode=0)
    train(trial, 1, 2)
    save(trial, 2)
    train(trial, 3)
    return trial


def taken_over(where: Location) -> TrialDirectory:
    trial = directory(where, "b", gone=lambda node: node == "a")
    entry = trial.open()
    assert entry is not None
    assert any("shut out" in message for message in trial.start_messages)
    trial.open_records(resume_from=entry.iteration, next_episode=14)
    return trial


def written(where: Path) -> list[tuple[int, int]]:
    return [(row["training_iteration"], row["by"]) for row in rows(where)]


@pytest.mark.parametrize("generic", [False, True], ids=["disk", "lease"])
def test_a_superseded_writer_writes_nothing_more(
    tmp_path: Path, generic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raytrain.storage.lock.SETTLE_SECONDS", 0.0)
    where = place(tmp_path, generic)
    old = begun(where)
    new = taken_over(where)
    if not generic:
        with pytest.raises(Superseded):
            train(old, 4)
    with pytest.raises(Superseded):
        save(old, 4)
    with pytest.raises(Superseded):
        raise old.note_failure(4, ValueError("broken")) or AssertionError
    train(new, 3, 4)
    save(new, 4)
    new.close()
    old.close()
    assert written(tmp_path) == [(1, 1), (2, 1), (3, 2), (4, 2)]
    committed = {path.parent.name for path in tmp_path.glob("checkpoint_*/manifest.json")}
    copied = {"checkpoint_000002.2", "checkpoint_000004.2"}
    assert committed == {"checkpoint_000002", *(copied if generic else {"checkpoint_000004"})}
    assert began_after(tmp_path) == {1: 0, 2: 2}


def test_a_failure_is_told_although_storage_does_not_say_who_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = begun(place(tmp_path, True))

    def away(*_: object) -> None:
        raise StorageError("Checking the lock failed", errno=errno.EIO)

    with monkeypatch.context() as patch:
        patch.setattr(DirectoryLock, "check", away)
        assert trial.note_failure(4, ValueError("broken")) is None
    trial.close()


def test_a_later_attempt_shuts_out_who_still_holds_the_lock(tmp_path: Path) -> None:
    """A disk whose locks do not reach the other machine lets two processes hold one."""
    old = begun(place(tmp_path, False))
    (tmp_path / "attempts" / "000002.0.json").write_text("{}")
    with pytest.raises(Superseded, match="attempt 2"):
        train(old, 4)
    with pytest.raises(Superseded, match="attempt 2"):
        save(old, 4)
    old.close()
    assert written(tmp_path) == [(1, 1), (2, 1), (3, 1)]
    assert not (tmp_path / "checkpoint_000004").exists()


def test_what_it_was_about_to_append_goes_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had asked the fence just before it was superseded."""
    where = place(tmp_path, False)
    old = begun(where)
    new = taken_over(where)
    monkeypatch.setattr(old._fencing, "check", lambda: None)
    train(old, 4, 5)
    train(new, 3)
    new.close()
    old.close()
    assert written(tmp_path) == [(1, 1), (2, 1), (3, 2)]
    assert len((tmp_path / "progress.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize("generic", [False, True], ids=["disk", "lease"])
def test_what_it_still_commits_is_off_the_line(
    tmp_path: Path, generic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raytrain.storage.lock.SETTLE_SECONDS", 0.0)
    where = place(tmp_path, generic)
    begun(where)
    new = taken_over(where)

    def commit_late(iteration: int) -> None:
        staging = tmp_path / f"late_{iteration}"
        staging.mkdir()
        write(staging)
        commit(staging, where / f"checkpoint_{iteration:06d}", told(1, iteration))

    commit_late(4)
    train(new, 3, 4)
    save(new, 4)
    messages = new.take_messages()  # Elsewhere than on a disk it is in nobody's way.
    assert any("kept in superseded/" in message for message in messages) != generic
    commit_late(6)
    commit_late(8)
    train(new, 5, 6)
    save(new, 6)
    new.close()
    third = directory(where, "c")
    entry = third.open()
    assert entry is not None and entry.iteration == 6
    assert entry.manifest is not None and entry.manifest.attempt == 2
    messages = third.start_messages
    assert any("checkpoint_000008 was written by attempt 1" in message for message in messages)
    third.close()
    kept = {path.parent.name for path in (tmp_path / SUPERSEDED).glob("*/manifest.json")}
    assert kept == {f"checkpoint_{iteration:06d}.attempt_1" for iteration in (4, 6, 8)}


@pytest.mark.parametrize("late", ["checkpoint_000003", "best", "best, later"])
@pytest.mark.parametrize("generic", [False, True], ids=["disk", "lease"])
def test_what_is_off_the_line_is_never_best(
    tmp_path: Path, generic: bool, late: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However good it was. On this line iteration 4 is the first with a score, and 6 is better."""
    monkeypatch.setattr("raytrain.storage.lock.SETTLE_SECONDS", 0.0)
    where = place(tmp_path, generic)
    begun(where)
    new = taken_over(where)

    def commit_late() -> None:
        put(where, tmp_path, 3, attempt=1, score=100.0)
        if "best" in late:
            replace(where / "checkpoint_000003", where / "best", kind="best")

    if "later" not in late:
        commit_late()
    for iteration in (4, 6):
        train(new, iteration - 1, iteration)
        told_score = manifest(iteration, attempt=2, score=float(iteration))
        new.save(f"checkpoint_{iteration:06d}", told_score, write)
        new.poll(wait=True)
        if "later" in late and iteration == 4:
            commit_late()
    new.close()
    best = Catalogue(where).entry("best", verify=True)
    assert best is not None and best.good and best.manifest is not None
    assert (best.iteration, best.manifest.attempt, best.score) == (6, 2, 6.0)


@pytest.mark.parametrize("generic", [False, True], ids=["disk", "lease"])
def test_a_start_that_wakes_up_while_it_counts_itself_ends_nobodys_run(
    tmp_path: Path, generic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raytrain.storage.lock.SETTLE_SECONDS", 0.0)
    where = place(tmp_path, generic)
    old, before = directory(where, "a"), FencingToken._before
    later: list[Any] = []

    def overtaken(attempts: FencingToken) -> Any:
        found = before(attempts)
        if not later:
            later.append(directory(where, "b", gone=lambda node: node == "a"))
            later[0].open()
            later[0].open_records(resume_from=0, next_episode=0)
        return found

    monkeypatch.setattr(FencingToken, "_before", overtaken)
    with pytest.raises(Superseded, match="was lost"):
        old.open()
    train(later[0], 1, 2)
    save(later[0], 2)
    assert later[0].last_saved is not None and later[0].last_saved.iteration == 2
    later[0].close()


def test_a_lock_is_seized_only_from_a_holder_that_is_gone(tmp_path: Path) -> None:
    where = Location.of(tmp_path)
    holder = DirectoryLock(where, note={"node": "a"})
    holder.acquire()
    with pytest.raises(Locked):
        DirectoryLock(where, holder_is_gone=lambda record: record["node"] != "a").acquire()
    taker = DirectoryLock(where, holder_is_gone=lambda record: record["node"] == "a")
    taker.acquire()
    assert (taker.seized, holder.seized) == (True, False)
    taker.check()
    with pytest.raises(Locked, match="was lost"):
        holder.check()
    holder.release()
    taker.check()
    with pytest.raises(Locked):  # The old file's lock is no lock any more, and the new one's is.
        DirectoryLock(where).acquire()
    taker.release()
    assert not list(tmp_path.glob(".raytrain.lock.*"))


def test_a_lease_is_seized_as_well(tmp_path: Path) -> None:
    where = place(tmp_path, True)
    times = Times(sleep=lambda seconds: None)
    holder = DirectoryLock(where, times=times, note={"node": "a"})
    holder.acquire()
    taker = DirectoryLock(where, times=times, holder_is_gone=lambda record: True)
    taker.acquire()
    assert taker.seized
    with pytest.raises(Locked, match="was lost"):
        holder.check()
    holder.release()
    taker.check()
    taker.release()
