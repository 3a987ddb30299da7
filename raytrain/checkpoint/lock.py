"""One writer of a directory at a time.

On a local disk: an exclusive `flock` on `.raytrain.lock`, which the kernel releases when its holder
dies, however it dies. The file's content only says who holds it; the file stays when the lock is
released, since deleting it would let two processes lock two files of one name.

Elsewhere (and where `flock` is not supported) a lease, since there is nothing that the death of a
process releases:

    {"pid", "host", "started", "token", "renewed"}     in `.raytrain.lock`, written anew every 10 s
    by a thread

A lease that has not been renewed for 60 s is stale and may be taken. A holder that finds another's
token in the file has lost it; `check` then raises, and serves as the fence of a commit. An object
store offers no compare-and-swap here, so a taker writes, lets a moment pass, and reads back whether
its own token stayed.

A holder may be known to be out of the world: its node was cut off, and the run goes on elsewhere.
Such a lock is seized: another file takes the name of the locked one (on a local disk), or another
token is written (elsewhere). The old holder's `check` raises from then on, also when it comes back.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from raytrain.checkpoint.storage import Location, storage_errors
from raytrain.errors import RaytrainError
from raytrain.printable import printable
from raytrain.stored_json import read_json

LOCK_NAME = ".raytrain.lock"
RENEW_SECONDS = 10.0
STALE_SECONDS = 60.0
LEASE_PATIENCE_S = 75.0  # until the lease of a holder that died is stale
SETTLE_SECONDS = 1.0  # longer than two takers' writes can overlap by
_POLL_SECONDS = 0.2
# A store is asked for a file's size first and for its bytes then: one that was replaced in between by a
# longer one is read cut short. So all records of a lease have one size, and an unreadable one is read again.
_LEASE_BYTES = 512
_READ_AGAIN = 5
_READ_AGAIN_S = 0.1
_NO_FLOCK = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})


class Locked(RaytrainError):
    """Another process is writing there."""


@dataclass(frozen=True)
class Times:
    """Wall clock and sleep, so that a test need not wait a minute."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


class DirectoryLock:
    """`with DirectoryLock(place, wait=30): ...` Raises `Locked` if another holds it for `wait` more
    seconds; `tell` hears of it once when there is something to wait for.

    `note` is added to what the file says of the holder; `out_of_the_world` is asked about another
    holder (the file's content), and the lock is seized if it says so. `seized` tells.
    """

    def __init__(
        self,
        place: Location,
        *,
        wait: float = 0.0,
        times: Times | None = None,
        tell: Callable[[str], None] = lambda text: None,
        note: Mapping[str, str] | None = None,
        out_of_the_world: Callable[[Mapping[str, Any]], bool] = lambda holder: False,
    ) -> None:
        self._place = place
        self._wait = wait
        self._tell = tell
        self._times = times or Times()
        self._note = dict(note or {})
        self._out_of_the_world = out_of_the_world
        self._held: _Flock | _Lease | None = None
        self.seized = False

    def __enter__(self) -> DirectoryLock:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def acquire(self) -> None:
        deadline = self._times.now() + self._wait
        told = False
        with storage_errors("Locking the directory", self._place):
            self._place.make()
            while True:
                self._held = self._try()
                if self._held is None and self._out_of_the_world(_read(self._place)):
                    self._held = self._try(seize=True)
                    self.seized = self._held is not None
                if self._held is not None:
                    return
                if self._times.now() >= deadline:
                    raise Locked(self._who())
                if not told:
                    told = True
                    self._tell(
                        f"{self._holder()}. Waiting {self._wait:.0f} s at most for it to end."
                    )
                self._times.sleep(_POLL_SECONDS)

    def check(self) -> None:
        """Raise `Locked` if the lock is not held, or was lost to another. Cheap; fit to be a
        commit's fence.
        """
        if self._held is None:
            raise Locked(f"The lock on {self._place} is not held; acquire it before writing.")
        with storage_errors("Checking the lock", self._place):
            if not self._held.still_held():
                raise Locked(f"The lock on {self._place} was lost. {self._who()}")

    def release(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            with storage_errors("Releasing the lock", self._place):
                held.release()

    def _try(self, *, seize: bool = False) -> _Flock | _Lease | None:
        record = {**_self(), **self._note}
        if self._place.is_local:
            try:
                return _Flock.take(self._place, record, seize=seize)
            except OSError as error:
                if error.errno not in _NO_FLOCK:
                    raise
        return _Lease.take(self._place, self._times, record, seize=seize)

    def _who(self) -> str:
        return (
            f"{self._holder()}. Wait for it to end, or stop it, then give the same command again."
        )

    def _holder(self) -> str:
        return f"{self._place} is being written by {_described(_read(self._place))}"


def who_writes(place: Location) -> str | None:
    """Who holds the lock on a directory at this moment, in words; None if nobody does."""
    with storage_errors("Looking at the lock", place):
        holder = _read(place)
        if not holder:
            return None
        lease = "token" in holder
        free = _stale(holder, time.time()) if lease else _could_lock(place)
    return None if free else _described(holder)


def _described(holder: Mapping[str, Any]) -> str:
    since = holder.get("started", "an unknown time")
    told = f"process {holder.get('pid', '?')} on {holder.get('host', '?')} since {since}"
    return printable(told)


def _could_lock(place: Location) -> bool:
    """Held for a moment and shared, so that those who look do not disturb each other."""
    descriptor = os.open((place / LOCK_NAME).path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
    finally:
        os.close(descriptor)
    return True


class _Flock:
    """An open file description with an exclusive lock, as long as its file has the lock's name."""

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self._path = path
        _held_here.add(self)

    @classmethod
    def take(
        cls, place: Location, record: Mapping[str, Any], *, seize: bool = False
    ) -> _Flock | None:
        path = (place / LOCK_NAME).path
        # Locked before it gets its name, so that nobody is between the two when it is seized.
        opened = f"{path}.{uuid.uuid4().hex}" if seize else path
        # Programs it starts do not inherit it (O_CLOEXEC is the default); forks: see below.
        descriptor = os.open(opened, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(record).encode(), 0)
            if seize:
                os.replace(opened, path)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        taken = cls(descriptor, path)
        if not taken.still_held():  # Seized by another between the opening and the locking.
            taken.release()
            return None
        return taken

    def still_held(self) -> bool:
        try:
            named = os.stat(self._path)
        except FileNotFoundError:
            return False
        own = os.fstat(self._descriptor)
        return (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino)

    def release(self) -> None:
        _held_here.discard(self)
        os.close(self._descriptor)


_held_here: set[_Flock] = set()


def _forget_in_child() -> None:
    """After a fork: close the child's copies, or the lock would outlive its holder."""
    for lock in list(_held_here):
        lock.release()


os.register_at_fork(after_in_child=_forget_in_child)


class _Lease:
    """A file renewed by a thread."""

    def __init__(self, place: Location, times: Times, record: Mapping[str, Any]) -> None:
        self._place = place
        self._times = times
        self._record = {**record, "token": uuid.uuid4().hex}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="raytrain-lease", daemon=True)

    @classmethod
    def take(
        cls, place: Location, times: Times, record: Mapping[str, Any], *, seize: bool = False
    ) -> _Lease | None:
        current = _read(place)
        if current and not seize and not _stale(current, times.now()):
            return None
        lease = cls(place, times, record)
        lease.write()
        times.sleep(SETTLE_SECONDS)
        if not lease.still_held():
            return None
        lease._thread.start()
        return lease

    def write(self) -> None:
        record = {**self._record, "renewed": self._times.now()}
        self._place.write_atomic(LOCK_NAME, json.dumps(record).ljust(_LEASE_BYTES).encode())

    def still_held(self) -> bool:
        return bool(_read(self._place).get("token") == self._record["token"])

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        # Where the store does not answer, the lease goes stale by itself.
        with suppress(OSError):
            if self.still_held():
                (self._place / LOCK_NAME).delete_file()

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            try:
                if not self.still_held():
                    return
                self.write()
            except OSError:
                continue  # tried again; if storage stays away, the lease goes stale


def _self() -> dict[str, Any]:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": _host(), "started": started}


def _host() -> str:
    """Host and process namespace: a pid means something only inside both."""
    try:
        namespace = os.readlink("/proc/self/ns/pid").removeprefix("pid:")
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()} {namespace}"


def _read(place: Location) -> dict[str, Any]:
    """What the file says; empty if there is none, or if it stays unreadable."""
    for attempt in range(1 if place.is_local else _READ_AGAIN):
        if attempt:
            time.sleep(_READ_AGAIN_S)
        try:
            record = read_json(place / LOCK_NAME)
        except FileNotFoundError:
            return {}
        except ValueError:
            continue
        return record if isinstance(record, dict) else {}
    return {}


def _stale(record: dict[str, Any], now: float) -> bool:
    renewed = record.get("renewed")
    if not isinstance(renewed, int | float) or now - renewed > STALE_SECONDS:
        return True
    return record.get("host") == _host() and not _alive(record.get("pid"))


def _alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, TypeError, ValueError):
        return True
    return True
