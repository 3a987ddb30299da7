"""One question to every env group, asked until each has answered, whichever actors die meanwhile.

    an actor lives     it is asked for all its groups at once and answers them one after the other
    an actor dies      its unanswered groups wait for whichever comes first: another actor that has
                       nothing left to do, or its own one, started again by Ray
    an actor hangs     it is killed after a while (see `timeout`), and that is a death like any other
    none is left       it is told at once, and waited for, and in the end it is an error

A group that an actor does not hold yet is set up there first, from its last state, so the answer is the
same wherever it comes from.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from raytrain._ray import actors as _ray_actors
from raytrain.cluster.failures import why_it_died
from raytrain.errors import RaytrainError
from raytrain.rollout.runner_pool import Job, RunnerActor, RunnerPool
from raytrain.rollout.timeout import RolloutTimeout, word_of

_LOST = (RayActorError, NodeDiedError, ObjectLostError, WorkerCrashedError)
_MAX_LOSSES_IN_A_ROW = 5
_MAX_HANGS_IN_A_ROW = 3
_NOBODY_TOLD_S, _NOBODY_DEADLINE_S = 5.0, 300.0
_TICK_S = 0.25


class RunnerLost(RaytrainError):
    """An env runner died and could not be started again."""


@dataclass(frozen=True)
class Question:
    """`load_group` sends an actor a group's state; `group_loaded` gets the group and the answer. `ask` sends the
    question itself, with the seconds that it may take; None if there is none beside setting up. `about`
    stands in sentences: "fragment of iteration 6"."""

    load_group: Callable[[Any, int], Any]
    group_loaded: Callable[[int, Any], None]
    ask: Callable[[Any, int, float | None], Any] | None = None
    about: str = ""
    sampling: bool = False
    losing: str = "nothing is lost"


@dataclass
class _Loss:
    """What there is to tell of an actor's loss once its groups have answered from elsewhere. `host` is
    a sentence's subject, as it was then; `waiting` are those of the groups that have not answered."""

    host: str
    index: int
    said: str
    groups: frozenset[int]
    waiting: set[int]
    began: float
    by: set[int] = field(default_factory=set)


class RetryingCall:
    """`may_drop(groups)`: whether the round may go on without the answers of these groups. `elastic`:
    whether a group may be hosted by another actor than its own."""

    def __init__(
        self,
        pool: RunnerPool,
        groups: Collection[int],
        question: Question,
        *,
        patience: RolloutTimeout,
        tell: Callable[[str], None],
        tell_after_s: float | None,
        elastic: bool,
        may_drop: Callable[[int], bool] = lambda lost: False,
    ) -> None:
        self._pool = pool
        self._question = question
        self._patience = patience
        self._tell = tell
        self._tell_after_s = tell_after_s
        self._elastic = elastic
        self._may_drop = may_drop
        self._open = set(groups)
        self._in_a_row: Counter[int] = Counter()
        self._told_of: Counter[int] = Counter()
        self._losses: list[_Loss] = []
        self._nobody_since: float | None = None
        self._nobody_told = False
        self._last_loss = "they were not started"
        self.answers: dict[int, Any] = {}
        self.dropped: set[int] = set()

    def run(self) -> dict[int, Any]:
        """The answers by group, in the order of the groups; without those of `dropped`.

        Raises:
            RunnerLost: actors die or hang again and again, or none comes back.
            Exception: whatever a call raised in an actor.
        """
        for host in self._pool.up:
            host.jobs.clear()  # Of a round that was broken off.
        while self._open:
            self._send()
            self._take_answers()
            self._pool.look()
            for host in self._pool.up:
                if host.jobs:
                    self._check_deadline(host)
        return dict(sorted(self.answers.items()))

    # -- asking ----------------------------------------------------------------------------------

    def _send(self) -> None:
        sent = {job.group for host in self._pool.up for job in host.jobs}
        for group in sorted(self._open - sent):
            host = self._host_for(group)
            if host is None:
                continue
            if not host.jobs:
                host.since = time.monotonic()
            host.jobs.append(self._job(host, group))

    def _host_for(self, group: int) -> RunnerActor | None:
        host = self._pool.host_of(group)
        if host is not None or not self._elastic:
            return host
        idle = [each for each in self._pool.up if not each.jobs]
        if not idle:
            return None
        host = min(idle, key=lambda each: (len(each.holds), each.index))
        self._pool.assigned[group] = host.index
        return host

    def _job(self, host: RunnerActor, group: int) -> Job:
        question = self._question
        if group not in host.holds or question.ask is None:
            limit_s = self._patience.set_up_limit_s()
            return Job(group, True, question.load_group(host.actor, group), limit_s)
        limit_s = self._patience.set_up_limit_s()
        if question.sampling:
            limit_s = self._patience.limit_s()
        return Job(group, False, question.ask(host.actor, group, limit_s), limit_s)

    # -- answers ---------------------------------------------------------------------------------

    def _take_answers(self) -> None:
        asked = [(host, job) for host in self._pool.up for job in host.jobs]
        if not asked:
            self._wait_for_anybody()
            return
        self._nobody_since = None
        references = [job.reference for _, job in asked]
        # All at once where nothing happens; what came is looked at after each tick.
        ready, _ = ray.wait(references, num_returns=len(references), timeout=_TICK_S)
        arrived = set(ready)
        for host, job in asked:
            if job.reference in arrived and job in host.jobs:
                self._take(host, job)

    def _take(self, host: RunnerActor, job: Job) -> None:
        try:
            answer = ray.get(job.reference)
        except RayTaskError as error:
            # What was raised, and not a class that Ray makes of it: that one's text differs from time
            # to time, so that a failure that comes back would not be recognised.
            raise (error.cause if isinstance(error.cause, Exception) else error) from error
        except _LOST as error:
            died = f"died ({why_it_died(error)})"
            # Ray may say of a call to an actor that has just come back that it was restarted
            # meanwhile, when it learns late of the restart that brought it back.
            late_news = isinstance(error, ActorUnavailableError) and not host.proven
            self._lose(host, died, died, _MAX_LOSSES_IN_A_ROW, news=not late_news)
            return
        host.jobs.remove(job)
        host.since, host.proven = time.monotonic(), True
        if job.adopts:
            self._question.group_loaded(job.group, answer)
            host.holds.add(job.group)
        if not job.adopts or self._question.ask is None:
            self._close(job.group, host)
            self.answers[job.group] = answer

    def _close(self, group: int, host: RunnerActor) -> None:
        self._open.discard(group)
        for loss in [each for each in self._losses if group in each.waiting]:
            loss.waiting.discard(group)
            loss.by.add(host.index)
            if not loss.waiting:
                self._losses.remove(loss)
                self._tell_recovered(loss)

    # -- losses ----------------------------------------------------------------------------------

    def _lose(
        self, host: RunnerActor, said: str, cause: str, bearable: int, *, news: bool = True
    ) -> None:
        """`cause` is what `said` says without what differs from time to time, so that a failure that
        comes back is recognised."""
        first, groups = host.jobs[0].group, {job.group for job in host.jobs}
        self._in_a_row[first] += 1
        self._pool.lose(host, said, sure=news)
        if self._in_a_row[first] >= bearable:
            raise RunnerLost(
                f"The env runner of group {first} was lost {self._in_a_row[first]} times in a row over "
                f"the same {self._question.about or 'call'} and is given up: the last one {cause}. If it "
                "comes again, the environment is the cause: look at its step() and reset()."
            )
        if not news:
            return
        self._last_loss = cause
        if self._may_drop(len(self.dropped) + len(groups)):
            self.dropped |= groups
            self._open -= groups
            self._tell(
                f"{host} {said}. {self._question.about.capitalize()} goes on without {_named(groups)}, "
                "as fault_tolerance.on_env_runner_loss is continue."
            )
            return
        now = time.monotonic()
        self._losses.append(_Loss(str(host), host.index, said, frozenset(groups), set(groups), now))

    def _check_deadline(self, host: RunnerActor) -> None:
        """Look whether an actor has had too long for the first of its calls."""
        job, waited = host.jobs[0], time.monotonic() - host.since
        if job.limit_s is not None and waited > job.limit_s:
            self._end_hanging(host, job, waited)
            return
        told = self._told_of[job.group] + 1
        if self._tell_after_s is not None and waited > told * self._tell_after_s:
            self._told_of[job.group] = told
            self._tell(
                f"{host} has been busy with group {job.group} for {waited:.0f} s and is waited for; is a "
                "step of its environment hanging?"
            )

    def _end_hanging(self, host: RunnerActor, job: Job, waited: float) -> None:
        assert host.where is not None
        word = _ray_actors.take_stall(word_of(host.where.actor_id, job.group))
        said = word or "nowhere that can be seen: it is stopped, cut off, or in native code"
        self._pool.kill(host)
        self._lose(
            host,
            f"hung for {waited:.0f} s over group {job.group} ({said}) and was killed",
            f"hung ({said})",
            _MAX_HANGS_IN_A_ROW,
        )

    def _wait_for_anybody(self) -> None:
        """There is nobody to ask: loudly wait for an actor to come."""
        gone = self._pool.why_none_will_come
        if gone is not None:
            raise RunnerLost(f"No env runner is left, and Ray starts none again: {gone}.")
        now = time.monotonic()
        if self._nobody_since is None:
            self._nobody_since, self._nobody_told = now, False
        waited = now - self._nobody_since
        if waited > _NOBODY_DEADLINE_S:
            raise RunnerLost(
                f"No env runner has come for {_named(self._open)} within {_NOBODY_DEADLINE_S:.0f} s: the "
                f"last one {self._last_loss}. Look whether the cluster has room for one."
            )
        if waited > _NOBODY_TOLD_S and not self._nobody_told:
            self._nobody_told = True
            self._tell(
                f"No env runner is alive for {_named(self._open)}: the last one {self._last_loss}. "
                f"Training stands still until one comes, for at most {_NOBODY_DEADLINE_S:.0f} s."
            )
        self._pool.look(_TICK_S)

    # -- sentences -------------------------------------------------------------------------------

    def _tell_recovered(self, loss: _Loss) -> None:
        by = " and ".join(
            "a new process" if index == loss.index else f"the env runner of group {index}"
            for index in sorted(loss.by)
        )
        groups, one = _named(loss.groups), len(loss.groups) == 1
        what = f"{groups.capitalize()} {'is' if one else 'are'} set up"
        if self._question.sampling:
            what = f"{self._question.about.capitalize()} of {groups} is sampled"
        self._tell(
            f"{loss.host} {loss.said}. {what} again from {'its' if one else 'their'} last state by {by}; "
            f"{self._question.losing} ({time.monotonic() - loss.began:.1f} s)."
        )


def _named(groups: Collection[int]) -> str:
    return f"group{'s' * (len(groups) > 1)} {', '.join(map(str, sorted(groups)))}"
