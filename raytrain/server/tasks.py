"""Work that takes longer than a request: verifications, audits, prunes, exports, evaluations.

A task waits its turn, runs with low priority, and can be canceled. What imports Torch or Ray is a
command in a process of its own (`raytrain audit ... --json`); reading and deleting files is done in
a thread. The database has every task; one whose server has ended before it is failed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

import psutil
from sqlalchemy import insert, select, update

from raytrain.errors import RaytrainError
from raytrain.server.history.database import History
from raytrain.server.history.queries import storable
from raytrain.server.history.tables import tasks
from raytrain.server.problems import LOG, Refused
from raytrain.server.settings import Limits, child_environment

_T = TypeVar("_T")
PROGRAM: tuple[str, ...] = (sys.executable, "-m", "raytrain")
_LOW_PRIORITY = 10
_TELL_EVERY_S = 0.5
_END_WITHIN_S = 3.0
_SHOWN = 200
_OPEN = ("queued", "running")


class TaskCanceled(Exception):
    """Somebody canceled the task."""


class Work:
    """What a task that runs has of the outside: it tells its progress, and hears that it is
    canceled."""

    def __init__(self, tell: Callable[[int, int | None], None]) -> None:
        self._tell = tell
        self._canceled = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None

    def track(self, items: Iterable[_T]) -> Iterator[_T]:
        """The items, counted. Raises `TaskCanceled`."""
        total = len(items) if isinstance(items, Sized) else None
        told = -1.0
        for number, item in enumerate(items):
            self.check()
            if time.monotonic() - told > _TELL_EVERY_S:
                self._tell(number, total)
                told = time.monotonic()
            yield item
        self._tell(total or 0, total)

    def check(self) -> None:
        if self._canceled.is_set():
            raise TaskCanceled

    def command(self, *arguments: str) -> Any:
        """The JSON document that `raytrain ARGUMENTS --json` prints.

        Raises:
            RaytrainError: it printed none; with its message.
        """
        self.check()
        self._child = subprocess.Popen(
            [*PROGRAM, *arguments, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=child_environment(),
        )
        with suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, self._child.pid, _LOW_PRIORITY)
        out, err = self._child.communicate()
        self.check()
        try:
            return json.loads(out)
        except ValueError:
            text = err.decode(errors="replace").strip()
            raise RaytrainError(text.rpartition("error: ")[2] or "It ended silently.") from None

    def cancel(self) -> None:
        self._canceled.set()
        child = self._child
        if child is not None and child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                child.wait(_END_WITHIN_S)
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


class Tasks:
    """The tasks of a server."""

    def __init__(self, history: History, limits: Limits) -> None:
        self._history = history
        self._limits = limits
        self._pool = ThreadPoolExecutor(limits.tasks, thread_name_prefix="raytrain-task")
        self._work: dict[str, Work] = {}
        self._guard = threading.Lock()
        self._server = _me()
        self._fail_orphans()

    def start(self, kind: str, run: str, do: Callable[[Work], Any]) -> dict[str, Any]:
        """Begin a task, or find the one of this kind that the run has already.

        Raises:
            Refused: too many are waiting.
        """
        with self._guard:
            for row in self._rows(tasks.c.run == run, tasks.c.kind == kind):
                if row["state"] in _OPEN:
                    return row
            if len(self._work) >= self._limits.tasks + self._limits.waiting_tasks:
                raise Refused(503, f"{len(self._work)} tasks are waiting already. Ask later.")
            task = uuid.uuid4().hex
            row = {"id": task, "kind": kind, "run": run, "state": "queued", "done": 0}
            row |= {"started_at": _now(), "server": self._server}
            with self._history.writing() as connection:
                connection.execute(insert(tasks).values(row))
            work = Work(lambda done, total: self._set(task, done=done, total=total))
            self._work[task] = work
        self._pool.submit(self._run, task, work, do)
        return self.get(task)

    def get(self, task: str) -> dict[str, Any]:
        """A task of any server. Raises `Refused` if there is none."""
        found = self._rows(tasks.c.id == task)
        if not found:
            raise Refused(404, f"There is no task {task}.")
        return found[0]

    def newest(self, run: str | None = None) -> list[dict[str, Any]]:
        """The newest tasks, of a run or of all."""
        return self._rows(*([] if run is None else [tasks.c.run == run]))

    def counts(self) -> dict[str, int]:
        """How many tasks of this server wait or run."""
        with self._guard:
            ids = list(self._work)
        states = [row["state"] for row in self._rows(tasks.c.id.in_(ids))]
        return {state: states.count(state) for state in _OPEN}

    def cancel(self, task: str) -> dict[str, Any]:
        """Raises `Refused` for a task of another server."""
        row = self.get(task)
        with self._guard:
            work = self._work.get(task)
        if work is not None:
            work.cancel()
        elif row["state"] in _OPEN:
            raise Refused(409, "The task runs in another server; cancel it there.")
        return self.get(task)

    def close(self) -> None:
        """Cancel everything, and wait for its end."""
        with self._guard:
            running = list(self._work.values())
        for work in running:
            work.cancel()
        self._pool.shutdown(wait=True)

    def _run(self, task: str, work: Work, do: Callable[[Work], Any]) -> None:
        ended: dict[str, Any] = {"state": "failed", "message": "canceled"}
        try:
            work.check()
            self._set(task, state="running")
            ended = {"state": "done", "result": storable(do(work)), "message": None}
        except TaskCanceled:
            pass
        except RaytrainError as error:
            ended["message"] = storable(str(error))
        except Exception as error:
            LOG.error("A task failed", exc_info=error)
            ended["message"] = "An error in raytrain itself; the server's own output has details."
        finally:
            with self._guard:
                del self._work[task]
            try:
                self._set(task, ended_at=_now(), **ended)
            except RaytrainError as error:
                LOG.error("The end of a task could not be recorded: %s", error)

    def _set(self, task: str, **values: Any) -> None:
        with self._history.writing() as connection:
            connection.execute(update(tasks).where(tasks.c.id == task).values(values))

    def _rows(self, *where: Any) -> list[dict[str, Any]]:
        query = select(tasks).where(*where).order_by(tasks.c.started_at.desc()).limit(_SHOWN)
        with self._history.reading() as connection:
            found = [dict(row) for row in connection.execute(query).mappings()]
        for row in found:
            del row["server"]
        return found

    def _fail_orphans(self) -> None:
        """Tasks whose server was killed will not end by themselves."""
        query = select(tasks.c.id, tasks.c.server).where(tasks.c.state.in_(_OPEN))
        with self._history.reading() as connection:
            found = list(connection.execute(query))
        for task, server in found:
            if _is_dead(server):
                message = "The server ended before the task did."
                self._set(task, state="failed", message=message, ended_at=_now())


def _me() -> str:
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.2f}"


def _is_dead(server: str) -> bool:
    """Whether a server of this machine has ended; of another machine's it is not known."""
    host, pid, created = server.rsplit(" ", 2)
    if host != socket.gethostname():
        return False
    with suppress(psutil.NoSuchProcess):
        return f"{psutil.Process(int(pid)).create_time():.2f}" != created
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
