"""Actors without Ray and a clock that only moves when somebody waits, for what calls actors
through a `Runtime`.

ray = FakeRay()
actor = ray.actor(0)                        its process 100 has started
reference = actor.call("answer", seconds=2)
ray.after(1, actor.die)                     the call fails; the process 101 starts 1 s later
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError

from raytrain.rollout.runner_pool import Runtime

RESTART_S = 1.0


@dataclass(eq=False)
class Reference:
    """Of a call. It has an answer (or an error) once it is `ready`."""

    ready: bool = False
    answer: Any = None
    error: Exception | None = None

    def set(self, answer: Any = None, error: Exception | None = None) -> None:
        if not self.ready:
            self.ready, self.answer, self.error = True, answer, error


class FakeActor:
    """It works on its calls one after the other, and is restarted after its death until
    it is `given_up`."""

    def __init__(self, ray: FakeRay, index: int, starts_after_s: float) -> None:
        self.index = index
        self.pings = self.calls = 0
        self.given_up: Exception | None = None
        self.restart_s = RESTART_S
        self.is_up = False
        self.arithmetic: tuple[str, dict[str, str]] = ("1:a", {"cpu": "A"})
        """The fingerprint of what its process computes, and the machine."""
        self.process = _Method(self.ping)
        self._ray = ray
        self._pid = 99 + 100 * index
        self._free_at = 0.0
        self._pending: list[Reference] = []
        self._pings: list[Reference] = []
        self._start_later(starts_after_s)

    def ping(self) -> Reference:
        """A call of `process`: it waits for a process that is there."""
        self.pings += 1
        reference = Reference()
        self._pings.append(reference)
        self._answer_pings()
        return reference

    def call(
        self,
        answer: Any = None,
        *,
        seconds: float | None = 0.0,
        error: Exception | None = None,
    ) -> Reference:
        """A call that takes so long; None: for ever."""
        self.calls += 1
        reference = Reference()
        if not self.is_up:
            reference.set(error=RayActorError(error_msg="worker process has died"))
        elif seconds is not None:
            self._free_at = max(self._free_at, self._ray.now) + seconds
            self._ray.at(self._free_at, lambda: reference.set(answer, error))
        self._pending.append(reference)
        return reference

    def die(self, error: Exception | None = None) -> None:
        """What it has not answered fails with the error."""
        self.is_up, self._free_at = False, 0.0
        for reference in self._pending:
            reference.set(error=error or RayActorError(error_msg="worker process has died"))
        self._pending = []
        if self.given_up is None:
            self._start_later(self.restart_s)

    def die_for_good(self, message: str = "max_restarts") -> None:
        """Ray does not start it again, and says so to whoever calls it."""
        error = ActorDiedError()
        error.error_msg = message
        error.args = (message,)
        self.given_up = error
        self.die(error)
        self._answer_pings()

    def forget_calls(self) -> None:
        """Ray says that the calls are lost, though the process is there."""
        pending, self._pending = self._pending, []
        for reference in pending:
            reference.set(error=ActorUnavailableError("restarted meanwhile", None))

    def _start_later(self, seconds: float) -> None:
        def start() -> None:
            if self.given_up is None and not self.is_up:
                self.is_up = True
                self._pid += 1
                self._answer_pings()

        self._ray.after(seconds, start)

    def _answer_pings(self) -> None:
        if self.is_up or self.given_up is not None:
            pings, self._pings = self._pings, []
            for reference in pings:
                process = (f"actor{self.index}", self._pid, "node", *self.arithmetic)
                reference.set(process, self.given_up)


@dataclass
class _Method:
    remote: Callable[..., Reference]


@dataclass
class FakeRay:
    """`runtime` is what the code under test gets."""

    now: float = 1000.0
    killed: list[tuple[int, bool]] = field(default_factory=list)
    """Index of the actor, and whether Ray was told not to restart it."""
    stall_reports: dict[str, str] = field(default_factory=dict)
    another_group_waits: bool = False
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: Any = field(default_factory=itertools.count)

    @property
    def runtime(self) -> Runtime:
        return Runtime(
            get=self._get,
            wait=self._wait,
            kill=self._kill,
            now=lambda: self.now,
            sleep=self.sleep,
            take_stall_report=lambda key: self.stall_reports.pop(key, None),
            another_group_waits=lambda: self.another_group_waits,
        )

    def actor(self, index: int, *, starts_after_s: float = 0.0) -> FakeActor:
        made = FakeActor(self, index, starts_after_s)
        self.sleep(0.0)
        return made

    def at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), event))

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        self.at(self.now + seconds, event)

    def sleep(self, seconds: float) -> None:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self._next_event()
        self.now = end

    def _next_event(self) -> None:
        time, _, event = heapq.heappop(self._events)
        self.now = max(self.now, time)
        event()

    def _wait(
        self, references: Sequence[Reference], *, num_returns: int, timeout: float
    ) -> tuple[list[Reference], list[Reference]]:
        end = self.now + timeout
        self.sleep(0.0)
        while sum(reference.ready for reference in references) < num_returns:
            if not self._events or self._events[0][0] > end:
                self.now = end
                break
            self._next_event()
        ready = [reference for reference in references if reference.ready]
        return ready, [reference for reference in references if not reference.ready]

    def _get(self, reference: Reference) -> Any:
        assert reference.ready, "the caller would wait for ever"
        if reference.error is not None:
            raise reference.error
        return reference.answer

    def _kill(self, actor: FakeActor, no_restart: bool = True) -> None:
        self.killed.append((actor.index, no_restart))
        if no_restart:
            actor.die_for_good("killed by `ray.kill`")
        else:
            actor.die()
