"""Ray's worker processes, forked from one process on each node that has everything imported.

A worker of Ray is a new Python interpreter, which takes five seconds of CPU time to import RLlib
and Torch. A trial that starts again waits for that two or three times, one after the other, and
every process holds 300 MB of it. Here a node imports once:

    raylet -- starts --> python -m raytrain._ray.forkserver default_worker.py ...
       the first one becomes the base, which imports what has nothing to do with Ray, and forks
          a server for the job, which imports the rest, and forks
             the worker that the first one should have been
       each further one asks the job's server for a worker, or the base for a server, and ends: the
       raylet identifies a worker by the pid that it registers with

A job has a server of its own because Ray reads a worker's job from the environment when it is
imported. Where there can be no server, each becomes a usual worker. A server forks only if it has
one thread and has not used a GPU. It ends with the raylet; a job's server also ends ten minutes
after its last worker.

Sockets and locks are in a directory that only this user can write to. Ray's own is open to
everybody, and another user who held a lock there, or listened at a server's address, could stop
every worker from starting.

`COMMAND` goes into a runtime environment, as its `py_executable`.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import gc
import hashlib
import importlib
import json
import os
import random
import runpy
import signal
import socket
import stat
import struct
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

from raytrain._ray.patch import patched
from raytrain.arithmetic.portable import VARIABLES

BASE_IMPORTS: tuple[str, ...] = (
    "numba",
    "torch",
    # Two seconds of it: every optimizer and every call for deterministic algorithms imports it.
    "torch._inductor",
    "gymnasium.vector",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.fs",
    "pyarrow.parquet",
    "scipy.stats",
    "grpc.aio",
    "aiohttp",
    "pydantic",
    "fsspec",
    "google.protobuf.descriptor_pb2",
    "jsonschema",
    "requests",
    "rich.console",
    "smart_open",
    "raytrain.ppo.fast_update.kernels",
)
"""Modules that need no Ray. One that is not installed is left out."""

JOB_IMPORTS: tuple[str, ...] = ("raytrain.trial.trainable",)

UNUSED_S = 600.0
"""A job's server ends this long after its last worker."""

COMMAND = (
    # The Python that the raylet uses for workers; the driver may have another one.
    'sh -c \'python=$(tr "\\0" "\\n" < /proc/$PPID/cmdline'
    ' | sed -n "s/^--python_worker_command=\\([^ ]*\\) .*/\\1/p");'
    ' exec "${python:-python3}" -m raytrain._ray.forkserver "$@"\' sh'
)

# Python and its modules read these when they start, and Ray reads its own once: workers in which
# one differs need another server.
_READ_BY_IMPORTS = (
    "OMP_NUM_THREADS",
    "PYTHONHASHSEED",
    "PYTHONPATH",
    "RAY_RAYLET_PID",
    *VARIABLES,
)
_READ_BY_RAY = ("RAY_AUTH_MODE", "RAY_JOB_ID")
_HARMLESS_THREADS = ("jemalloc_bg_thd",)  # pyarrow's, which survives a fork
_PATIENCE_S = 30.0  # Imports take some seconds. After that a worker does them itself.
_PACE_S = 0.02
_LOOK_S = 1.0
_PATH_LENGTH = 100  # a socket's is limited to 107 bytes


@dataclass(frozen=True)
class Request:
    """A worker to fork. `server`: the path of the job's server, if that has to be forked first, and
    `imports`: what it imports."""

    command: list[str]
    environment: dict[str, str]
    directory: str
    server: str | None = None
    imports: Sequence[str] = ()


def main() -> None:
    if sys.argv[1] == "--serve":
        base, lock, imports, job_lock, first = sys.argv[2:]
        files = [*(os.dup(number) for number in range(3)), int(job_lock)]
        # The environment may hold secrets, and anybody can read a command line.
        request = Request(**{**json.loads(first), "environment": dict(os.environ)})
        serve(Path(base), int(lock), imports.split(","), request, files)
        return
    command = sys.argv[1:]
    try:
        paths = _socket_paths(command)
        forked = paths is not None and ask(*paths, Request(command, dict(os.environ), os.getcwd()))
    except OSError as problem:
        print(f"raytrain: no worker can be forked here: {problem}", file=sys.stderr)
        forked = False
    if not forked:
        os.execv(sys.executable, [sys.executable, *command])


# -- the client, which the raylet has started ----------------------------------------------------


def _socket_paths(command: list[str]) -> tuple[Path, Path] | None:
    """The sockets of the base and of the job's server for a worker's command line: in a directory
    of this user beside the raylet's own socket."""
    names = [option for option in command if option.startswith("--raylet-name=")]
    if not names or "RAY_RAYLET_PID" not in os.environ:
        return None
    raylet = Path(names[0].partition("=")[2])
    base = [str(raylet), sys.executable, *(os.environ.get(name, "") for name in _READ_BY_IMPORTS)]
    base.append(_installed())
    job = [*base, *(os.environ.get(name, "") for name in _READ_BY_RAY)]
    directory = raylet.parent / f"rt{os.getuid()}"
    digests = [hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12] for parts in (base, job)]
    paths = directory / digests[0], directory / digests[1]
    return paths if len(os.fsencode(paths[1])) <= _PATH_LENGTH else None


def _make_private(directory: Path) -> None:
    """Make a directory that only this user can open. Raises `OSError` if there is another one."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        problem = "it is not a directory that only this user can open"
        raise PermissionError(errno.EPERM, problem, str(directory))


def _installed() -> str:
    """A digest that changes when raytrain was changed, or a package installed or removed: a server
    that has imported the former ones is not used any more."""
    stamps = [f"{os.stat(sysconfig.get_path('purelib')).st_mtime_ns}"]
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        file = path.stat()
        stamps.append(f"{path} {file.st_mtime_ns} {file.st_size}")
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()


def ask(base: Path, job: Path, request: Request) -> bool:
    """Have the job's server fork a worker with this process's standard files. Without a server the
    base forks one; without a base this process becomes it. False if there can be no server."""
    _make_private(job.parent)
    deadline = time.monotonic() + _PATIENCE_S

    def start_server(job_lock: int) -> bool:
        first = replace(request, server=str(job), imports=JOB_IMPORTS)

        def become_base(lock: int) -> bool:
            for number in (lock, job_lock):
                os.set_inheritable(number, True)
            without_secrets = json.dumps(asdict(replace(first, environment={})))
            server = [str(base), str(lock), ",".join(BASE_IMPORTS), str(job_lock), without_secrets]
            os.chdir("/")  # Nothing is imported from the worker's own directory.
            module = [sys.executable, "-m", "raytrain._ray.forkserver"]
            os.execv(sys.executable, [*module, "--serve", *server])

        return _tell_or_start(base, first, [0, 1, 2, job_lock], become_base, deadline)

    return _tell_or_start(job, request, [0, 1, 2], start_server, deadline)


def _tell_or_start(
    path: Path, request: Request, files: list[int], start: Callable[[int], bool], deadline: float
) -> bool:
    """Send the request to the server at `path`. If there is none, call `start` with its lock; False
    if there can be none."""
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            return _tell(path, request, files)
        with _locked(path) as lock:
            if lock is not None:
                # A server that gave up has written the reason into the lock file.
                return not os.pread(lock, 1, 0) and start(lock)
        time.sleep(_PACE_S)
    return False


def _tell(path: Path, request: Request, files: list[int]) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        if not _is_own(connection):
            return False
        socket.send_fds(connection, [b"+"], files)
        connection.sendall(json.dumps(asdict(request)).encode())
        connection.shutdown(socket.SHUT_WR)
        return bool(connection.recv(1))


def _is_own(connection: socket.socket) -> bool:
    """Whether the other end belongs to this user: an environment may hold secrets, and anybody may
    write where Ray has its sockets."""
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return bool(struct.unpack("3i", credentials)[1] == os.getuid())


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """The lock of the server at `path`, which a living server holds; then None."""
    lock = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o600)
    is_free = False
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_free = True
    try:
        yield lock if is_free else None
    finally:
        os.close(lock)


# -- the servers ---------------------------------------------------------------------------------


def serve(path: Path, lock: int, imports: Sequence[str], first: Request, files: list[int]) -> None:
    """Fork what is requested, beginning with `first` and these standard files. The base is asked
    for a server first, whose lock is a fourth file. If nothing can be forked, write the reason into
    the lock file and become a worker."""
    is_base = first.server is not None
    _log_to(path.parents[2] / "logs" / "raytrain_forkserver.log")
    problem = _prepare(imports, optional=is_base)
    if problem is not None:
        print(f"raytrain: no worker is forked here: {problem}", flush=True)
        os.write(lock, problem.encode())
        for number in (lock, *files[3:]):
            os.close(number)  # Others wait for it.
        for number, file in enumerate(files[:3]):
            os.dup2(file, number)
        os.chdir(first.directory)
        os.execvpe(sys.executable, [sys.executable, *first.command], first.environment)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        before = os.umask(0o177)
        listener.bind(str(path))
        os.umask(before)
        listener.listen(128)
        listener.settimeout(_LOOK_S)
        signal.signal(signal.SIGCHLD, lambda *_: _any_children())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver.
        own = [listener.fileno(), lock]
        _fork(first, files, own)
        for file in files:
            os.close(file)
        last_needed = time.monotonic()
        raylet = Path("/proc", os.environ["RAY_RAYLET_PID"])
        while raylet.exists() and path.exists() and time.monotonic() - last_needed < UNUSED_S:
            # ValueError: a client that ended while it wrote its request.
            with contextlib.suppress(OSError, ValueError):
                connection, _ = listener.accept()
                with connection:
                    _answer(connection, own)
            if is_base or _any_children():
                last_needed = time.monotonic()
    path.unlink(missing_ok=True)


def _log_to(path: Path) -> None:
    """Write to this log; to nothing if it is a link or a pipe, which anybody could put there."""
    nothing = os.open(os.devnull, os.O_RDWR)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        log = os.open(path, flags, 0o666)
    except OSError:
        log = os.dup(nothing)
    for number, file in enumerate((nothing, log, log)):
        os.dup2(file if stat.S_ISREG(os.fstat(file).st_mode) else nothing, number)
    os.close(nothing)
    os.close(log)


def _prepare(imports: Sequence[str], *, optional: bool) -> str | None:
    """Import everything. Returns why nothing can be forked from here, or None. `optional`: skip
    what is not installed."""
    gc.disable()  # A tenth of the time of imports would go into looking for garbage.
    try:
        if optional:
            for module in imports:
                with contextlib.suppress(ImportError):
                    importlib.import_module(module)
        else:
            with _unseeded_ids():
                for module in imports:
                    importlib.import_module(module)
    except Exception as error:  # Of any kind: the workers import it again, and report it in full.
        return f"{type(error).__name__}: {error}"
    tasks = [task for task in Path("/proc/self/task").iterdir() if task.name != str(os.getpid())]
    threads = {(task / "comm").read_text().strip() for task in tasks} - {*_HARMLESS_THREADS}
    if threads:
        return f"a module that was imported has started threads: {', '.join(sorted(threads))}"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "a module that was imported uses a GPU"
    gc.collect()
    gc.freeze()  # A collection would copy the pages that all workers share.
    gc.enable()
    return None


@contextlib.contextmanager
def _unseeded_ids() -> Iterator[None]:
    """Imports within do not seed Ray's generator of random ids, from which RLlib's actor classes
    take theirs. Forks of a process where it is seeded all draw the same ids: of two workers that
    start at once one dies, since both create an object of the same id."""
    actor = importlib.import_module("ray.actor")
    kind = actor.ActorClassID
    ids = SimpleNamespace(from_random=lambda: kind(os.urandom(kind.size())))
    with patched(actor, ActorClassID=ids):
        yield


def _any_children() -> bool:
    """Whether a forked process lives; those that have ended are waited for."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _answer(connection: socket.socket, own: list[int]) -> None:
    if not _is_own(connection):
        return
    connection.settimeout(_LOOK_S)
    _, files, *_ = socket.recv_fds(connection, 1, 4)
    try:
        with connection.makefile("rb") as stream:
            request = Request(**json.loads(stream.read()))
        _fork(request, files, [*own, connection.fileno()])
    finally:
        for file in files:
            os.close(file)
    connection.sendall(b"+")


def _fork(request: Request, files: list[int], own: list[int]) -> None:
    """Fork a worker with these standard files, or the job's server with its lock as a fourth.
    `own`: files of the server, which the new process closes."""
    if os.fork():
        return
    try:
        for number in own:
            os.close(number)
        os.environ.clear()
        os.environ.update(request.environment)
        if request.server is not None:
            worker = replace(request, server=None)
            serve(Path(request.server), files[3], request.imports, worker, files[:3])
            os._exit(0)
        _become(request, files)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _become(request: Request, files: list[int]) -> None:
    """Run the requested worker in this process; never returns."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.chdir(request.directory)
        # A new interpreter seeds these from the system's entropy; workers must differ.
        random.seed()
        importlib.import_module("numpy").random.seed()
        sys.argv = request.command
        sys.path[0] = os.path.dirname(sys.argv[0])
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        # The rest of the stack is the server's.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
