"""The socket, and uvicorn behind it."""

from __future__ import annotations

import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from raytrain.errors import BadInput

_GRACE_S = 2
_MOST_CONNECTIONS = 1000


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address; with port 0 at any port that is free. Raises `BadInput`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise BadInput(
            f"--host {host} --port {port}: the server cannot listen there "
            f"({(error.strerror or str(error)).lower()}). Give another --port; 0 takes one that is "
            "free."
        ) from None
    return listening


class UvicornServer(uvicorn.Server):
    """Streams have no end of their own: they are ended as soon as a signal comes."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                access_log=False,  # An address holds the token once.
                log_config=None,
                server_header=False,
                timeout_graceful_shutdown=_GRACE_S,
                ws="none",
                limit_concurrency=_MOST_CONNECTIONS,
            )
        )
        self._app = app

    def end(self) -> None:
        """End the server. May be called by a handler of a signal, or from another thread."""
        self.should_exit = True
        self._app.state.server.streams.end()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self.end()


def serve_until_signal(app: FastAPI, listening: socket.socket) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP. The handlers from before then get the first two."""
    server = UvicornServer(app)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # A terminal that closes.
        signal.signal(signal.SIGHUP, server.handle_exit)
    server.run(sockets=[listening])
