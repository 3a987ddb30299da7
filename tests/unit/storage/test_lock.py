"""One writer at a time, on a local disk and where there are no locks."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkpoint_children import place

from raytrain.storage import DirectoryLock, Location, Locked, StorageError, who_writes
from raytrain.storage.lock import (
    LOCK_NAME,
    RENEW_SECONDS,
    SETTLE_SECONDS,
    STALE_SECONDS,
    Times,
    _alive,
    _identity,
    _Lease,
    _self,
    _Watch,
)

HOLD = """
import os, sys
from raytrain.storage import DirectoryLock, Location
DirectoryLock(Location.of(sys.argv[1])).acquire()
if "fork" in sys.argv and os.fork() == 0:
    print("held by the parent of", os.getpid(), flush=True)
    sys.stdin.read()
    os._exit(0)
if "fork" not in sys.argv:
    print("held", flush=True)
sys.stdin.read()
"""


def holder(directory: Path, *more: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and "held" in child.stdout.readline()
    return child


@pytest.mark.parametrize("more", [[], ["fork"]], ids=["plain", "with a living fork"])
def test_sigkill_of_the_holder_releases_the_lock(tmp_path: Path, more: list[str]) -> None:
    child = holder(tmp_path, *more)
    with pytest.raises(Locked, match=f"process {child.pid} on .* since 20") as error:
        DirectoryLock(Location.of(tmp_path)).acquire()
    assert error.value.exit_code == 1
    os.kill(child.pid, signal.SIGKILL)
    child.wait(600)
    with DirectoryLock(Location.of(tmp_path)) as lock:
        lock.check()
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    child.communicate("")


def test_waits_for_the_holder_until_the_deadline(tmp_path: Path) -> None:
    place = Location.of(tmp_path)
    child = holder(tmp_path)
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] > 5 and child.poll() is None:
            child.communicate("")

    times = Times(now=lambda: now[0], sleep=sleep)
    with pytest.raises(Locked):
        DirectoryLock(place, wait=3, times=times).acquire()
    assert 3 <= now[0] < 4
    with DirectoryLock(place, wait=60, times=times):
        pass


def test_a_released_lock_can_be_taken_again(tmp_path: Path) -> None:
    lock = DirectoryLock(Location.of(tmp_path))
    for _ in range(2):
        with lock, pytest.raises(Locked):
            DirectoryLock(Location.of(tmp_path)).acquire()
        with pytest.raises(Locked, match="not held"):
            lock.check()


class Clock:
    """`sleep` lets time pass; `later` has something happen at a moment."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self._due: list[tuple[float, Callable[[], object]]] = []

    def times(self) -> Times:
        return Times(now=lambda: self.now, sleep=self.sleep, date=lambda: self.now)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for each in [each for each in self._due if each[0] <= self.now]:
            self._due.remove(each)
            each[1]()

    def later(self, seconds: float, do: Callable[[], object]) -> None:
        self._due.append((self.now + seconds, do))


@pytest.fixture
def no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread renews a lease; the tests do."""
    monkeypatch.setattr(_Lease, "_renew", lambda lease: None)


def lease_of(lock: DirectoryLock) -> _Lease:
    assert isinstance(lock._held, _Lease)
    return lock._held


def renewed(lock: DirectoryLock) -> bool:
    """What its thread does every ten seconds."""
    return lease_of(lock)._hold(renew=True)


def record_in(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / LOCK_NAME).read_text())
    return found


def left_behind(directory: Path, **changes: object) -> None:
    """The lease of a process of another machine, which renews it no more."""
    record = {"pid": 1, "host": "elsewhere", "boot": "b", "token": "x", "renewed": 1e9, **changes}
    (directory / LOCK_NAME).write_text(json.dumps(record))


def test_lease_is_taken_after_it_stood_still_and_the_holder_knows(
    tmp_path: Path, no_thread: None
) -> None:
    where, clock = place(tmp_path, generic=True), Clock()
    first = DirectoryLock(where, times=clock.times())
    first.acquire()
    clock.later(0, lambda: renewed(first))
    with pytest.raises(Locked, match=f"process {os.getpid()} .* last renewed at 1970-01-01T00:16"):
        DirectoryLock(where, times=clock.times()).acquire()
    assert clock.now < 1000 + 2, "that the lease is renewed shows that its holder lives"
    second = DirectoryLock(where, times=clock.times())
    began = clock.now
    second.acquire()
    assert STALE_SECONDS <= clock.now - began < STALE_SECONDS + 3
    second.check()
    assert second.taken_over and not first.taken_over
    with pytest.raises(Locked, match="was lost"):
        first.check()
    first.release()  # must not take the lease away from the second
    second.check()
    second.release()
    assert record_in(tmp_path)["released"] is True
    assert who_writes(where) is None
    began = clock.now
    third = DirectoryLock(where, times=clock.times())
    third.acquire()
    assert clock.now - began < 3
    # Whose records are left behind: those of a holder that may still write.
    assert (first.taken_over, second.taken_over, third.taken_over) == (False, False, False)


@pytest.mark.parametrize("ahead_s", [-86400.0, -61.0, 61.0, 86400.0])
def test_clocks_of_two_machines_are_not_compared(
    tmp_path: Path, no_thread: None, ahead_s: float
) -> None:
    where, clock, other = place(tmp_path, generic=True), Clock(), Clock(1000.0 + ahead_s)
    with DirectoryLock(where, times=clock.times()) as living:
        other.later(5, lambda: renewed(living))
        with pytest.raises(Locked):
            DirectoryLock(where, times=other.times()).acquire()
        living.check()
    left_behind(tmp_path, renewed=1000.0 + ahead_s)
    began, told = clock.now, []  # type: float, list[str]
    with DirectoryLock(where, times=clock.times(), tell=told.append) as taken:
        taken.check()
    assert STALE_SECONDS <= clock.now - began < STALE_SECONDS + 3
    assert "process 1 on elsewhere" in told[0] and told[0].endswith("60 s at most for it to end.")


@pytest.mark.parametrize(
    ("changes", "is_known"),
    [
        ({}, True),
        ({"host": "elsewhere"}, False),
        ({"boot": "another machine of the same name"}, False),
        ({"boot": None}, False),
        ({"pid": None}, False),
        ({"pid": os.getpid()}, False),
    ],
    ids=["gone", "elsewhere", "another boot", "no boot", "no pid", "alive"],
)
def test_a_holder_is_dead_only_where_its_pid_means_something(
    tmp_path: Path, changes: dict[str, object], is_known: bool
) -> None:
    where, clock = place(tmp_path, generic=True), Clock()
    dead = subprocess.Popen(["true"])
    dead.wait()
    left_behind(tmp_path, **{**_self(), "pid": dead.pid, **changes})
    with DirectoryLock(where, times=clock.times()):
        assert (clock.now - 1000 < STALE_SECONDS) is is_known


def test_without_a_boot_id_nobody_is_known_to_be_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: str) -> str:
        raise FileNotFoundError(2, "no such file", path)

    monkeypatch.setattr(os, "readlink", refused)
    assert _identity() == {"host": socket.gethostname(), "boot": None}
    test_a_holder_is_dead_only_where_its_pid_means_something(tmp_path, {}, False)


def test_a_lease_that_cannot_be_read_is_watched_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raytrain.storage.lock._READ_AGAIN_S", 0.0)
    where, clock = place(tmp_path, generic=True), Clock()
    (tmp_path / LOCK_NAME).write_text('{"pid": 1, "hos')
    with DirectoryLock(where, times=clock.times()):
        assert clock.now - 1000 >= STALE_SECONDS


def test_a_lost_lease_stays_lost_whatever_is_written_late(tmp_path: Path, no_thread: None) -> None:
    """The holder reads that the lease is its own, is suspended, and writes when another has it."""
    where, clock = place(tmp_path, generic=True), Clock()
    old = DirectoryLock(where, times=clock.times())
    old.acquire()
    new = DirectoryLock(where, times=clock.times())
    new.acquire()
    lease_of(old).write(patient=False)
    assert record_in(tmp_path)["token"] == lease_of(old)._token
    new.check()  # It writes its own again.
    with pytest.raises(Locked, match="was lost"):
        old.check()
    lease_of(old).write(patient=False)
    with pytest.raises(Locked, match="was lost"):
        old.check()
    assert renewed(new)
    new.check()
    old.release()
    new.check()
    new.release()


def test_a_renewal_that_is_written_too_late_is_none(tmp_path: Path, no_thread: None) -> None:
    where, clock = place(tmp_path, generic=True), Clock()
    old = DirectoryLock(where, times=clock.times())
    old.acquire()
    lease = lease_of(old)
    clock.now += STALE_SECONDS - 3
    write, new = lease.write, DirectoryLock(where, times=clock.times())

    def suspended(*, patient: bool) -> None:
        clock.now += 5
        new._held = _Lease.take(watch, _self())
        write(patient=patient)
        lease.write = write  # type: ignore[method-assign]

    watch = _Watch(where, clock.times())
    watch.look()
    watch._since -= STALE_SECONDS
    lease.write = suspended  # type: ignore[method-assign]
    renewed(old)
    clock.later(5, new.check)  # as its thread does
    with pytest.raises(Locked, match="was lost"):
        old.check()
    new.check()
    new.release()


def test_a_lease_that_ran_out_and_that_nobody_took_is_taken_again(
    tmp_path: Path, no_thread: None
) -> None:
    where, clock = place(tmp_path, generic=True), Clock()
    lock = DirectoryLock(where, times=clock.times())
    lock.acquire()
    clock.now += 3600
    began = clock.now
    lock.check()
    assert clock.now - began == RENEW_SECONDS + SETTLE_SECONDS
    lock.check()
    assert clock.now - began == RENEW_SECONDS + SETTLE_SECONDS
    clock.now += 3600
    (tmp_path / LOCK_NAME).unlink()  # Another took it, and released it.
    with pytest.raises(Locked, match="was lost"):
        lock.check()


@pytest.mark.parametrize("ends", [True, False])
def test_late_renewal_of_the_holder_before_the_last_is_known_for_one(
    tmp_path: Path, no_thread: None, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """It looked, and was suspended while a second one had the lease, and a third one took it."""
    where, clock = place(tmp_path, generic=True), Clock()
    first, second, third = (DirectoryLock(where, times=clock.times()) for _ in range(3))
    first.acquire()
    write = lease_of(first).write

    def suspended(*, patient: bool) -> None:
        second.acquire()
        if ends:
            second.release()
        third.acquire()
        write(patient=patient)

    monkeypatch.setattr(lease_of(first), "write", suspended)
    renewed(first)
    monkeypatch.undo()
    third.check()
    assert record_in(tmp_path)["token"] == lease_of(third)._token
    with pytest.raises(Locked, match="was lost"):
        first.check()
    third.check()


def test_late_release_takes_no_lease_away(
    tmp_path: Path, no_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, clock = place(tmp_path, generic=True), Clock()
    first, second = (DirectoryLock(where, times=clock.times()) for _ in range(2))
    first.acquire()
    write = lease_of(first).write

    def suspended(*, patient: bool) -> None:
        second.acquire()
        write(patient=patient)

    monkeypatch.setattr(lease_of(first), "write", suspended)
    first.release()
    assert record_in(tmp_path)["released"] is True
    second.check()
    assert record_in(tmp_path)["token"] == lease_of(second)._token
    second.check()


def test_lease_of_two_takers_only_one_wins(tmp_path: Path) -> None:
    where, clock = place(tmp_path, generic=True), Clock()
    clock.later(0, lambda: left_behind(tmp_path, token="other"))
    clock.later(2, lambda: left_behind(tmp_path, token="other", count=2))
    with pytest.raises(Locked, match="on elsewhere"):
        DirectoryLock(where, times=clock.times()).acquire()


def test_a_taker_that_was_suspended_before_it_wrote_looks_again(
    tmp_path: Path, no_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, clock = place(tmp_path, generic=True), Clock()
    write, slow = _Lease.write, [90.0, 2.0]

    def suspended(lease: _Lease, *, patient: bool) -> None:
        clock.now += slow.pop() if slow else 0.1
        write(lease, patient=patient)

    monkeypatch.setattr(_Lease, "write", suspended)
    with DirectoryLock(where, times=clock.times()) as lock:
        lock.check()
        assert record_in(tmp_path)["count"] == 3
    slow += [2.0] * 20
    with pytest.raises(StorageError, match=r"longer than 1 s .* 10 times in a row"):
        DirectoryLock(where, times=clock.times()).acquire()


def test_lease_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raytrain.storage.lock.RENEW_SECONDS", 0.01)
    where, clock = place(tmp_path, generic=True), Clock()
    with DirectoryLock(where, times=clock.times()):
        clock.now += STALE_SECONDS / 2
        deadline = time.monotonic() + 600
        while json.loads((tmp_path / LOCK_NAME).read_bytes() or b"{}").get("renewed") != clock.now:
            assert time.monotonic() < deadline
            time.sleep(0.005)


def test_a_process_of_this_machine_that_lives_is_never_gone(tmp_path: Path) -> None:
    """A new Ray knows nothing of the nodes of one whose driver was killed."""
    child = holder(tmp_path)
    taker = DirectoryLock(Location.of(tmp_path), holder_is_gone=lambda record: True)
    with pytest.raises(Locked, match=f"process {child.pid} on"):
        taker.acquire()
    child.communicate("")
    with taker:
        assert not taker.seized


def test_who_looks_and_does_not_wait_goes_by_the_date(tmp_path: Path) -> None:
    where = place(tmp_path, generic=True)
    assert who_writes(where) is None
    for ago, held in [(5, True), (-5, True), (61, False), (-61, False), (1e300, False)]:
        left_behind(tmp_path, renewed=time.time() - ago)
        said = who_writes(where)
        assert (said is not None) is held
        assert said is None or ("process 1 on elsewhere" in said and "last renewed at 20" in said)


@pytest.mark.parametrize("pid", [-1, 0, 2**31, 10**20, math.inf, math.nan, None, "x", [1]], ids=str)
def test_a_process_number_that_is_none_is_taken_for_one_that_lives(pid: object) -> None:
    """Nobody takes a lock away for what is written into it."""
    assert _alive(pid)


def test_whoever_may_write_into_the_directory_may_take_its_lock(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with DirectoryLock(Location.of(tmp_path)):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / LOCK_NAME).stat().st_mode & 0o777 == 0o664
