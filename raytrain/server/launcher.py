"""Runs as processes of their own: started, found again, and stopped.

    data_dir/logs/<digest of the run's directory>/lock          held by the run that was started
                                                  launch.json   what was started last
                                                  stop          the process that was asked to stop
                                                  TIME.log      its output

A run is `raytrain train`, `resume` or `fork` in a session of its own, so no signal to the server
reaches it. It inherits the descriptor of `lock`, which is locked before it is started: as long as
it lives, no server of this user starts it again, whatever became of the server that did. Who trains
in a directory is known from the directory's own lock, whoever started it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import insert, select

from raytrain.checkpoint import Catalogue, Entry, trials
from raytrain.checkpoint.experiment_file import EXPERIMENT_FILE
from raytrain.commands.jobs import STOP_WAIT_S, JobServer, run_mark
from raytrain.server.history.database import History
from raytrain.server.history.tables import launches
from raytrain.server.problems import Refused
from raytrain.server.settings import ServerSettings, child_environment
from raytrain.storage import Location, holder
from raytrain.storage.json import parse_json
from raytrain.storage.lock import LOCK_NAME

PROGRAM: tuple[str, ...] = (sys.executable, "-m", "raytrain")
_RECORD, _LOCK, _STOP = "launch.json", "lock", "stop"
_KEPT_LOGS = 20  # of a run
_LAST_LINES = 4000  # characters of a log that are searched for the reason of an end


@dataclass(frozen=True)
class Launch:
    """What was started: a process of this machine, or a job. `created`: its start, in seconds since
    1970, as the system counts it: a pid alone may be another process's by now."""

    path: str
    command: list[str]
    started_at: str
    log: str
    pid: int | None = None
    created: float | None = None
    host: str | None = None
    job: str | None = None
    address: str | None = None
    config: str | None = None

    @property
    def process(self) -> psutil.Process | None:
        """The process, while it runs."""
        return _process(self.pid, self.created) if self.host == socket.gethostname() else None


@dataclass(frozen=True)
class Started:
    """`new` is False if the run was running already; then `launch` is what is known of its start.
    `before`: the run's experiment.json as it was, for `has_begun`."""

    launch: Launch | None
    new: bool
    before: tuple[int | None, int] | None = None


class Launcher:
    """Starts and stops runs. One for a server; any number of servers may work beside it."""

    def __init__(self, settings: ServerSettings, history: History) -> None:
        self._settings = settings
        self._history = history
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._jobs: dict[str, JobServer] = {}
        self._guard = threading.Lock()

    def start(self, place: Location, arguments: Sequence[str], **known: str) -> Started:
        """Start `raytrain ARGUMENTS`, which trains in `place`, unless something trains there.
        `known`: further fields of the `Launch`."""
        directory = self._settings.launch_directory(place)
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory / _LOCK) as descriptor:
            if descriptor is None or holder(place) is not None:
                return Started(self.last(place), new=False)
            before = self.stamp(place)
            moment = datetime.now(UTC)
            log = directory / f"{moment:%Y%m%d-%H%M%S-%f}.log"
            for old in sorted(directory.glob("*.log"))[: 1 - _KEPT_LOGS]:
                old.unlink(missing_ok=True)
            command = [*PROGRAM, *arguments]
            with log.open("wb") as output:
                os.chmod(log, 0o600)
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(descriptor,),
                    env=child_environment(),
                )
            with self._guard:
                self._children[process.pid] = process
            # It is a child that nobody has waited for, so it is there, if only as a zombie.
            created = psutil.Process(process.pid).create_time()
            launch = Launch(
                str(place),
                ["raytrain", *arguments],
                moment.isoformat(timespec="seconds"),
                str(log),
                pid=process.pid,
                created=created,
                host=socket.gethostname(),
                **known,
            )
            _write(directory / _RECORD, asdict(launch))
        self._remember(launch)
        return Started(launch, new=True, before=before)

    def remember_job(self, place: Location, arguments: Sequence[str], job: str) -> None:
        """Record a job that `raytrain ARGUMENTS` has submitted for the run in `place`."""
        directory = self._settings.launch_directory(place)
        directory.mkdir(parents=True, exist_ok=True)
        launch = Launch(
            str(place),
            ["raytrain", *arguments],
            datetime.now(UTC).isoformat(timespec="seconds"),
            "",
            job=job,
            address=self._settings.address,
        )
        _write(directory / _RECORD, asdict(launch))
        self._remember(launch)

    def last(self, place: Location) -> Launch | None:
        """What was started last in a directory, by any server of this user."""
        try:
            document = parse_json((self._settings.launch_directory(place) / _RECORD).read_bytes())
            return Launch(**document)
        except (OSError, ValueError, TypeError):
            return None

    def log(self, place: Location) -> Path | None:
        """The newest log of a run that a server of this user started."""
        found = sorted(self._settings.launch_directory(place).glob("*.log"))
        return found[-1] if found else None

    def stamp(self, place: Location) -> tuple[int | None, int] | None:
        """The run's experiment.json as it is, for `has_begun`; None if there is none."""
        listed = place.listed().get(EXPERIMENT_FILE)
        return None if listed is None else (listed.mtime_ns, listed.size)

    def has_begun(self, place: Location, before: tuple[int | None, int] | None) -> bool:
        """Whether the run has accepted its config since the `stamp` before: it writes
        experiment.json at each start."""
        stamp = self.stamp(place)
        return stamp is not None and stamp != before

    def exit_code(self, launch: Launch) -> int | None:
        """The exit code of a run that this server started; None while it runs. -1 if unknown."""
        self.reap()
        with self._guard:
            child = self._children.get(launch.pid or 0)
        if child is not None and child.returncode is not None:
            return child.returncode
        return None if launch.process is not None else -1

    def reap(self) -> None:
        """Let children that have ended be forgotten by the system."""
        with self._guard:
            for child in self._children.values():
                child.poll()

    def is_running(self, place: Location) -> bool:
        """Whether something trains in `place`, or was started to."""
        launch = self.last(place)
        if holder(place) is not None:
            return True
        if launch is None:
            return False
        if launch.job is not None and launch.address is not None:
            return not self.jobs(launch.address).job(launch.job).status.is_terminal()
        return launch.process is not None

    def why_job_ended(self, place: Location) -> str | None:
        """The end of its log, if the job of a run has ended."""
        launch = self.last(place)
        if launch is None or launch.job is None or launch.address is None:
            return None
        jobs = self.jobs(launch.address)
        if not jobs.job(launch.job).status.is_terminal():
            return None
        return _reason(jobs.log(launch.job))

    def jobs(self, address: str) -> JobServer:
        """The job server at an address. Ray is imported for it, as a client."""
        with self._guard:
            if address not in self._jobs:
                self._jobs[address] = JobServer(address)
            return self._jobs[address]

    # -- stopping --------------------------------------------------------------------------------

    def stop(self, place: Location) -> None:
        """Ask the run in `place` to save and end. Asked again, it is left to do so; after
        `STOP_WAIT_S` it gets a second signal, which ends it at once.

        Raises:
            Refused: nothing trains there, or it cannot be reached from here.
        """
        directory = self._settings.launch_directory(place)
        directory.mkdir(parents=True, exist_ok=True)
        # Two signals more than a second apart would end a run without saving.
        with _locked(directory / f"{_STOP}.lock", wait=True):
            writer, launch = holder(place), self.last(place)
            process = launch.process if launch is not None else None
            if writer is not None and writer.is_here:
                process = _process(writer.pid, None)
                if process is not None and not _may_train(process, place):
                    raise Refused(
                        409,
                        f"{place} is said to be trained by the process {writer.pid}, which does "
                        "not hold its lock. Somebody else has written the lock; nothing was "
                        "stopped.",
                    )
            if process is not None:
                self._signal(process, directory / _STOP)
                return
        if launch is not None and launch.job is not None and launch.address is not None:
            self.jobs(launch.address).stop(launch.job)
            return
        job = self._job_of(place)
        if job is not None:
            self.jobs(self._settings.address or "").stop(job)
            return
        if writer is None:
            raise Refused(409, f"{place} is not being trained, so there is nothing to stop.")
        raise Refused(
            409,
            f"{place} is being trained by {writer.text}, which this server cannot reach. Stop it "
            "there: send SIGTERM to the process, or press Ctrl-C once.",
        )

    def saved(self, place: Location) -> list[dict[str, Any]]:
        """The newest usable checkpoint of each trial."""
        found = []
        for trial in trials(place):
            entries = Catalogue(trial).entries()
            usable = [e for e in entries if e.good is not False and e.kind != "error"]
            newest = max(usable, key=_newest_last, default=None)
            if newest is not None:
                found.append(
                    {
                        "trial": trial.name,
                        "checkpoint": newest.path,
                        "kind": newest.kind,
                        "iteration": newest.iteration,
                        "timesteps": newest.timesteps,
                    }
                )
        return found

    def _signal(self, process: psutil.Process, record: Path) -> None:
        asked = {"pid": process.pid, "created": process.create_time(), "at": time.time()}
        with suppress(OSError, ValueError, TypeError, KeyError):
            before = parse_json(record.read_bytes())
            same = all(before[key] == asked[key] for key in ("pid", "created"))
            if same and 0 <= asked["at"] - before["at"] < STOP_WAIT_S:
                return
        # Before the signal: a server that is killed between the two must not send another.
        _write(record, asked)
        try:
            process.send_signal(signal.SIGTERM)
        except psutil.AccessDenied:
            raise Refused(
                409,
                f"The run is the process {process.pid} of another user. Stop it as that user.",
            ) from None
        except psutil.NoSuchProcess:
            return

    def _job_of(self, place: Location) -> str | None:
        if self._settings.address is None:
            return None
        return self.jobs(self._settings.address).running(run_mark(place.name, str(place.parent)))

    # -- what the database keeps -----------------------------------------------------------------

    def launches(self, path: str) -> list[dict[str, Any]]:
        """The starts of a run, the newest first."""
        with self._history.reading() as connection:
            found = connection.execute(
                select(launches).where(launches.c.path == path).order_by(launches.c.id.desc())
            )
            return [dict(row) for row in found.mappings()]

    def _remember(self, launch: Launch) -> None:
        row = {key: value for key, value in asdict(launch).items() if key in launches.columns}
        with self._history.writing() as connection:
            connection.execute(insert(launches).values(row))


def _newest_last(entry: Entry) -> tuple[int, bool, bool]:
    # Of several with one iteration: what the signal, or the end, has made.
    return entry.iteration, entry.kind in ("interrupted", "final"), entry.kind == "periodic"


def why(log: str) -> str:
    """The reason of an end, from the end of a run's log."""
    try:
        return _reason(Path(log).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return "It left no log."


def _reason(text: str) -> str:
    text = text[-_LAST_LINES:]
    message = text.rpartition("\nerror: ")[2] if "\nerror: " in text else text
    return message.removeprefix("error: ").strip() or "It ended without a message."


def errors_in(message: str, config: str | None) -> list[dict[str, Any]] | None:
    """The problems with lines of the config that a message lists; None if it lists none."""
    if config is None:
        return None
    line = re.compile(rf"^\s*{re.escape(config)}:(\d+): (?:([\w.\[\]]+): )?(.*)$", re.MULTILINE)
    found = [
        {"line": int(number), "key": key, "message": text}
        for number, key, text in line.findall(message)
    ]
    return found or None


def _process(pid: int | None, created: float | None) -> psutil.Process | None:
    """The process, unless it has ended or its pid is another's by now."""
    if pid is None:
        return None
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        same = created is None or abs(process.create_time() - created) < 1.0
        if same and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _may_train(process: psutil.Process, place: Location) -> bool:
    """Whether a process can be the one that a lock names: whoever may write to a storage may write
    any pid there. On a local disk the holder has the lock open; elsewhere, it is Python's."""
    try:
        if not place.is_local:
            return "python" in Path(process.exe()).name
        lock = os.path.realpath((place / LOCK_NAME).path)
        return any(os.path.realpath(file.path) == lock for file in process.open_files())
    except psutil.Error:
        return False


def _write(path: Path, document: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    temporary.write_text(json.dumps(document))
    os.replace(temporary, path)


@contextmanager
def _locked(path: Path, *, wait: bool = False) -> Iterator[int | None]:
    """The descriptor of a file that is locked in the body; None if another has it locked. A process
    that inherits the descriptor keeps the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
            return
        yield descriptor
    finally:
        os.close(descriptor)
