"""Ray's worker processes, forked from one process on each node that has everything imported.

A worker of Ray's is a new Python interpreter, and takes five seconds of CPU time for importing RLlib, Torch
and what they import. A trial that starts again waits for that two or three times, one after another,
and every process holds 300 MB of it. Here a node imports once:

    raylet -- starts --> python -m raytrain._ray.forkserver default_worker.py ...
       the first one becomes the base, which imports what has nothing to do with Ray, and forks
          a server for the job, which imports the rest, and forks
             the worker that it should have been
       each further one asks the job's server for a worker, or the base for a server, and ends: the
       raylet knows a worker by the pid that it registers with

A job has a server of its own because Ray reads a worker's job from the environment when it is imported.
If there can be no server, each becomes a usual worker. A server forks only if it has one thread, and has not
touched a GPU. It ends with the raylet; one of a job some minutes after its last worker.

Sockets and locks lie in a directory that only this user can write to: Ray's own is open to everybody, and
whoever holds a lock there, or listens in the place of a server, would make each worker wait.

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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

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
"""What needs no Ray, of others and of raytrain. One that is not there is left out."""

JOB_IMPORTS: tuple[str, ...] = ("raytrain.trial.trainable",)

UNUSED_S = 600.0
"""A job's server without workers ends after so long."""

COMMAND = (
    # The Python that the raylet itself uses for workers: that of the driver may be elsewhere.
    'sh -c \'python=$(tr "\\0" "\\n" < /proc/$PPID/cmdline'
    ' | sed -n "s/^--python_worker_command=\\([^ ]*\\) .*/\\1/p");'
    ' exec "${python:-python3}" -m raytrain._ray.forkserver "$@"\' sh'
)

# What may differ between workers that one server forks is not among these: modules read them when
# they are imported, and Ray reads its own ones once.
_READ_BY_IMPORTS = ("OMP_NUM_THREADS", "PYTHONPATH", "RAY_RAYLET_PID")
_READ_BY_RAY = ("RAY_AUTH_MODE", "RAY_JOB_ID")
_HARMLESS_THREADS = ("jemalloc_bg_thd",)  # pyarrow's, which takes care of forks by itself
_PATIENCE_S = 30.0  # Importing takes some seconds. After that a worker does it by itself.
_PACE_S = 0.02
_LOOK_S = 1.0
_PATH_LENGTH = 100  # a socket's is limited to 107 bytes
_ENOUGH = 1 << 22


@dataclass(frozen=True)
class Request:
    """A worker that is wanted. `server`: the path of the job's server, if that is wanted with it, and
    `imports`: what it imports."""

    command: list[str]
    environment: dict[str, str]
    directory: str
    server: str | None = None
    imports: Sequence[str] = ()


def main() -> None:
    if sys.argv[1] == "--serve":
        base, lock, imports, job_lock, first = sys.argv[2:]
        files = [*(os.dup(each) for each in range(3)), int(job_lock)]
        # The environment may hold secrets, and anybody can read a command line.
        request = Request(**{**json.loads(first), "environment": dict(os.environ)})
        serve(Path(base), int(lock), imports.split(","), request, files)
        return
    command = sys.argv[1:]
    try:
        paths = _socket_paths(command)
        found = paths is not None and ask(*paths, Request(command, dict(os.environ), os.getcwd()))
    except OSError as problem:
        print(f"raytrain: no worker can be forked here: {problem}", file=sys.stderr)
        found = False
    if not found:
        os.execv(sys.executable, [sys.executable, *command])


# -- one that the raylet has started -------------------------------------------------------------


def _socket_paths(command: list[str]) -> tuple[Path, Path] | None:
    """Where the base and the job's server listen for a worker's command line: in a directory of this user
    beside the raylet's own socket."""
    given = [each for each in command if each.startswith("--raylet-name=")]
    if not given or "RAY_RAYLET_PID" not in os.environ:
        return None
    raylet = Path(given[0].partition("=")[2])
    same = [str(raylet), sys.executable, *(os.environ.get(name, "") for name in _READ_BY_IMPORTS)]
    same.append(_installed())
    of_job = [*same, *(os.environ.get(name, "") for name in _READ_BY_RAY)]
    base, job = (
        raylet.parent
        / f"rt{os.getuid()}"
        / hashlib.sha256(json.dumps(each).encode()).hexdigest()[:12]
        for each in (same, of_job)
    )
    return (base, job) if len(os.fsencode(job)) <= _PATH_LENGTH else None


def _make_private(directory: Path) -> None:
    """Make a directory into which nobody else can put anything. Raises `OSError` if there is another one."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        said = "it is not a directory that only this user can open"
        raise PermissionError(errno.EPERM, said, str(directory))


def _installed() -> str:
    """Another text after raytrain was changed, or a package installed or removed: what has imported the
    former ones is not asked any more."""
    stamps = [f"{os.stat(sysconfig.get_path('purelib')).st_mtime_ns}"]
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        file = path.stat()
        stamps.append(f"{path} {file.st_mtime_ns} {file.st_size}")
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()


def ask(base: Path, job: Path, request: Request) -> bool:
    """Have the job's server fork a worker with this process's standard files, and see to it that there is
    one. False if there can be none."""
    _make_private(job.parent)
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            return _tell(job, request, [0, 1, 2])
        with _locked(job) as lock:
            if lock is not None:
                if os.pread(lock, 1, 0):
                    return False  # A server has given up, and said why.
                with_server = replace(request, server=str(job), imports=JOB_IMPORTS)
                return _ask_base(base, with_server, lock, deadline)
        time.sleep(_PACE_S)
    return False


def _ask_base(base: Path, request: Request, job_lock: int, deadline: float) -> bool:
    """Have the base fork a server for the job, or become the base."""
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            return _tell(base, request, [0, 1, 2, job_lock])
        with _locked(base) as lock:
            if lock is not None:
                if os.pread(lock, 1, 0):
                    return False
                for each in (lock, job_lock):
                    os.set_inheritable(each, True)
                imports = ",".join(BASE_IMPORTS)
                first = json.dumps(asdict(replace(request, environment={})))
                server = [str(base), str(lock), imports, str(job_lock), first]
                os.chdir("/")  # Nothing is imported from the worker's own directory.
                module = [sys.executable, "-m", "raytrain._ray.forkserver"]
                os.execv(sys.executable, [*module, "--serve", *server])
        time.sleep(_PACE_S)
    return False


def _tell(path: Path, request: Request, files: list[int]) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        if not _is_own(connection):
            return False
        data = json.dumps(asdict(request)).encode()
        socket.send_fds(connection, [len(data).to_bytes(4, "big")], files)
        connection.sendall(data)
        return bool(connection.recv(1))


def _is_own(connection: socket.socket) -> bool:
    """Whether the other end belongs to this user: an environment may hold secrets, and anybody may write
    where Ray has its sockets."""
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return bool(struct.unpack("3i", credentials)[1] == os.getuid())


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """The lock of the server at `path`, which holds it for as long as it lives; None if it does."""
    lock = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield lock
    finally:
        os.close(lock)


# -- the servers ---------------------------------------------------------------------------------


def serve(path: Path, lock: int, imports: Sequence[str], first: Request, files: list[int]) -> None:
    """Fork what is asked for first, with these standard files, and what is asked for later. The base is
    asked for servers first, with their lock as a fourth file. If nothing can be forked, write into the
    lock file why, and become a worker."""
    is_base = first.server is not None
    _log_to(path.parents[2] / "logs" / "raytrain_forkserver.log")
    why_not = _prepare(imports, optional=is_base)
    if why_not is not None:
        print(f"raytrain: no worker is forked here: {why_not}", flush=True)
        os.write(lock, why_not.encode())
        for each in (lock, *files[3:]):
            os.close(each)  # Others wait for it.
        for number, each in enumerate(files[:3]):
            os.dup2(each, number)
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
        for each in files:
            os.close(each)
        last_needed = time.monotonic()
        while _raylet_lives() and path.exists() and time.monotonic() - last_needed < UNUSED_S:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    _answer(connection, own)
            if is_base or _any_children():
                last_needed = time.monotonic()
    path.unlink(missing_ok=True)


def _log_to(path: Path) -> None:
    """To nowhere if there is a link or a pipe of that name: anybody can write where Ray has its logs."""
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
    """Import everything; why nothing can be forked from here, if so. `optional`: what is not there is left
    out."""
    gc.disable()  # A tenth of the time would go into looking for garbage among what imports make.
    try:
        for module in imports:
            try:
                importlib.import_module(module)
            except ImportError:
                if not optional:
                    raise
    except Exception as error:  # Of any kind: the workers import it again, and tell it in full.
        return f"{type(error).__name__}: {error}"
    threads = {each.name: each for each in Path("/proc/self/task").iterdir()}
    del threads[str(os.getpid())]
    names = [Path(each, "comm").read_text().strip() for each in threads.values()]
    further = [name for name in names if name not in _HARMLESS_THREADS]
    if further:
        return f"a module that was imported has started threads: {', '.join(further)}"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "a module that was imported uses a GPU"
    gc.collect()
    gc.freeze()  # A collection would copy the pages that all workers share.
    gc.enable()
    return None


def _raylet_lives() -> bool:
    try:
        os.kill(int(os.environ["RAY_RAYLET_PID"]), 0)
    except ProcessLookupError:
        return False
    return True


def _any_children() -> bool:
    """Whether one lives that was forked here; those that have ended are forgotten."""
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
    head, files, *_ = socket.recv_fds(connection, 4, 4)
    try:
        data = b""
        while not head or len(data) < int.from_bytes(head, "big"):
            part = connection.recv(_ENOUGH)
            if not part:
                raise ConnectionError("the one that asked has ended")
            data += part
        _fork(Request(**json.loads(data)), files, [*own, connection.fileno()])
    finally:
        for each in files:
            os.close(each)
    connection.sendall(b"+")


def _fork(request: Request, files: list[int], own: list[int]) -> None:
    """A worker with these standard files, or the job's server with its lock for a fourth. `own`: what must
    not stay open in it."""
    if os.fork():
        return
    try:
        for each in own:
            os.close(each)
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
    """Be the worker that was asked for; never returns."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, each in enumerate(files):
            os.dup2(each, number)
            os.close(each)
        os.chdir(request.directory)
        # What a new interpreter takes from the system's entropy; all others must not be the same.
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
