"""The env runner actors of a trial: which are there, and which groups each of them hosts.

    reserved   the first `min_actors`, in the trial's placement group: Tune starts the trial with them
    further    up to `max_actors`, wherever the cluster has room: each is asked for at once, waits in
               Ray's queue (an autoscaler sees it there), and joins at the start of an iteration

There is an actor for each group at most, and actor i's own group is group i. An actor that dies is started
again by Ray as soon as there is room for it. Until then its groups are hosted by the others. While another
placement group is waiting for the resources of the further actors (see `placement`), they are given up.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import ray
from ray.exceptions import ActorDiedError, RayActorError

from raytrain.cluster.failures import why_it_died
from raytrain.cluster.placement import another_group_waits
from raytrain.config import ExperimentConfig

_ASK_AGAIN_S = 0.1
_ADAPT_EVERY_S = 2.0
_JOIN_PATIENCE_S = 5.0
_FAILED_PAUSE_S = 60.0


@dataclass(frozen=True)
class RunnerRules:
    """What the config says of env runner actors and their loss (`env_runners`, `fault_tolerance`)."""

    min_actors: int = 1
    max_actors: int | None = None
    on_loss: Literal["exact", "continue"] = "exact"
    max_short_iterations: int = 10
    timeout_s: float | str | None = "auto"

    @classmethod
    def of(cls, config: ExperimentConfig) -> RunnerRules:
        faults = config.fault_tolerance
        return cls(
            min_actors=config.env_runners.min_actors,
            max_actors=config.env_runners.max_actors,
            on_loss=faults.on_env_runner_loss,
            max_short_iterations=faults.max_short_iterations,
            timeout_s=faults.env_runner_timeout_s,
        )

    def actors(self, groups: int) -> tuple[int, int]:
        """How many are reserved, and how many there are at most, for a number of groups."""
        most = groups if self.max_actors is None else min(self.max_actors, groups)
        return min(self.min_actors, most), most


class Where(NamedTuple):
    """The process of an actor."""

    actor_id: str
    pid: int
    host: str

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


@dataclass
class Job:
    """A call that an actor has been sent for a group. `limit_s`: when it is taken for hanging."""

    group: int
    adopts: bool
    reference: Any
    limit_s: float | None


@dataclass
class RunnerActor:
    """An actor. `proven`: whether it has answered a call since it came; `holds`: the groups that are
    set up in its process; `jobs`: what it has not answered yet, in order; `since`: when it began with
    the first of them; `doubt`: the process that Ray said was gone, and how, though that may be late news
    of the one before it."""

    index: int
    actor: Any
    up: bool = False
    proven: bool = False
    where: Where | None = None
    holds: set[int] = field(default_factory=set)
    jobs: list[Job] = field(default_factory=list)
    since: float = 0.0
    question: Any = None
    asked_at: float = 0.0
    doubt: tuple[Where, str] | None = None

    def __str__(self) -> str:
        return f"The env runner of group {self.index}" + (f" ({self.where})" if self.where else "")


class RunnerPool:
    """See the module's docstring. `make` asks for another further actor, by index; without it there
    are the reserved ones only."""

    def __init__(
        self,
        reserved: Mapping[int, Any],
        further: Mapping[int, Any],
        *,
        most: int,
        make: Callable[[int], Any] | None,
        tell: Callable[[str], None],
    ) -> None:
        self._all = {
            index: RunnerActor(index, each) for index, each in {**reserved, **further}.items()
        }
        self._wanted = range(len(reserved), most) if make is not None else range(0)
        self._make = make
        self._tell = tell
        self._adapted_at = time.monotonic()
        self._settled: list[int] = []
        self._why_gone = ""
        self._gone_at: dict[int, float] = {}
        self.losses = 0
        """Actors that died or were killed so far."""
        self.assigned: dict[int, int] = {}
        """Which actor hosts a group."""

    @property
    def up(self) -> list[RunnerActor]:
        """The actors that are there, by index."""
        return [host for _, host in sorted(self._all.items()) if host.up]

    @property
    def why_none_will_come(self) -> str | None:
        """None as long as there is an actor that lives or that Ray will start again."""
        return None if self._all else self._why_gone

    def host_of(self, group: int) -> RunnerActor | None:
        """The actor that hosts a group, if it is there."""
        host = self._all.get(self.assigned.get(group, -1))
        return host if host is not None and host.up else None

    # -- who is there ----------------------------------------------------------------------------

    def look(self, timeout_s: float = 0.0) -> None:
        """Find out which of the absent actors have come, waiting for the next to come at most so
        long."""
        absent = [host for host in self._all.values() if not host.up]
        now = time.monotonic()
        for host in absent:
            # A call to an actor that Ray starts again waits for it, once Ray has noticed its death.
            if host.question is None and now - host.asked_at >= _ASK_AGAIN_S:
                host.question, host.asked_at = host.actor.where.remote(), now
        questions = {host.question: host for host in absent if host.question is not None}
        if not questions:
            time.sleep(min(timeout_s, _ASK_AGAIN_S))
            return
        answered, _ = ray.wait(list(questions), num_returns=len(questions), timeout=0)
        if not answered and timeout_s > 0:
            answered, _ = ray.wait(list(questions), num_returns=1, timeout=timeout_s)
        for reference in answered:
            self._on_reply(questions[reference])

    def gather(self, expected: int) -> None:
        """Wait a few seconds for as many actors as the cluster had room for when they were asked for:
        groups that are set up on their own actors at first need not move to them later."""
        began = time.monotonic()
        while len(self.up) < expected and time.monotonic() - began < _JOIN_PATIENCE_S:
            self.look(_ASK_AGAIN_S)

    def lose(self, host: RunnerActor, said: str, *, sure: bool) -> None:
        """An actor is not there any more; what it hosted is gone. If that is not `sure`, it is when
        another process comes in its place."""
        if sure:
            self.losses += 1
        elif host.where is not None:
            host.doubt = (host.where, said)
        host.up, host.proven, host.question, host.asked_at = False, False, None, 0.0
        host.holds.clear()
        host.jobs.clear()

    def kill(self, host: RunnerActor) -> None:
        """End the actor's process, for Ray to start another one."""
        ray.kill(host.actor, no_restart=False)

    def _on_reply(self, host: RunnerActor) -> None:
        question, host.question = host.question, None
        try:
            host.where = Where(*ray.get(question))
            host.up = True
            if host.doubt is not None:
                before, said = host.doubt
                host.doubt = None
                if host.where != before:
                    self.losses += 1
                    self._tell(
                        f"The env runner of group {host.index} ({before}) {said} before it had done "
                        "anything, so nothing is lost; a new process is there."
                    )
        except RayActorError as error:
            if not comes_back(error):
                self._why_gone = why_it_died(error)
                self._tell(f"{host} is not started again: {self._why_gone}.")
                self._gone_at[host.index] = time.monotonic()
                del self._all[host.index]

    # -- who hosts what --------------------------------------------------------------------------

    def assign(self, groups: Collection[int]) -> list[tuple[RunnerActor, int]]:
        """Spread the groups over the actors that are there now. Returns what an actor need not host
        any more."""
        self.look()
        there = [host.index for host in self.up]
        if not there:
            return []
        if self._settled and not set(there) <= set(self._settled):
            self._tell(
                f"{len(groups)} env group(s) are hosted by {len(there)} env runner(s) from here on "
                f"({', '.join(str(host.where) for host in self.up)})."
            )
        self._settled = there
        before, self.assigned = self.assigned, spread(groups, there, self.assigned)
        moved = []
        for group, index in before.items():
            host = self._all.get(index)
            if host is not None and group in host.holds and self.assigned[group] != index:
                host.holds.discard(group)
                moved.append((host, group))
        return moved

    def stay(self, groups: Iterable[int]) -> None:
        """Every group at its own actor, whether that is there or not."""
        self.assigned = {group: group for group in groups}

    def adapt(self) -> None:
        """Ask for further actors that are missing, or give all of them up to somebody who waits."""
        if not self._wanted or time.monotonic() - self._adapted_at < _ADAPT_EVERY_S:
            return
        self._adapted_at = time.monotonic()
        if not another_group_waits():
            assert self._make is not None
            for index in self._wanted:
                # One that Ray gave up may not be able to start at all.
                failed_s = self._adapted_at - self._gone_at.get(index, -math.inf)
                if index not in self._all and failed_s > _FAILED_PAUSE_S:
                    self._all[index] = RunnerActor(index, self._make(index))
            return
        given_up = self.drop_further()
        if given_up:
            self._tell(
                f"{given_up} env runner(s) beyond env_runners.min_actors are given up, since another "
                "trial waits for room in the cluster."
            )

    def end(self) -> None:
        """End the actors that RLlib does not know of, and those that are not there: RLlib would wait
        for them to come, if only to stop them."""
        for host in self._all.values():
            if host.index in self._wanted or not host.up:
                ray.kill(host.actor)

    def drop_further(self) -> int:
        """End all further actors. Returns how many of them were there."""
        further = [self._all.pop(index) for index in self._wanted if index in self._all]
        for host in further:
            ray.kill(host.actor)
        return sum(host.up for host in further)


def spread(
    groups: Collection[int], pool: Collection[int], before: Mapping[int, int]
) -> dict[int, int]:
    """Which actor hosts each group: its own if that is there; else the one that hosts it already, if
    that leaves none with more than its share; else the one with the fewest."""
    share = math.ceil(len(groups) / len(pool))
    placed = {group: group for group in groups if group in pool}
    load = Counter(placed.values())
    for group in sorted(groups):
        if group in placed:
            continue
        host = before.get(group, -1)
        if host not in pool or load[host] >= share:
            host = min(pool, key=lambda each: (load[each], each))
        placed[group] = host
        load[host] += 1
    return placed


def comes_back(error: BaseException) -> bool:
    """Whether Ray restarts the actor: one without restarts left, killed on purpose, or that cannot be
    made stays dead and says so at once."""
    if not isinstance(error, ActorDiedError):
        return True
    signs = ("max_restarts", "ray.kill", "out of scope", "creation task")
    return not any(sign in str(error) for sign in signs)
