"""Ray's worker processes, forked from one process on each node that has everything imported.

A worker of Ray's is a new Python interpreter, and takes five seconds of CPU time for importing RLlib, Torch
and what they import. A trial that starts again waits for that two or three times, one after another,
and every process holds 300 MB of it. Here a node imports once:

    raylet -- starts --> python -m raytrain.forkserver default_worker.py ...      "client"
               client -- asks --> python -m raytrain.forkserver --serve SOCKET    one for each raylet
                                  server -- forks --> default_worker.py ...       the worker

The client ends when there is a worker, which the raylet knows by the pid that it registers with. It starts
the server if there is none, and waits for it; if there comes none, it becomes a usual worker itself.
The server ends with its raylet. It forks only as long as it has one thread, and has not touched a GPU.

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
import subprocess
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

COMMAND = (
    # The Python that the raylet itself uses for workers: that of the driver may be elsewhere.
    'sh -c \'python=$(tr "\\0" "\\n" < /proc/$PPID/cmdline'
    ' | sed -n "s/^--python_worker_command=\\([^ ]*\\) .*/\\1/p");'
    ' exec "${python:-python3}" -m raytrain.forkserver "$@"\' sh'
)

# What may differ between workers that one server forks is not among these: modules read them when
# they are imported, and Ray reads its own ones once.
_READ_BY_IMPORTS = ("OMP_NUM_THREADS", "PYTHONPATH", "RAY_AUTH_MODE", "RAY_RAYLET_PID")
_HARMLESS_THREADS = ("jemalloc_bg_thd",)  # pyarrow's, which takes care of forks by itself
_LOG = "raytrain_forkserver.log"
_START_S = 120.0
_PACE_S = 0.02
_LOOK_S = 1.0
_PATH_LENGTH = 100  # a socket's is limited to 107 bytes
_ENOUGH = 1 << 22


def main() -> None:
    if sys.argv[1] == "--serve":
        serve(Path(sys.argv[2]), lock=int(sys.argv[3]), imports=sys.argv[4].split(","))
        return
    command = sys.argv[1:]
    path = _socket_path(command)
    if path is None or not ask(path, command):
        os.execv(sys.executable, [sys.executable, *command])


# -- the client ----------------------------------------------------------------------------------


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
    files; False if there is none, and none could be started."""
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
                if not _start(path):
                    return False
            except OSError as problem:
                print(f"raytrain: no worker can be forked here: {problem}", file=sys.stderr)
                return False
            time.sleep(_PACE_S)
    return False


def _is_own(connection: socket.socket) -> bool:
    """Whether the other end belongs to this user: an environment may hold secrets, and anybody may write
    where Ray has its sockets."""
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return bool(struct.unpack("3i", credentials)[1] == os.getuid())


def _start(path: Path) -> bool:
    """Start a server unless one is about to listen; False if one has given up."""
    with path.with_suffix(".lock").open("a+") as lock:
        try:
            # The server holds it for as long as it lives.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        lock.seek(0)
        if lock.read():
            return False
        arguments = [str(path), str(lock.fileno()), ",".join(IMPORTS)]
        with (path.parent.parent / "logs" / _LOG).open("ab") as output:
            subprocess.Popen(
                [sys.executable, "-m", "raytrain.forkserver", "--serve", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[lock.fileno()],
                start_new_session=True,
                cwd="/",
            )
    return True


# -- the server ----------------------------------------------------------------------------------


def serve(path: Path, *, lock: int, imports: Sequence[str]) -> None:
    """Fork workers until the raylet has ended. Writes into the lock file why it never will."""
    why_not = _prepare(imports)
    if why_not is not None:
        print(f"raytrain: no worker is forked here: {why_not}", flush=True)
        os.write(lock, why_not.encode())
        return
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        before = os.umask(0o177)
        listener.bind(str(path))
        os.umask(before)
        listener.listen(128)
        listener.settimeout(_LOOK_S)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Nobody waits for the workers.
        while _raylet_lives() and path.exists():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    _answer(connection, [listener.fileno(), lock])
    path.unlink(missing_ok=True)


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


def _answer(connection: socket.socket, own: list[int]) -> None:
    connection.settimeout(_LOOK_S)
    head, files, *_ = socket.recv_fds(connection, 4, 3)
    try:
        data = b""
        while len(data) < int.from_bytes(head, "big"):
            data += connection.recv(_ENOUGH)
        if os.fork() == 0:
            for each in own:
                os.close(each)
            _become(json.loads(data), files, connection)
    finally:
        for each in files:
            os.close(each)


def _become(request: Mapping[str, Any], files: list[int], connection: socket.socket) -> None:
    """Be the worker that was asked for; never returns."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
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
        connection.sendall(b"+")
        connection.close()
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
