"""What a server with open pages costs the runs that train beside it: CartPole on all cores, alone,
beside `raytrain serve`, and beside a server with 50 pages of the run open. Target: under 5 %.

A client asks what the page of a run asks, at its pace: two streams, and after each row the curves
since the last ones (2 s), the page's head (3 s), checkpoints (6 s), timeline (15 s) and episodes
(20 s) at most once in so many seconds. The clients are a process of low priority: pages are on
other machines.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import settings
from measuring import Options, Table, interleave, ratios, spread, whole
from runs import ROOT, RunFailed, Watched, raytrain_command, scratch, watch, write_config

ROUNDS = 3
CLIENTS = 50
TOKEN = "a-token-for-this-benchmark"
PACES = {"curves": 2.0, "": 3.0, "checkpoints": 6.0, "timeline": 15.0, "episodes": 20.0}
"""Seconds between two requests of a page for a part of its run."""


def run(batch: int, *, clients: int | None) -> Watched:
    """`clients`: pages that are open; None: no server either."""
    config = settings.ppo("CartPole-v1", iterations=14, batch=batch)
    with scratch() as place:
        path = write_config(place, config)
        if clients is None:
            return watch(raytrain_command(path), place)
        with serving(place) as url, looking(url, clients):
            return watch(raytrain_command(path), place)


@contextmanager
def serving(place: Path) -> Iterator[str]:
    (place / "results").mkdir()
    command = [sys.executable, "-m", "raytrain", "serve", str(place / "results"), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--data-dir", str(place / "data")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAYTRAIN_SERVER_TOKEN": TOKEN},
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            found = re.search(r"http://\S+?(?=/)", line)
            if found:
                yield found[0]
                return
        raise RunFailed("the server ended")
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def looking(url: str, clients: int) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, __file__, url, str(clients)], stdin=subprocess.PIPE)
    try:
        yield
        if process.poll() is not None:
            raise RunFailed("the clients ended")
    finally:
        process.kill()
        process.wait()


def measure(options: Options) -> list[Table]:
    batch = 2048 if options.quick else 8 * 2048
    kinds: dict[str, int | None] = {"nobody": None, "a server": 0, f"{CLIENTS} pages": CLIENTS}
    rivals = {name: lambda n=number: run(batch, clients=n) for name, number in kinds.items()}
    found = interleave(rivals, options.rounds_or(ROUNDS), "serving")
    rates = {name: [each.steps_per_s() for each in runs] for name, runs in found.items()}
    rows = tuple(
        {
            "beside the run": name,
            "steps/s": whole(rates[name]),
            "of those alone": spread(ratios(rates[name], rates["nobody"]), 3),
            "target": 0.95,
        }
        for name in kinds
    )
    return [Table("A run beside the server, all cores", rows)]


class Page:
    """One open page of the newest run."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._asked: dict[str, float] = {}
        self._cursor = ""

    async def look(self) -> None:
        while not (runs := json.loads(await self._get("/api/runs"))["runs"]):
            await asyncio.sleep(1)
        run = runs[0]["id"]
        await asyncio.gather(self._watch(run), self._drain(f"/api/runs/{run}/log?tail=500"))

    async def _watch(self, run: str) -> None:
        async for line in self._lines(f"/api/runs/{run}/events"):
            if line == b"event: row":
                await self._ask(run)

    async def _ask(self, run: str) -> None:
        now = time.monotonic()
        for part, pace in PACES.items():
            if now - self._asked.get(part, 0.0) < pace:
                continue
            self._asked[part] = now
            if part:
                since = f"?since={quote(self._cursor)}" if part == "curves" else ""
                found = json.loads(await self._get(f"/api/runs/{run}/{part}{since}"))
                self._cursor = (
                    found.get("cursor", self._cursor) if part == "curves" else self._cursor
                )
            else:
                await self._get(f"/runs/{run}")

    async def _drain(self, path: str) -> None:
        async for _ in self._lines(path):
            pass

    async def _get(self, path: str) -> bytes:
        reader, writer = await self._open(path, "Connection: close\r\n")
        data = await reader.read()
        writer.close()
        head, _, body = data.partition(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise RunFailed(f"{path}: {data[:500]!r}")
        return _unchunked(body) if b"chunked" in head.lower() else body

    async def _lines(self, path: str) -> AsyncIterator[bytes]:
        reader, _ = await self._open(path)
        while line := await reader.readline():
            yield line.strip()

    async def _open(
        self, path: str, more: str = ""
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=1 << 24)
        head = f"GET {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
        writer.write(f"{head}Authorization: Bearer {TOKEN}\r\n{more}\r\n".encode())
        await writer.drain()
        return reader, writer


def _unchunked(body: bytes) -> bytes:
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        whole, body = whole + body[:length], body[length + 2 :]
    return whole


async def _look(url: str, clients: int) -> None:
    await asyncio.gather(*(Page(url).look() for _ in range(clients)))
    await asyncio.Event().wait()


if __name__ == "__main__":
    os.nice(10)
    asyncio.run(_look(sys.argv[1], int(sys.argv[2])))
