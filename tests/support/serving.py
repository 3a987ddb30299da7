"""A real server in a thread of this process, on a port of its own, and requests of any kind to it.

with serving(tmp_path, read_only=True) as site:
    site.get("/api/runs").document
    site.ask("GET", "/api/runs", headers={"host": "evil.example"}).status
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytrain.server.app import create_app
from raytrain.server.listening import UvicornServer, listen
from raytrain.server.settings import ServerSettings

TOKEN = "the-token-of-a-test-0123456789"
_BEARER = {"authorization": f"Bearer {TOKEN}"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class Site:
    """Where the server is, and what it serves."""

    def __init__(self, place: Path, port: int) -> None:
        self.port = port
        self.host = f"127.0.0.1:{port}"
        self.url = f"http://{self.host}"
        self.results = place / "results"
        self.configs = place / "configs"
        self.data = place / "data"
        self.app: Any = None

    def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """A request with these headers alone (`Host` is the server's unless it is among them)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            given = {"host": self.host, **(headers or {})}
            if body is not None:
                given = {"content-length": str(len(body)), **given}
            for name, value in given.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            reply = connection.getresponse()
            found = {name.lower(): value for name, value in reply.getheaders()}
            return Answer(reply.status, found, reply.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        """As a program, with the token."""
        return self.ask("GET", path, headers=_BEARER)

    def post(self, path: str, document: Any = None, *, method: str = "POST") -> Answer:
        headers = {**_BEARER, "content-type": "application/json"}
        return self.ask(method, path, headers=headers, body=json.dumps(document or {}).encode())

    def opened(self, path: str) -> http.client.HTTPResponse:
        """A stream; the caller closes it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path, headers=_BEARER)
        return connection.getresponse()

    def scan(self) -> None:
        self.app.state.server.scanning.now()

    def run_of(self, name: str) -> str:
        """The id of a run that is on storage."""
        self.scan()
        found = self.get("/api/runs?per_page=1000").document["runs"]
        return str(next(row["id"] for row in found if row["name"] == name and not row["gone_at"]))


@contextmanager
def serving(place: Path, **settings: Any) -> Iterator[Site]:
    """A server whose storage, configs and data are directories in `place`."""
    listening = listen("127.0.0.1", 0)
    site = Site(place, listening.getsockname()[1])
    for directory in (site.results, site.configs):
        directory.mkdir(exist_ok=True)
    given = {
        "storages": (str(site.results),),
        "config_dirs": (site.configs,),
        "data_dir": site.data,
        "token": TOKEN,
        "database": f"sqlite:///{site.data / 'history.db'}",
        "port": site.port,
    }
    site.app = create_app(ServerSettings(**{**given, **settings}))
    server = UvicornServer(site.app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        site.ask("GET", "/healthz")
        yield site
    finally:
        server.end()
        thread.join(60)
        assert not thread.is_alive()
