"""One writer at a time, on a local disk and where there are no locks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoint_children import place

from raytrain.checkpoint import DirectoryLock, Location, Locked
from raytrain.checkpoint.lock import LOCK_NAME, STALE_SECONDS, Times

HOLD = """
import os, sys
from raytrain.checkpoint import DirectoryLock, Location
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
    def __init__(self) -> None:
        self.now = 1000.0

    def times(self) -> Times:
        return Times(now=lambda: self.now, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_lease_is_exclusive_goes_stale_and_tells_who_lost_it(tmp_path: Path) -> None:
    where, clock = place(tmp_path, generic=True), Clock()
    first = DirectoryLock(where, times=clock.times())
    first.acquire()
    record = json.loads((tmp_path / LOCK_NAME).read_text())
    clock.now = record["renewed"] + STALE_SECONDS - 10
    with pytest.raises(Locked, match=f"process {os.getpid()}"):
        DirectoryLock(where, times=clock.times()).acquire()
    clock.now = record["renewed"] + STALE_SECONDS + 1
    second = DirectoryLock(where, times=clock.times())
    second.acquire()
    second.check()
    with pytest.raises(Locked, match="was lost"):
        first.check()
    first.release()  # must not take the lease away from the second
    second.check()
    second.release()
    assert not (tmp_path / LOCK_NAME).exists()


def test_lease_of_a_dead_process_of_this_host_is_taken_at_once(tmp_path: Path) -> None:
    where, clock = place(tmp_path, generic=True), Clock()
    with DirectoryLock(where, times=clock.times()):
        record = json.loads((tmp_path / LOCK_NAME).read_text())
    dead = subprocess.Popen(["true"])
    dead.wait()
    for host, free in [(record["host"], True), ("elsewhere", False)]:
        other = {**record, "pid": dead.pid, "host": host, "renewed": clock.now, "token": "x"}
        (tmp_path / LOCK_NAME).write_text(json.dumps(other))
        lock = DirectoryLock(where, times=clock.times())
        if free:
            with lock:
                lock.check()
        else:
            with pytest.raises(Locked, match="on elsewhere"):
                lock.acquire()


def test_lease_of_two_takers_only_one_wins(tmp_path: Path) -> None:
    where = place(tmp_path, generic=True)

    def overtaken(_: float) -> None:
        record = json.loads((tmp_path / LOCK_NAME).read_text())
        record.update(token="other", host="elsewhere")
        (tmp_path / LOCK_NAME).write_text(json.dumps(record))

    with pytest.raises(Locked, match="on elsewhere"):
        DirectoryLock(where, times=Times(now=time.time, sleep=overtaken)).acquire()


def test_lease_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raytrain.checkpoint.lock.RENEW_SECONDS", 0.01)
    where, clock = place(tmp_path, generic=True), Clock()
    with DirectoryLock(where, times=clock.times()):
        clock.now += 1000
        deadline = time.monotonic() + 600
        while json.loads((tmp_path / LOCK_NAME).read_bytes() or b"{}").get("renewed") != clock.now:
            assert time.monotonic() < deadline
            time.sleep(0.005)
