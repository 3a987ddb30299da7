"""One writer of a directory at a time.

On a local disk: an exclusive `flock` on `.raytrain.lock`, which the kernel releases when its holder
dies, however it dies. The file's content only says who holds it. The file stays when the lock is
released: if it were deleted, two processes could lock two files of one name.

Elsewhere, and without support for `flock`: a lease, which the death of a process does not release:

    {"pid", "host", "boot", "started", "token", "former", "renewed", "count", "released"}
    in `.raytrain.lock`, rewritten every 10 s by a thread; `former`: the tokens of former holders

No clock of one machine is compared with that of another. A process that wants a lease watches it,
and may take a lease that has not changed for 60 s of the watcher's own clock, or whose holder is
known to be dead. An object store offers no compare-and-swap here, so a taker writes within a second
of its look, waits another second, and reads back whether its own token is still there.

The holder counts from the start of its last renewal, by its own clock. After 60 s the lease has
expired, since another process may have taken it, and is not renewed any more:

    read: another's token, or no file    the lease is lost, whatever is read later
    read: its own token                  nobody took it while the store or this machine was away;
                                         the holder takes it again, as any other process would

A renewal or release by a former holder may reach the store after the lease was taken from it. The
new holder knows the former tokens and writes its own again; a holder that takes its own lease again
waits for that. So a released lease is not deleted, but marked as released. `check` raises if the
lease is lost, and serves as the fence of a commit.

A holder may be known to be gone: its node was cut off, and the run continues elsewhere. Such a lock
is seized: another file takes the name of the locked one (on a local disk), or another token is
written (elsewhere). From then on the old holder's `check` raises, also if its node comes back. A
living process of this machine is never gone.
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
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raytrain.errors import RaytrainError
from raytrain.storage.clocks import seconds_passed
from raytrain.storage.escapes import printable
from raytrain.storage.json import read_json
from raytrain.storage.location import Location, storage_errors

LOCK_NAME = ".raytrain.lock"
_FORMER_HOLDERS = 8  # whose late requests are recognised
RENEW_SECONDS = 10.0
STALE_SECONDS = 60.0
LEASE_PATIENCE_S = 75.0  # a wait for a holder that is about to end
READER_S = 1.0  # On a local disk a process that only looks may hold the lock for a moment.
SETTLE_SECONDS = 1.0  # two takers' writes overlap by this much at most
_WRITE_WITHIN_S = 1.0  # from the look that found the lease free
_WRITES = 10
_POLL_SECONDS = 0.2
_A_MOMENT_S = 2.0  # a shorter wait is not reported
# A store is asked for a file's size first and for its bytes then: a file that was replaced in
# between by a longer one is cut short. So all records of a lease have one size, and an unreadable
# one is read again.
_LEASE_BYTES = 1024
_READ_AGAIN = 5
_READ_AGAIN_S = 0.1
_NO_FLOCK = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})


class Locked(RaytrainError):
    """Another process is writing there."""


@dataclass(frozen=True)
class Times:
    """Clock, pause and date: parameters, so that tests need not wait a minute."""

    now: Callable[[], float] = seconds_passed
    sleep: Callable[[float], None] = time.sleep
    date: Callable[[], float] = time.time


@dataclass(eq=False)
class DirectoryLock:
    """`with DirectoryLock(place, wait=30): ...`

    Raises `Locked` if another process holds the lock for `wait` more seconds. Whether the holder of
    a lease lives is found out first, which takes up to 60 s. `tell` is called once if the wait is
    longer than a moment.

    `note` is added to what the file says of the holder. `holder_is_gone` is asked about a holder
    (the file's content) that does not live on this machine; if it is gone, the lock is seized and
    `seized` is True.
    """

    place: Location
    _: KW_ONLY
    wait: float = 0.0
    times: Times = Times()
    tell: Callable[[str], None] = lambda text: None
    note: Mapping[str, str] = field(default_factory=dict)
    holder_is_gone: Callable[[Mapping[str, Any]], bool] = lambda holder: False
    seized: bool = field(default=False, init=False)
    _held: _Flock | _Lease | None = field(default=None, init=False)

    def __enter__(self) -> DirectoryLock:
        self.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def acquire(self) -> None:
        deadline = self.times.now() + self.wait
        watch = _Watch(self.place, self.times)
        reported = False
        with storage_errors("Locking the directory", self.place):
            self.place.make()
            while True:
                self._held = self._try(watch)
                if self._held is None and self._is_gone(_read(self.place)):
                    self._held = self._try(watch, seize=True)
                    self.seized = self._held is not None
                if self._held is not None:
                    return
                left = max(deadline - self.times.now(), watch.undecided_s)
                if left <= 0:
                    raise Locked(self._who())
                if not reported and left > _A_MOMENT_S:
                    reported = True
                    self.tell(f"{self._holder()}. Waiting {left:.0f} s at most for it to end.")
                self.times.sleep(_POLL_SECONDS)

    @property
    def taken_over(self) -> bool:
        """Whether a former holder may not know that it lost the lock: the lock was seized, or it is
        a lease that was not renewed."""
        return self.seized or (isinstance(self._held, _Lease) and self._held.taken_over)

    def check(self) -> None:
        """Raise `Locked` if the lock is not held or was lost. Cheap; serves as a commit's fence."""
        if self._held is None:
            raise Locked(f"The lock on {self.place} is not held; acquire it before writing.")
        with storage_errors("Checking the lock", self.place):
            if not self._held.still_held():
                raise Locked(f"The lock on {self.place} was lost. {self._who()}")

    def release(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            with storage_errors("Releasing the lock", self.place):
                held.release()

    def _is_gone(self, holder: Mapping[str, Any]) -> bool:
        lives_here = _is_here(holder) and _alive(holder.get("pid"))
        return not lives_here and self.holder_is_gone(holder)

    def _try(self, watch: _Watch, *, seize: bool = False) -> _Flock | _Lease | None:
        record = {**_self(), **self.note}
        if self.place.is_local:
            try:
                return _Flock.take(self.place, record, seize=seize)
            except OSError as error:
                if error.errno not in _NO_FLOCK:
                    raise
        return _Lease.take(watch, record, seize=seize)

    def _who(self) -> str:
        return f"{self._holder()}. Wait for it to end, or stop it, then run the same command again."

    def _holder(self) -> str:
        return f"{self.place} is being written by {_description(_read(self.place))}"


def who_writes(place: Location) -> str | None:
    """A description of the process that holds the lock on a directory now; None if none does.

    A lease is not watched for that: it counts as held if it was renewed within the last 60 s
    by this machine's date, and the description says when. That is good enough to be shown, and
    for nothing else.
    """
    with storage_errors("Reading the lock", place):
        holder = _read(place)
        if not holder:
            return None
        free = not _renewed_lately(holder) if "token" in holder else _could_lock(place)
    return None if free else _description(holder)


@dataclass(frozen=True)
class Holder:
    """The process that holds a directory's lock. `is_here`: its pid is one of this machine."""

    pid: int
    host: str
    is_here: bool
    text: str


def holder(place: Location) -> Holder | None:
    """As `who_writes`, for a program that wants to send the process a signal."""
    text = who_writes(place)
    with storage_errors("Reading the lock", place):
        record = _read(place)
    pid = record.get("pid")
    if text is None or not isinstance(pid, int) or pid <= 0:
        return None
    return Holder(pid, printable(str(record.get("host", "?"))), _is_here(record), text)


def _renewed_lately(holder: Mapping[str, Any]) -> bool:
    renewed = holder.get("renewed")
    if not isinstance(renewed, int | float) or _is_released(holder) or _is_dead(holder):
        return False
    return abs(time.time() - renewed) <= STALE_SECONDS


def _description(holder: Mapping[str, Any]) -> str:
    since = holder.get("started", "an unknown time")
    text = f"process {holder.get('pid', '?')} on {holder.get('host', '?')} since {since}"
    with suppress(TypeError, ValueError, OverflowError, OSError, KeyError):
        renewed = datetime.fromtimestamp(holder["renewed"], UTC).isoformat(timespec="seconds")
        text += f", last renewed at {renewed} by its own clock"
    return printable(text)


def _could_lock(place: Location) -> bool:
    """Take the lock for a moment, shared, so that readers do not disturb each other."""
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
        # A seized file is locked before it gets its name, so that nobody can lock it in between.
        opened = f"{path}.{uuid.uuid4().hex}" if seize else path
        # Child programs do not inherit it (O_CLOEXEC is the default); for forks see below.
        descriptor = os.open(opened, os.O_RDWR | os.O_CREAT, 0o666)
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
        if not taken.still_held():  # Another seized it between the open and the lock.
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


class _Watch:
    """How a lease changes, as seen by a process that wants it, by its own clock."""

    def __init__(self, place: Location, times: Times) -> None:
        self.place = place
        self.times = times
        self.looked_at = 0.0
        self._record: dict[str, Any] | None = None
        self._since = 0.0
        self._unchanged_s = 0.0
        self._is_renewed = False

    def look(self) -> dict[str, Any]:
        """The record. How long it stays the same is counted from the end of the first look at it to
        the start of the last one."""
        self.looked_at = self.times.now()
        record = _read(self.place)
        if record == self._record:
            self._unchanged_s = self.looked_at - self._since
        else:
            self._is_renewed = self._record is not None
            self._record, self._since, self._unchanged_s = record, self.times.now(), 0.0
        return record

    @property
    def is_free(self) -> bool:
        """Whether the lease may be taken, as of the last look."""
        stale = self._unchanged_s >= STALE_SECONDS
        return not self._record or _is_released(self._record) or stale or _is_dead(self._record)

    @property
    def undecided_s(self) -> float:
        """Seconds until it is known whether the holder lives; 0 if known, or if there is none."""
        if not self._record or self._is_renewed or _is_released(self._record):
            return 0.0
        return STALE_SECONDS - self._unchanged_s


class _Lease:
    """A file renewed by a thread. `before`: its content when the lease was taken."""

    def __init__(
        self, place: Location, times: Times, record: Mapping[str, Any], before: Mapping[str, Any]
    ) -> None:
        self._place = place
        self._times = times
        self._token = uuid.uuid4().hex
        former = before.get("former")
        tokens = [*(former if isinstance(former, list) else ()), before.get("token")]
        # The newest last.
        self._former = [token for token in tokens if isinstance(token, str)][-_FORMER_HOLDERS:]
        self.taken_over = bool(before) and not _is_released(before)
        self._record = {**record, "token": self._token, "former": self._former}
        self._count = 0
        self._renewed = 0.0
        self._lost = False
        self._guard = threading.Lock()  # between the thread that renews and those that check
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="raytrain-lease", daemon=True)

    @classmethod
    def take(
        cls, watch: _Watch, record: Mapping[str, Any], *, seize: bool = False
    ) -> _Lease | None:
        before = watch.look()
        if not seize and not watch.is_free:
            return None
        lease = cls(watch.place, watch.times, record, before)
        if not lease._take(watch.looked_at, SETTLE_SECONDS):
            return None
        lease._thread.start()
        return lease

    def still_held(self) -> bool:
        with self._guard:
            return self._hold(renew=False)

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        # If the store does not answer, or answers late, the lease goes stale by itself.
        with suppress(OSError):
            if not self._lost and self._reads() == self._token and self._is_in_time():
                self._record["released"] = True
                self.write(patient=False)

    def write(self, *, patient: bool) -> None:
        """Write the record with a new count, so that a watcher sees a change."""
        self._count += 1
        record = {**self._record, "renewed": self._times.date(), "count": self._count}
        data = json.dumps(record).ljust(_LEASE_BYTES).encode()
        if patient or self._place.is_local:
            self._place.write_atomic(LOCK_NAME, data)
        else:
            (self._place / LOCK_NAME).write_now(data)

    def _hold(self, *, renew: bool) -> bool:
        """Whether the lease is held. It is taken again, or renewed, if that is due."""
        if self._lost:
            return False
        looked_at = self._times.now()
        token = self._reads()
        in_time = self._is_in_time()
        if token == self._token and in_time:
            if renew:
                self._renew_once()
        elif token == self._token:
            # Longer than a taker needs to notice, and write again, a record that was overwritten.
            self._lost = not self._take(looked_at, RENEW_SECONDS + SETTLE_SECONDS)
        elif token in self._former and in_time:
            self._lost = not self._take(looked_at, SETTLE_SECONDS)
        else:
            self._lost = True
        return not self._lost

    def _renew_once(self) -> None:
        began = self._times.now()
        self.write(patient=False)
        if self._is_in_time():  # Otherwise another may have taken the lease before the write.
            self._renewed = began

    def _take(self, looked_at: float, settle_s: float) -> bool:
        """Write the record, and check that it stays. Another taker may have looked before the
        write, so a late one does not count."""
        for _ in range(_WRITES):
            began = self._times.now()
            self.write(patient=True)
            in_time = self._times.now() - looked_at <= _WRITE_WITHIN_S
            if in_time:
                self._times.sleep(settle_s)
            looked_at = self._times.now()
            if self._reads() != self._token:
                return False
            if in_time and self._times.now() - began < STALE_SECONDS:
                self._renewed = began
                return True
        raise TimeoutError(
            errno.ETIMEDOUT,
            f"a small file took longer than {_WRITE_WITHIN_S:.0f} s to be read and written, "
            f"{_WRITES} times in a row",
            str(self._place / LOCK_NAME),
        )

    def _is_in_time(self) -> bool:
        return self._times.now() - self._renewed < STALE_SECONDS

    def _reads(self) -> str | None:
        return _read(self._place).get("token")

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            with suppress(OSError), self._guard:  # The next round tries again.
                if not self._hold(renew=True):
                    return


def _self() -> dict[str, Any]:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), **_identity(), "started": started}


def _identity() -> dict[str, str | None]:
    """The scope of a pid: host, process namespace, and boot. Host names repeat, and the first
    namespace of every machine has the same number. `boot` is None if one of them is unknown."""
    host = socket.gethostname()
    try:
        namespace = os.readlink("/proc/self/ns/pid").removeprefix("pid:")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return {"host": host, "boot": None}
    return {"host": f"{host} {namespace}", "boot": boot}


def _is_here(holder: Mapping[str, Any]) -> bool:
    """Whether the holder's pid has the same scope as this process's own."""
    own = _identity()
    return own["boot"] is not None and all(holder.get(key) == own[key] for key in own)


def _is_dead(holder: Mapping[str, Any]) -> bool:
    """Whether the holder is known to be dead."""
    return _is_here(holder) and not _alive(holder.get("pid"))


def _is_released(record: Mapping[str, Any]) -> bool:
    return record.get("released") is True


def _read(place: Location) -> dict[str, Any]:
    """The file's content; empty if there is no file. Of a file that stays unreadable it is only
    known that it exists."""
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
    return {"token": None}


def _alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, TypeError, ValueError, OverflowError):
        return True
    return True
