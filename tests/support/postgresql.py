"""A PostgreSQL server of the tests' own, on loopback, which is gone when they end.

It refuses to run as root, so root starts it as the user `postgres` or `nobody`.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from support.clusters import end_with_parent, free_port

_PLACES = "/usr/lib/postgresql/*/bin"
_SECONDS = 600.0


def binaries() -> Path | None:
    """The directory of `postgres` and `initdb`; the newest of several, None if there is none."""
    found = [path.parent for path in Path("/").glob(f"{_PLACES[1:]}/initdb")]
    on_path = shutil.which("initdb")
    if not found and on_path is not None:
        found = [Path(on_path).resolve().parent]
    usable = [place for place in found if (place / "postgres").exists()]
    return max(usable, default=None, key=lambda place: (len(place.parent.name), str(place)))


class Server:
    """`new_database()`: the URL of an empty database."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._numbers = itertools.count(1)

    def new_database(self) -> str:
        name = f"history_{next(self._numbers)}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://raytrain@127.0.0.1:{self.port}/{name}"

    def connect(self) -> Any:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="raytrain", dbname="postgres", autocommit=True
        )


@contextmanager
def server() -> Iterator[Server]:
    programs = binaries()
    assert programs is not None, "there is no PostgreSQL here"
    user: dict[str, Any] = {}
    directory = Path(tempfile.mkdtemp(prefix="raytrain-postgresql-"))
    if os.geteuid() == 0:
        account = _account()
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        os.chown(directory, account.pw_uid, account.pw_gid)
    data, port = directory / "data", free_port()
    try:
        initdb = [str(programs / "initdb"), "-D", str(data), "-U", "raytrain"]
        subprocess.run(
            [*initdb, "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=directory,
            **user,
        )
        settings = (
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={directory}",
            "fsync=off",
        )
        options = [text for setting in settings for text in ("-c", setting)]
        with open(directory / "log", "wb") as log:
            process = subprocess.Popen(
                [str(programs / "postgres"), "-D", str(data), "-p", str(port), *options],
                stdout=log,
                stderr=log,
                cwd=directory,
                preexec_fn=end_with_parent,  # noqa: PLW1509 (no threads here)
                **user,
            )
        try:
            started = Server(port)
            _wait_for(started, process, directory / "log")
            yield started
        finally:
            process.send_signal(signal.SIGQUIT)
            process.wait()
    finally:
        shutil.rmtree(directory)


def _account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("There is neither a user postgres nor a user nobody to run PostgreSQL as.")


def _wait_for(started: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            started.connect().close()
            return
        except psycopg.OperationalError:
            ended = process.poll() is not None
            assert not ended and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
