"""What happens, as server-sent events.

    /api/events            data: {"id": RUN}                      a run changed
    /api/runs/{id}/events  event: event  data: {trial, time, attempt, iteration, kind, message}
                           event: row    data: {trial, iteration, timesteps, score}
                           event: state  data: {state, progress}
                           first all past events, the last row of each trial, and the state
    /api/runs/{id}/log     data: "a line"

All clients of a run share one feed, which asks storage once a second while anybody listens. A
client that does not keep up is disconnected; browsers connect again by themselves.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi.responses import StreamingResponse

from raytrain.checkpoint import trials
from raytrain.errors import RaytrainError
from raytrain.records import EVENT_LOG, read_events
from raytrain.records.metrics import metric
from raytrain.records.row_files import last_row
from raytrain.server.history.database import History
from raytrain.server.problems import Refused
from raytrain.storage import Location
from raytrain.storage.json import json_ready
from raytrain.storage.location import Listed
from raytrain.trial.score import reported_score

Message = tuple[str | None, Any]
"""The name of an event, and its data."""

_EVERY_S = 1.0
_LOG_EVERY_S = 0.5
_ALIVE_EVERY_S = 15.0
_MOST_WAITING = 20_000
_MOST_LINES = 5000
_BLOCK = 1 << 20
_TAIL_BYTES = 4 << 20
_LATEST = 2**62


class RunsFeed:
    """The ids of runs that change."""

    keeps_past = False

    def __init__(self, history: History) -> None:
        self._history = history
        self._since, _ = history.changes(_LATEST)

    def poll(self) -> list[Message]:
        self._since, changed = self._history.changes(self._since)
        return [(None, {"id": run}) for run in changed]


class RunFeed:
    """The events, rows and states of one run."""

    keeps_past = True

    def __init__(self, history: History, run: str, place: Location) -> None:
        self._history = history
        self._run = run
        self._place = place
        self._stamps: dict[tuple[str, str], Listed] = {}
        self._seen: dict[str, int] = {}
        self._state: Message | None = None

    def poll(self) -> list[Message]:
        messages: list[Message] = []
        for trial in trials(self._place):
            listed = trial.listed()
            if self._changed(trial.name, EVENT_LOG, listed):
                messages += self._new_events(trial)
            if self._changed(trial.name, "result.json", listed):
                messages += self._newest_row(trial)
        row = self._history.run(self._run)
        if row is not None:
            state: Message = ("state", {key: row[key] for key in ("state", "progress")})
            if state != self._state:
                messages.append(state)
                self._state = state
        return messages

    def _changed(self, trial: str, name: str, listed: dict[str, Listed]) -> bool:
        stamp = listed.get(name)
        if stamp is None or self._stamps.get((trial, name)) == stamp:
            return False
        self._stamps[trial, name] = stamp
        return True

    def _new_events(self, trial: Location) -> list[Message]:
        events = read_events(trial / EVENT_LOG)
        seen = self._seen.get(trial.name, 0)
        self._seen[trial.name] = len(events)
        return [("event", {"trial": trial.name, **asdict(event)}) for event in events[seen:]]

    def _newest_row(self, trial: Location) -> list[Message]:
        row = last_row(trial / "result.json")
        if row is None:
            return []
        score = reported_score(row)
        steps = metric(row, "num_env_steps_sampled_lifetime")
        data = {
            "trial": trial.name,
            "iteration": row.get("training_iteration"),
            "timesteps": None if steps is None else int(steps),
            "score": None if score is None else score.value,
        }
        return [("row", data)]


class _Shared:
    """One feed, its listeners, and what a further listener has to be told first."""

    def __init__(self, feed: RunsFeed | RunFeed) -> None:
        self.feed = feed
        self.listeners: set[asyncio.Queue[Message | None]] = set()
        self.task: asyncio.Task[None] | None = None
        self._events: list[Message] = []
        self._last: dict[tuple[str | None, str | None], Message] = {}

    @property
    def past(self) -> list[Message]:
        return [*self._events, *self._last.values()]

    def tell(self, messages: list[Message]) -> None:
        """To all listeners, and to those that come."""
        for name, data in messages if self.feed.keeps_past else ():
            if name == "event":
                self._events.append((name, data))
            else:
                self._last[name, data.get("trial")] = (name, data)
        for listener in self.listeners:
            for message in messages:
                listener.put_nowait(message)
            if listener.qsize() > _MOST_WAITING:
                listener.put_nowait(None)


class Streams:
    """All open streams of a server. `most`: how many there may be."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0
        self._shared: dict[str, _Shared] = {}
        self._ending = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def open(self) -> int:
        return self._open

    def end(self) -> None:
        """End every stream now, and allow no other. May be called by a handler of a signal."""
        if self._loop is None:
            self._ending.set()
        else:
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._ending.set()
        for shared in self._shared.values():
            for listener in shared.listeners:
                listener.put_nowait(None)

    async def of(self, key: str, make: Callable[[], RunsFeed | RunFeed]) -> StreamingResponse:
        """The feed with this key; made if nobody listens to it yet. Raises `Refused`."""
        self._require_room()
        shared = self._shared.get(key)
        if shared is None:
            feed = await asyncio.to_thread(make)
            shared = self._shared.setdefault(key, _Shared(feed))
        return self._response(self._messages(key, shared))

    def log(self, newest: Callable[[], Path | None], tail: int, follow: bool) -> StreamingResponse:
        """The last lines of a log; then those that are written, also to a newer log."""
        self._require_room()
        return self._response(self._lines(newest, min(tail, _MOST_LINES), follow))

    def text(self, read: Callable[[], str], tail: int, follow: bool) -> StreamingResponse:
        """The same for a log that can only be read as a whole."""
        self._require_room()
        return self._response(self._texts(read, min(tail, _MOST_LINES), follow))

    def _require_room(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._open >= self._most or self._ending.is_set():
            raise Refused(503, f"{self._open} streams are open, and no more are allowed.")

    def _response(self, parts: AsyncIterator[str]) -> StreamingResponse:
        async def counted() -> AsyncIterator[str]:
            self._open += 1
            try:
                yield ": raytrain\n\n"
                async for part in parts:
                    yield part
            finally:
                self._open -= 1

        return StreamingResponse(
            counted(), media_type="text/event-stream", headers={"x-accel-buffering": "no"}
        )

    async def _messages(self, key: str, shared: _Shared) -> AsyncIterator[str]:
        listener: asyncio.Queue[Message | None] = asyncio.Queue()
        for past in shared.past:
            listener.put_nowait(past)
        shared.listeners.add(listener)
        self._shared[key] = shared
        if shared.task is None:
            shared.task = asyncio.create_task(self._feed(key, shared))
        try:
            while not self._ending.is_set():
                try:
                    async with asyncio.timeout(_ALIVE_EVERY_S):
                        message = await listener.get()
                except TimeoutError:
                    yield ": still here\n\n"
                    continue
                if message is None:
                    return
                yield _sent(message)
        finally:
            shared.listeners.discard(listener)

    async def _feed(self, key: str, shared: _Shared) -> None:
        while shared.listeners and not self._ending.is_set():
            messages: list[Message] = []
            with suppress(RaytrainError, OSError):  # The next round asks again.
                messages = await asyncio.to_thread(shared.feed.poll)
            shared.tell(messages)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), _EVERY_S)
        shared.task = None
        if self._shared.get(key) is shared:
            del self._shared[key]

    async def _pause(self, seconds: float) -> bool:
        """False if the server is ending."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), seconds)
        return not self._ending.is_set()

    async def _lines(
        self, newest: Callable[[], Path | None], tail: int, follow: bool
    ) -> AsyncIterator[str]:
        path, position, rest = await asyncio.to_thread(newest), 0, b""
        if path is not None:
            lines, position, rest = await asyncio.to_thread(_tail, path, tail)
            for line in lines:
                yield _line(line)
        while follow and await self._pause(_LOG_EVERY_S):
            latest = await asyncio.to_thread(newest)
            if latest is not None and latest != path:
                path, position, rest = latest, 0, b""
            if path is None:
                continue
            data = await asyncio.to_thread(_read, path, position)
            position += len(data)
            *whole, rest = (rest + data).split(b"\n")
            if len(rest) > _BLOCK:  # A line without an end.
                whole, rest = [*whole, rest], b""
            for line in whole:
                yield _line(line)
        if rest:
            yield _line(rest)

    async def _texts(self, read: Callable[[], str], tail: int, follow: bool) -> AsyncIterator[str]:
        shown: int | None = None
        while True:
            with suppress(RaytrainError):
                lines = (await asyncio.to_thread(read)).splitlines()
                for line in lines[max(0, len(lines) - tail) if shown is None else shown :]:
                    yield _line(line.encode(errors="replace"))
                shown = len(lines)
            if not follow or not await self._pause(5 * _EVERY_S):
                return


def _sent(message: Message) -> str:
    event, data = message
    name = "" if event is None else f"event: {event}\n"
    return f"{name}data: {json.dumps(json_ready(data), allow_nan=False)}\n\n"


def _line(line: bytes) -> str:
    return _sent((None, line.rstrip(b"\r").decode(errors="replace")))


def _tail(path: Path, count: int) -> tuple[list[bytes], int, bytes]:
    """The last lines, up to where they were read, and what follows the last line break."""
    with path.open("rb") as file:
        begin = max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES)
        file.seek(begin)
        if begin:
            file.readline()  # The rest of a line.
        lines = deque(file, maxlen=count + 1)
        position = file.tell()
    rest = b""
    if lines and not lines[-1].endswith(b"\n"):
        rest = lines.pop()
    whole = [line.rstrip(b"\n") for line in lines]
    return whole[-count:] if count else [], position, rest


def _read(path: Path, position: int) -> bytes:
    with path.open("rb") as file:
        file.seek(position)
        return file.read(_BLOCK)
