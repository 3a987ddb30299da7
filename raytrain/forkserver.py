"""Ray's worker processes, forked from one process on each node that has everything imported.

A worker of Ray's is a new Python interpreter, and takes five seconds of CPU time for importing RLlib, Torch
and what they import. A trial that starts again waits for that two or three times, one after another,
and every process holds 300 MB of it. Here a node imports once:

    raylet -- starts --> python -m raytrain.forkserver default_worker.py ...
       the first one becomes the server, and forks the worker that it should have been;
       each further one asks the server to fork one, and ends: the raylet knows a worker by the pid that
       it registers with

If there can be no server, each becomes a usual worker. A server forks only if it has one thread, and has
not touched a GPU. It is of one job, since Ray reads a worker's job when it is imported, and ends with the
raylet, or some minutes after the last worker.

`COMMAND` goes into a runtime environment, as its `py_executable`. Nothing here imports Ray before the server
does.
"""

from __future__ import annotations

import atexit
import contextlib
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
import struct
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

IMPORTS = (
    "raytrain.trainable.trial",
    "raytrain.trainable.update.kernels",
    # Two seconds of it: every optimizer and every call for deterministic algorithms imports it.
    "torch._inductor",
)

UNUSED_S = 600.0
"""A server without workers ends after so long."""

COMMAND = (
    # The Python that the raylet itself uses for workers: that of the driver may be elsewhere.
    'sh -c \'python=$(tr "\\0" "\\n" < /proc/$PPID/cmdline'
    ' | sed -n "s/^--python_worker_command=\\([^ ]*\\) .*/\\1/p");'
    ' exec "${python:-python3}" -m raytrain.forkserver "$@"\' sh'
)

# What may differ between workers that one server forks is not among these: modules read them when
# they are imported, and Ray reads its own ones once.
_READ_BY_IMPORTS = (
    "OMP_NUM_THREADS",
    "PYTHONPATH",
    "RAY_AUTH_MODE",
    "RAY_JOB_ID",
    "RAY_RAYLET_PID",
)
_HARMLESS_THREADS = ("jemalloc_bg_thd",)  # pyarrow's, which takes care of forks by itself
_START_S = 120.0
_PACE_S = 0.02
_LOOK_S = 1.0
_PATH_LENGTH = 100  # a socket's is limited to 107 bytes
_ENOUGH = 1 << 22


def main() -> None:
    if sys.argv[1] == "--serve":
        place, lock, imports, directory, *command = sys.argv[2:]
        serve(Path(place), int(lock), imports.split(","), directory, command)
        return
    path = _socket_path(sys.argv[1:])
    if path is None or not ask(path, sys.argv[1:]):
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])


# -- one that the raylet has started -------------------------------------------------------------


def _socket_path(command: list[str]) -> Path | None:
    """Where the server for a worker's command line listens: beside the raylet's own socket."""
    given = [each for each in command if each.startswith("--raylet-name=")]
    if not given or "RAY_RAYLET_PID" not in os.environ:
        return None
    raylet = Path(given[0].partition("=")[2])
    same = [str(raylet), sys.executable, *(os.environ.get(name, "") for name in _READ_BY_IMPORTS)]
    path = raylet.parent / f"rt{hashlib.sha256(json.dumps(same).encode()).hexdigest()[:12]}"
    return path if len(os.fsencode(path)) <= _PATH_LENGTH else None


def ask(path: Path, command: list[str]) -> bool:
    """Have the server at `path` fork a worker with this process's environment, directory and standard
    files; become the server if there is none. False if there can be none."""
    request = {"command": command, "environment": dict(os.environ), "directory": os.getcwd()}
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(path))
                if not _is_own(connection):
                    return False
                data = json.dumps(request).encode()
                socket.send_fds(connection, [len(data).to_bytes(4, "big")], [0, 1, 2])
                connection.sendall(data)
                return bool(connection.recv(1))
        except OSError:
            try:
                if not _become_server(path, command):
                    return False
            except OSError as problem:
                print(f"raytrain: no worker can be forked here: {problem}", file=sys.stderr)
                return False
            time.sleep(_PACE_S)
    return False


def _become_server(path: Path, command: list[str]) -> bool:
    """Returns if that cannot be: True if there is one that is about to listen, False if one has given
    up."""
    with path.with_suffix(".lock").open("a+") as lock:
        try:
            # The server holds it for as long as it lives.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        lock.seek(0)
        if not lock.read():
            os.set_inheritable(lock.fileno(), True)
            server = [str(path), str(lock.fileno()), ",".join(IMPORTS), os.getcwd(), *command]
            os.chdir("/")  # Nothing is imported from the worker's own directory.
            module = [sys.executable, "-m", "raytrain.forkserver"]
            os.execv(sys.executable, [*module, "--serve", *server])
    return False


def _is_own(connection: socket.socket) -> bool:
    """Whether the other end belongs to this user: an environment may hold secrets, and anybody may write
    where Ray has its sockets."""
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return bool(struct.unpack("3i", credentials)[1] == os.getuid())


# -- the server ----------------------------------------------------------------------------------


def serve(
    path: Path, lock: int, imports: Sequence[str], directory: str, command: list[str]
) -> None:
    """Fork a worker with this process's environment and standard files, and further ones that are asked
    for, until the raylet has ended. If that cannot be, write into the lock file why, and become the
    worker."""
    files = [os.dup(each) for each in range(3)]
    _log_to(path.parent.parent / "logs" / "raytrain_forkserver.log")
    why_not = _prepare(imports)
    if why_not is not None:
        print(f"raytrain: no worker is forked here: {why_not}", flush=True)
        os.write(lock, why_not.encode())
        for number, each in enumerate(files):
            os.dup2(each, number)
        os.chdir(directory)
        os.execv(sys.executable, [sys.executable, *command])
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        before = os.umask(0o177)
        listener.bind(str(path))
        os.umask(before)
        listener.listen(128)
        listener.settimeout(_LOOK_S)
        signal.signal(signal.SIGCHLD, lambda *_: _any_workers())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver.
        own = [listener.fileno(), lock]
        first = {"command": command, "environment": dict(os.environ), "directory": directory}
        _fork(first, files, own)
        for each in files:
            os.close(each)
        last_needed = time.monotonic()
        while _raylet_lives() and path.exists() and time.monotonic() - last_needed < UNUSED_S:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    _answer(connection, own)
            if _any_workers():
                last_needed = time.monotonic()
    path.unlink(missing_ok=True)


def _log_to(path: Path) -> None:
    with open(os.devnull) as nothing, path.open("ab") as log:
        for number, file in enumerate((nothing, log, log)):
            os.dup2(file.fileno(), number)


def _prepare(imports: Sequence[str]) -> str | None:
    """Import everything; why nothing can be forked from here, if so."""
    try:
        for module in imports:
            importlib.import_module(module)
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
    return None


def _raylet_lives() -> bool:
    try:
        os.kill(int(os.environ["RAY_RAYLET_PID"]), 0)
    except ProcessLookupError:
        return False
    return True


def _any_workers() -> bool:
    """Whether a worker lives; those that have ended are forgotten."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _answer(connection: socket.socket, own: list[int]) -> None:
    connection.settimeout(_LOOK_S)
    head, files, *_ = socket.recv_fds(connection, 4, 3)
    try:
        data = b""
        while len(data) < int.from_bytes(head, "big"):
            data += connection.recv(_ENOUGH)
        _fork(json.loads(data), files, [*own, connection.fileno()])
    finally:
        for each in files:
            os.close(each)
    connection.sendall(b"+")


def _fork(request: Mapping[str, Any], files: list[int], own: list[int]) -> None:
    """A worker with these standard files. `own`: what it must not keep open."""
    if os.fork() == 0:
        for each in own:
            os.close(each)
        _become(request, files)


def _become(request: Mapping[str, Any], files: list[int]) -> None:
    """Be the worker that was asked for; never returns."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, each in enumerate(files):
            os.dup2(each, number)
            os.close(each)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["directory"])
        # What a new interpreter takes from the system's entropy; all others must not be the same.
        random.seed()
        importlib.import_module("numpy").random.seed()
        sys.argv = request["command"]
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
