"""An S3 server on loopback (moto's), and a proxy before it that fails in the ways that
a store does.

The proxy works on connections. The server speaks HTTP/1.0, so each request has its own:

    pass     forwarded
    slow     forwarded after a pause
    errors   answered with 500 (a share of them; the rest are forwarded)
    drop     a share is done, but the answer is cut off in its body, or never comes
    cut      every third question after a file's size is answered with a piece of the header: to a
             client that looks like an empty file
    away     refused: nobody listens
    mute     accepted, and never answered
"""

from __future__ import annotations

import importlib.util
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from support.clusters import free_port

if TYPE_CHECKING:
    import pyarrow.fs as pafs

BUCKET = "bucket"
KEY_ID, SECRET = "raytrain-test-key-id", "canary-of-the-secret-access-key"
_ERROR = b"HTTP/1.0 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
HAS_MOTO = importlib.util.find_spec("moto") is not None


@contextmanager
def server() -> Iterator[int]:
    """The port of a server with an empty bucket."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(port)
        make_bucket(port)
        yield port
    finally:
        process.kill()
        process.wait()


def make_bucket(port: int) -> None:
    file_system(port, allow_bucket_creation=True).create_dir(BUCKET)


def environment(port: int, host: str = "127.0.0.1") -> dict[str, str]:
    """The usual variables, by which any S3 client finds the server."""
    return {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def file_system(port: int, **options: bool) -> pafs.S3FileSystem:
    """The store itself, whatever this process's environment says."""
    import pyarrow.fs as pafs

    return pafs.S3FileSystem(
        endpoint_override=f"http://127.0.0.1:{port}",
        access_key=KEY_ID,
        secret_key=SECRET,
        region="us-east-1",
        **options,
    )


def _wait_for(port: int, seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class Proxy:
    """See the module's docstring. `with Proxy(port) as proxy: proxy.port`

    `host` is where it listens, with a socket that `new_socket` makes: perhaps in another network.
    """

    def __init__(
        self,
        target: int,
        host: str = "127.0.0.1",
        new_socket: Callable[[], socket.socket] = socket.socket,
        port: int | None = None,
    ) -> None:
        self._target = target
        self._host, self._new_socket = host, new_socket
        self.port = port or free_port()
        self.mode = "pass"
        self.share = 1.0
        self.pause_s = 0.05
        self.connections = 0
        self._random = random.Random(0)
        self._asked: Counter[bytes] = Counter()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None

    def __enter__(self) -> Proxy:
        self._listen()
        return self

    def __exit__(self, *ignored: object) -> None:
        self.set("away")

    def set(self, mode: str, share: float = 1.0) -> None:
        """Fail in this way from now on; what is under way is cut off if it is to be `away`."""
        self.mode, self.share = mode, share
        if mode == "away":
            listener, self._listener = self._listener, None
            if listener is not None:
                with suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)
                listener.close()
            for connection in list(self._open):
                _close(connection)
        elif self._listener is None:
            self._listen()

    def _listen(self) -> None:
        listener = self._new_socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self._host, self.port))
        listener.listen(128)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            struck = self._random.random() < self.share
            mode = self.mode if struck else "pass"
            threading.Thread(target=self._serve, args=(connection, mode), daemon=True).start()

    def _serve(self, connection: socket.socket, mode: str) -> None:
        self._open.add(connection)
        try:
            if mode == "mute":
                while connection.recv(65536):
                    pass
            elif mode == "errors":
                connection.recv(65536)
                connection.sendall(_ERROR)
            else:
                if mode == "slow":
                    time.sleep(self.pause_s)
                self._forward(connection, mode)
        except OSError:
            return
        finally:
            self._open.discard(connection)
            _close(connection)

    def _forward(self, connection: socket.socket, mode: str) -> None:
        request = connection.recv(65536)
        line = request.partition(b"\r\n")[0]
        cut = mode == "drop" or (mode == "cut" and self._is_third(line))
        with socket.create_connection(("127.0.0.1", self._target)) as upstream:
            upstream.sendall(request)
            threading.Thread(target=_pipe, args=(connection, upstream), daemon=True).start()
            answer = b""
            while data := upstream.recv(65536):
                answer += data
                if not cut:
                    connection.sendall(data)
        head, _, body = answer.partition(b"\r\n\r\n")
        if mode == "cut" and cut:
            connection.sendall(answer[:20])
        elif cut and body:
            connection.sendall(head + b"\r\n\r\n" + body[: len(body) // 2])

    def _is_third(self, line: bytes) -> bool:
        """The first question after a file's size, the fourth, ..."""
        if not line.startswith(b"HEAD "):
            return False
        self._asked[line] += 1
        return self._asked[line] % 3 == 1


def _pipe(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)


def _close(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
