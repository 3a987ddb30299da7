"""The env runner actors of a trial, and which groups each of them hosts.

    reserved   the first `min_actors`, in the trial's placement group: the trial starts with them
    further    up to `max_actors`, outside of it: all are requested at once, wait in Ray's queue
               until the cluster has room (an autoscaler sees them), and join at the start of an
               iteration

There is at most one actor per group, and actor i's own group is group i. Ray restarts an
actor that died as soon as the cluster has room for it; until then the other actors host its
groups. The further actors are given up while another placement group waits for their
resources (see `placement`).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import ray
from ray.exceptions import ActorDiedError, RayActorError

from raytrain._ray import actors as _ray_actors
from raytrain.arithmetic.machine import difference
from raytrain.cluster.failures import why_it_died
from raytrain.cluster.placement import another_group_waits
from raytrain.config import ExperimentConfig

_PING_EVERY_S = 0.1
_PING_DIFFERING_EVERY_S = 10.0  # Whether Ray has restarted the idle actor, elsewhere perhaps.
_SCALE_EVERY_S = 2.0
_JOIN_TIMEOUT_S = 5.0
_RETRY_FAILED_AFTER_S = 60.0


@dataclass(frozen=True)
class RunnerRules:
    """What the config says about env runner actors and their loss (`env_runners`,
    `fault_tolerance`)."""

    min_actors: int = 1
    max_actors: int | None = None
    on_loss: Literal["exact", "continue"] = "exact"
    max_short_iterations: int = 10
    timeout_s: float | str | None = "auto"
    on_other_arithmetic: Literal["continue", "wait", "fail"] = "continue"

    @classmethod
    def of(cls, config: ExperimentConfig) -> RunnerRules:
        runners, faults = config.env_runners, config.fault_tolerance
        return cls(
            min_actors=runners.min_actors,
            max_actors=runners.max_actors,
            on_loss=faults.on_env_runner_loss,
            max_short_iterations=faults.max_short_iterations,
            timeout_s=faults.env_runner_timeout_s,
            on_other_arithmetic=faults.on_other_arithmetic,
        )

    def actors(self, groups: int) -> tuple[int, int]:
        """The number of reserved actors, and the largest number of actors, for a
        number of groups."""
        most = groups if self.max_actors is None else min(self.max_actors, groups)
        return min(self.min_actors, most), most


@dataclass(frozen=True)
class Runtime:
    """What `RunnerPool` and `RetryingCall` use of Ray and the clock; unit tests replace it."""

    get: Callable[..., Any] = ray.get
    wait: Callable[..., Any] = ray.wait
    kill: Callable[..., None] = ray.kill
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    take_stall_report: Callable[[str], str | None] = _ray_actors.take_message
    another_group_waits: Callable[[], bool] = another_group_waits


class ActorProcess(NamedTuple):
    """The process that an actor runs in."""

    actor_id: str
    pid: int
    host: str
    arithmetic: str = ""
    """The fingerprint of what it computes (see `EnvGroup.arithmetic`)."""
    machine: Mapping[str, str] = MappingProxyType({})

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


@dataclass
class PendingCall:
    """A call for one group that an actor has not answered yet."""

    group: int
    loads: bool
    """Whether the call sets the group up, before it can be asked anything."""
    reference: Any
    limit_s: float | None
    """After how many seconds the call counts as hung; None: never."""


@dataclass
class RunnerActor:
    """An env runner actor, as the trial sees it."""

    index: int
    actor: Any
    """The Ray actor handle."""
    up: bool = False
    has_answered: bool = False
    """Whether the present process has answered a call."""
    process: ActorProcess | None = None
    loaded: set[int] = field(default_factory=set)
    """The groups that are set up in the process."""
    calls: list[PendingCall] = field(default_factory=list)
    """In the order in which the actor works on them."""
    busy_since: float = 0.0
    """When the first of `calls` began."""
    ping: Any = None
    pinged_at: float = -math.inf
    unconfirmed: tuple[ActorProcess, str] | None = None
    """A process that Ray reported dead, and how, if this may be late news of the
    process before it."""

    def __str__(self) -> str:
        process = f" ({self.process})" if self.process else ""
        return f"The env runner of group {self.index}{process}"


class RunnerPool:
    """The actors by index. `make` requests another further actor; None: there are none beyond the
    reserved ones. `most`: the largest number of actors. `tell` receives messages for the user."""

    def __init__(
        self,
        reserved: Mapping[int, Any],
        further: Mapping[int, Any],
        *,
        most: int,
        make: Callable[[int], Any] | None,
        tell: Callable[[str], None],
        runtime: Runtime | None = None,
    ) -> None:
        self.runtime = runtime or Runtime()
        self._runners = {
            index: RunnerActor(index, actor) for index, actor in {**reserved, **further}.items()
        }
        self._further = range(len(reserved), most) if make is not None else range(0)
        self._make = make
        self._tell = tell
        self._scaled_at = self.runtime.now()
        self._last_used: set[int] = set()
        self._why_gone = ""
        self._gone_at: dict[int, float] = {}
        self.failures = 0
        """How many actors died or were killed so far."""
        self.recreated: list[int] = []
        """RLlib's indices (from 1) of actors that have come back in another process."""
        self.assigned: dict[int, int] = {}
        """The index of the actor that hosts a group."""
        self._arithmetic: str | None = None
        self._machine: Mapping[str, str] = {}
        self._differing: dict[int, ActorProcess] = {}

    @property
    def up(self) -> list[RunnerActor]:
        """The actors that are there, by index."""
        return [runner for _, runner in sorted(self._runners.items()) if runner.up]

    @property
    def differing(self) -> list[ActorProcess]:
        """The processes that are idle because they compute differently."""
        return [process for _, process in sorted(self._differing.items())]

    @property
    def only_differing(self) -> bool:
        """Whether there is no other actor, up or awaited."""
        return bool(self._differing) and self._differing.keys() == self._runners.keys()

    @property
    def why_empty(self) -> str | None:
        """Why no actor is left; None while an actor lives or will be restarted by Ray."""
        return None if self._runners else self._why_gone

    def runner_of(self, group: int) -> RunnerActor | None:
        """The actor that hosts a group; None if it is not there."""
        runner = self._runners.get(self.assigned.get(group, -1))
        return runner if runner is not None and runner.up else None

    # -- which actors are there ------------------------------------------------------------------

    def refresh(self, timeout_s: float = 0.0) -> None:
        """Find out which of the absent actors have started. Waits at most `timeout_s`
        for the next."""
        absent = [runner for runner in self._runners.values() if not runner.up]
        now = self.runtime.now()
        for runner in absent:
            # Once Ray has noticed the death, a call waits until Ray has restarted the actor.
            pause_s = _PING_DIFFERING_EVERY_S if runner.index in self._differing else _PING_EVERY_S
            if runner.ping is None and now - runner.pinged_at >= pause_s:
                runner.ping, runner.pinged_at = runner.actor.process.remote(), now
        pings = {runner.ping: runner for runner in absent if runner.ping is not None}
        if not pings:
            self.runtime.sleep(min(timeout_s, _PING_EVERY_S))
            return
        answered, _ = self.runtime.wait(list(pings), num_returns=len(pings), timeout=0)
        if not answered and timeout_s > 0:
            answered, _ = self.runtime.wait(list(pings), num_returns=1, timeout=timeout_s)
        for reference in answered:
            self._on_reply(pings[reference])

    def wait_for(self, expected: int) -> None:
        """Wait a few seconds for as many actors as the cluster had room for when they were
        requested. Groups that are set up on their own actors at first need not move there later."""
        began = self.runtime.now()
        while (
            len(self.up) + len(self._differing) < expected
            and self.runtime.now() - began < _JOIN_TIMEOUT_S
        ):
            self.refresh(_PING_EVERY_S)

    def mark_lost(self, runner: RunnerActor, message: str, *, confirmed: bool) -> None:
        """Record that an actor's process is gone, with all groups in it. Without `confirmed` the
        loss counts only if the actor comes back in another process."""
        if confirmed:
            self.failures += 1
        elif runner.process is not None:
            runner.unconfirmed = (runner.process, message)
        runner.up = runner.has_answered = False
        runner.ping, runner.pinged_at = None, -math.inf
        runner.loaded.clear()
        runner.calls.clear()

    def _on_reply(self, runner: RunnerActor) -> None:
        ping, runner.ping = runner.ping, None
        former = runner.process
        try:
            runner.process = ActorProcess(*self.runtime.get(ping))
        except RayActorError as error:
            if not _will_restart(error):
                self._why_gone = why_it_died(error)
                self._tell(f"{runner} is not restarted: {self._why_gone}.")
                self._gone_at[runner.index] = self.runtime.now()
                del self._runners[runner.index]
                self._differing.pop(runner.index, None)
            return
        runner.up = True
        if former is not None and str(former) != str(runner.process):
            self.recreated.append(runner.index + 1)
        self._set_aside_if_differing(runner)
        if runner.unconfirmed is not None:
            (before, message), runner.unconfirmed = runner.unconfirmed, None
            if runner.process != before:
                self.failures += 1
                self._tell(
                    f"The env runner of group {runner.index} ({before}) {message} before it did "
                    "any work, so nothing is lost; a new process has started."
                )

    # -- which of them compute as the run does ----------------------------------------------------

    def expect(self, arithmetic: str, machine: Mapping[str, str]) -> None:
        """Use only processes with this fingerprint from now on, which `machine` had."""
        self._arithmetic, self._machine = arithmetic, machine
        for runner in self.up:
            self._set_aside_if_differing(runner)

    def most_frequent(self) -> tuple[str, Mapping[str, str]] | None:
        """The fingerprint of most of the processes that are there (of the lowest index, if there
        are several), and a machine of it."""
        found = [runner.process for runner in self.up if runner.process is not None]
        if not found:
            return None
        most = Counter(process.arithmetic for process in found).most_common(1)[0][0]
        return most, next(p.machine for p in found if p.arithmetic == most)

    def accept_differing(self) -> None:
        """Use all processes, whatever they compute."""
        self._arithmetic = None
        for index in self._differing:
            if index in self._runners:
                self._runners[index].up = True
        self._differing.clear()

    def _set_aside_if_differing(self, runner: RunnerActor) -> None:
        process, before = runner.process, self._differing.pop(runner.index, None)
        if process is None or self._arithmetic is None or process.arithmetic == self._arithmetic:
            return
        self._differing[runner.index] = process
        runner.up = False
        runner.loaded.clear()
        runner.calls.clear()
        if process != before:
            self._tell(
                f"{runner} gets no work as long as others can do it, since it computes differently "
                f"({difference(self._machine, process.machine)})."
            )

    # -- which actor hosts what ------------------------------------------------------------------

    def assign(self, groups: Collection[int]) -> list[tuple[RunnerActor, int]]:
        """Spread the groups over the actors that are there. Returns what an actor
        no longer hosts."""
        self.refresh()
        runners = self.up
        if not runners:
            return []
        indices = {runner.index for runner in runners}
        if self._last_used and not indices <= self._last_used:
            self._tell(
                f"{len(groups)} env group(s) are hosted by {len(runners)} env runner(s) from now "
                f"on ({', '.join(str(runner.process) for runner in runners)})."
            )
        self._last_used = indices
        before, self.assigned = self.assigned, spread(groups, indices, self.assigned)
        moved = []
        for group, index in before.items():
            runner = self._runners.get(index)
            if runner is not None and group in runner.loaded and self.assigned[group] != index:
                runner.loaded.discard(group)
                moved.append((runner, group))
        return moved

    def assign_to_own(self, groups: Iterable[int]) -> None:
        """Assign every group to its own actor, whether that is there or not."""
        self.assigned = {group: group for group in groups}

    def scale(self) -> None:
        """Request the further actors that are missing, or give all of them up to another trial that
        waits for resources."""
        if self._make is None or not self._further:
            return
        now = self.runtime.now()
        if now - self._scaled_at < _SCALE_EVERY_S:
            return
        self._scaled_at = now
        if self.runtime.another_group_waits():
            further = [self._runners.pop(i) for i in self._further if i in self._runners]
            for runner in further:
                self._differing.pop(runner.index, None)
            for runner in further:
                self.runtime.kill(runner.actor)
            given_up = sum(runner.up for runner in further)
            if given_up:
                self._tell(
                    f"Gave up {given_up} env runner(s) beyond env_runners.min_actors: another "
                    "trial is waiting for resources."
                )
            return
        for index in self._further:
            # An actor that Ray gave up may be unable to start at all.
            failed_s = now - self._gone_at.get(index, -math.inf)
            if index not in self._runners and failed_s > _RETRY_FAILED_AFTER_S:
                self._runners[index] = RunnerActor(index, self._make(index))

    def stop(self) -> None:
        """End the further actors, which RLlib does not know, and the absent ones: to stop an absent
        actor, RLlib would wait for it to start."""
        for runner in self._runners.values():
            if runner.index in self._further or not runner.up:
                self.runtime.kill(runner.actor)


def spread(
    groups: Collection[int], pool: Collection[int], before: Mapping[int, int]
) -> dict[int, int]:
    """The actor that hosts each group: the group's own actor if it is there; else the
    one that hosts the group already, unless it has its share of groups; else the one
    with the fewest groups."""
    share = math.ceil(len(groups) / len(pool))
    assigned = {group: group for group in groups if group in pool}
    load = Counter(assigned.values())
    for group in sorted(groups):
        if group in assigned:
            continue
        actor = before.get(group, -1)
        if actor not in pool or load[actor] >= share:
            actor = min(pool, key=lambda index: (load[index], index))
        assigned[group] = actor
        load[actor] += 1
    return assigned


def _will_restart(error: RayActorError) -> bool:
    """Whether Ray restarts the actor. It does not if no restarts are left, if the actor was killed
    on purpose, or if it cannot be constructed; the error then says so at once."""
    if not isinstance(error, ActorDiedError):
        return True
    signs = ("max_restarts", "ray.kill", "out of scope", "creation task")
    return not any(sign in str(error) for sign in signs)
