"""One call to every env group, repeated until each has answered, whichever actors die meanwhile.

    an actor lives     it gets the calls for all its groups at once and answers one after another
    an actor dies      its unanswered groups wait for whichever comes first: another actor that has
                       nothing left to do, or their own one, restarted by Ray
    an actor hangs     it is killed after a while (see `timeout`), which counts as a death
    none is left       a message is logged, and if none comes for some minutes, an error is raised

A group that an actor does not hold yet is first set up there from its last state, so the answer
does not depend on the actor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from raytrain.cluster.failures import why_it_died
from raytrain.errors import RaytrainError
from raytrain.rollout.runner_pool import PendingCall, RunnerActor, RunnerPool
from raytrain.rollout.timeout import RolloutTimeout, stall_key

_ACTOR_GONE = (RayActorError, NodeDiedError, ObjectLostError, WorkerCrashedError)
_MAX_CONSECUTIVE_DEATHS = 5
_MAX_CONSECUTIVE_HANGS = 3
_NO_RUNNER_MESSAGE_S, _NO_RUNNER_DEADLINE_S = 5.0, 300.0
_AGREEING_S = 60.0
"""So long is an actor waited for that computes as the run does, before others may do its work."""
_TICK_S = 0.25


class RunnerLost(RaytrainError):
    """An env runner died and could not be restarted."""


@dataclass
class _Recovery:
    """A lost actor whose groups have not all answered from elsewhere yet."""

    runner: str
    index: int
    message: str
    groups: frozenset[int]
    unanswered: set[int]
    began: float
    answered_by: set[int] = field(default_factory=set)


@dataclass
class RetryingCall:
    """A call to `groups`. `load` and `ask` return the reference of a remote call. `tell` gets
    messages for the user, and one about a slow call after every `tell_after_s` seconds (None:
    never)."""

    pool: RunnerPool
    groups: Collection[int]
    _: KW_ONLY
    load: Callable[[Any, int], Any]
    """(actor, group): sets the group up in the actor, from its last state."""
    check_loaded: Callable[[int, Any], None]
    """(group, answer of `load`)"""
    ask: Callable[[Any, int, float | None], Any] | None = None
    """(actor, group, seconds that the call may take). None: the groups are only set up."""
    about: str = ""
    """For messages: "iteration 6"."""
    sampling: bool = False
    consequence: str = "nothing is lost"
    """For messages: what the loss of an actor means for the run."""
    timeout: RolloutTimeout
    tell: Callable[[str], None]
    tell_after_s: float | None
    elastic: bool
    """Whether another actor than its own may host a group."""
    may_drop: Callable[[int], bool] = lambda lost: False
    """Whether the answers of so many groups may be missing."""
    on_only_differing: Callable[[], None] = lambda: None
    """Called again and again while the only actors are those that compute differently; it may have
    the pool accept them."""

    def __post_init__(self) -> None:
        self._runtime = self.pool.runtime
        self._unanswered = set(self.groups)
        self._consecutive_failures: Counter[int] = Counter()
        self._slow_messages: Counter[int] = Counter()
        self._recoveries: list[_Recovery] = []
        self._no_runner_since: float | None = None
        self._no_runner_told = False
        self._last_failure = "did not start"
        self.answers: dict[int, Any] = {}
        self.dropped: set[int] = set()

    def run(self) -> dict[int, Any]:
        """The answers by group, in the order of the groups; without those of `dropped`.

        Raises:
            RunnerLost: actors die or hang again and again, or none comes back.
            Exception: whatever a call raised in an actor.
        """
        for runner in self.pool.up:
            runner.calls.clear()  # Left over if an earlier call was interrupted.
        while self._unanswered:
            self._send()
            self._take_answers()
            self.pool.refresh()
            for runner in self.pool.up:
                if runner.calls:
                    self._check_deadline(runner)
        return dict(sorted(self.answers.items()))

    # -- calls -----------------------------------------------------------------------------------

    def _send(self) -> None:
        sent = {pending.group for runner in self.pool.up for pending in runner.calls}
        for group in sorted(self._unanswered - sent):
            runner = self._runner_for(group)
            if runner is None:
                continue
            if not runner.calls:
                runner.busy_since = self._runtime.now()
            runner.calls.append(self._send_to(runner, group))

    def _runner_for(self, group: int) -> RunnerActor | None:
        runner = self.pool.runner_of(group)
        if runner is not None or not self.elastic:
            return runner
        idle = [runner for runner in self.pool.up if not runner.calls]
        if not idle:
            return None
        runner = min(idle, key=lambda candidate: (len(candidate.loaded), candidate.index))
        self.pool.assigned[group] = runner.index
        return runner

    def _send_to(self, runner: RunnerActor, group: int) -> PendingCall:
        limit_s = self.timeout.set_up_limit_s()
        if group not in runner.loaded or self.ask is None:
            return PendingCall(group, True, self.load(runner.actor, group), limit_s)
        if self.sampling:
            limit_s = self.timeout.limit_s()
        return PendingCall(group, False, self.ask(runner.actor, group, limit_s), limit_s)

    # -- answers ---------------------------------------------------------------------------------

    def _take_answers(self) -> None:
        sent = [(runner, pending) for runner in self.pool.up for pending in runner.calls]
        if not sent:
            self._wait_for_runner()
            return
        self._no_runner_since = None
        references = [pending.reference for _, pending in sent]
        # One wait for all answers if nothing happens; after each tick the present ones are taken.
        ready, _ = self._runtime.wait(references, num_returns=len(references), timeout=_TICK_S)
        arrived = set(ready)
        for runner, pending in sent:
            if pending.reference in arrived and pending in runner.calls:
                self._take(runner, pending)

    def _take(self, runner: RunnerActor, pending: PendingCall) -> None:
        try:
            answer = self._runtime.get(pending.reference)
        except RayTaskError as error:
            # The error itself, not the class that Ray derives from it: that one's text has process
            # ids in it, so an error that comes again would not be recognised.
            raise (error.cause if isinstance(error.cause, Exception) else error) from error
        except _ACTOR_GONE as error:
            message = f"died ({why_it_died(error)})"
            # Ray may learn late of a restart and then report a call to the restarted actor as lost.
            late_news = isinstance(error, ActorUnavailableError) and not runner.has_answered
            self._on_failure(
                runner, message, message, _MAX_CONSECUTIVE_DEATHS, confirmed=not late_news
            )
            return
        runner.calls.remove(pending)
        runner.busy_since, runner.has_answered = self._runtime.now(), True
        if pending.loads:
            self.check_loaded(pending.group, answer)
            runner.loaded.add(pending.group)
        if not pending.loads or self.ask is None:
            self._finish(pending.group, runner)
            self.answers[pending.group] = answer

    def _finish(self, group: int, runner: RunnerActor) -> None:
        self._unanswered.discard(group)
        for recovery in [entry for entry in self._recoveries if group in entry.unanswered]:
            recovery.unanswered.discard(group)
            recovery.answered_by.add(runner.index)
            if not recovery.unanswered:
                self._recoveries.remove(recovery)
                self._tell_recovered(recovery)

    # -- failures --------------------------------------------------------------------------------

    def _on_failure(
        self, runner: RunnerActor, message: str, cause: str, allowed: int, *, confirmed: bool = True
    ) -> None:
        """`cause` is `message` without times and other details that differ between repetitions, so
        that a failure that comes again is recognised."""
        first, groups = runner.calls[0].group, {pending.group for pending in runner.calls}
        self._consecutive_failures[first] += 1
        self.pool.mark_lost(runner, message, confirmed=confirmed)
        if self._consecutive_failures[first] >= allowed:
            raise RunnerLost(
                f"The env runner of group {first} was lost {self._consecutive_failures[first]} "
                f"times in a row in {self.about or 'the same call'} and is given up: the last "
                f"one {cause}. If this happens again, check the environment's step() and reset()."
            )
        if not confirmed:
            return
        self._last_failure = cause
        if self.may_drop(len(self.dropped) + len(groups)):
            self.dropped |= groups
            self._unanswered -= groups
            self.tell(
                f"{runner} {message}. {self.about.capitalize()} continues without "
                f"{_named(groups)} (fault_tolerance.on_env_runner_loss is continue)."
            )
            return
        lost, now = frozenset(groups), self._runtime.now()
        self._recoveries.append(_Recovery(str(runner), runner.index, message, lost, groups, now))

    def _check_deadline(self, runner: RunnerActor) -> None:
        """Kill an actor that has worked too long on its first call."""
        pending, waited = runner.calls[0], self._runtime.now() - runner.busy_since
        if pending.limit_s is not None and waited > pending.limit_s:
            self._end_hanging(runner, pending, waited)
            return
        count = self._slow_messages[pending.group] + 1
        if self.tell_after_s is not None and waited > count * self.tell_after_s:
            self._slow_messages[pending.group] = count
            self.tell(
                f"{runner} has been busy with group {pending.group} for {waited:.0f} s. Training "
                "waits for it; a step of its environment may be hanging."
            )

    def _end_hanging(self, runner: RunnerActor, pending: PendingCall, waited: float) -> None:
        assert runner.process is not None
        report = self._runtime.take_stall_report(stall_key(runner.process.actor_id, pending.group))
        place = report or "position unknown: it is stopped, cut off, or in native code"
        self._runtime.kill(runner.actor, no_restart=False)
        message = f"hung for {waited:.0f} s in group {pending.group} ({place}) and was killed"
        self._on_failure(runner, message, f"hung ({place})", _MAX_CONSECUTIVE_HANGS)

    def _wait_for_runner(self) -> None:
        """No actor can be called: wait for one to start."""
        gone = self.pool.why_empty
        if gone is not None:
            raise RunnerLost(f"No env runner is left, and Ray restarts none: {gone}.")
        now = self._runtime.now()
        if self._no_runner_since is None:
            self._no_runner_since, self._no_runner_told = now, False
        waited = now - self._no_runner_since
        if self.pool.differing and (self.pool.only_differing or waited > _AGREEING_S):
            self.on_only_differing()
            self.pool.refresh(_TICK_S)
            return
        if waited > _NO_RUNNER_DEADLINE_S:
            raise RunnerLost(
                f"No env runner started for {_named(self._unanswered)} within "
                f"{_NO_RUNNER_DEADLINE_S:.0f} s; the last one {self._last_failure}. Check whether "
                "the cluster has room for one."
            )
        if waited > _NO_RUNNER_MESSAGE_S and not self._no_runner_told:
            self._no_runner_told = True
            self.tell(
                f"No env runner is alive for {_named(self._unanswered)}: the last one "
                f"{self._last_failure}. Training waits for a new one, for at most "
                f"{_NO_RUNNER_DEADLINE_S:.0f} s."
            )
        self.pool.refresh(_TICK_S)

    def _tell_recovered(self, recovery: _Recovery) -> None:
        by = " and ".join(
            "a new process" if index == recovery.index else f"the env runner of group {index}"
            for index in sorted(recovery.answered_by)
        )
        groups, one = _named(recovery.groups), len(recovery.groups) == 1
        seconds = self._runtime.now() - recovery.began
        what = f"{groups.capitalize()} {'is' if one else 'are'} set up"
        if self.sampling:
            what = f"{self.about.capitalize()} of {groups} is sampled"
        self.tell(
            f"{recovery.runner} {recovery.message}. {what} again from {'its' if one else 'their'} "
            f"last state by {by}; {self.consequence} ({seconds:.1f} s)."
        )


def _named(groups: Collection[int]) -> str:
    return f"group{'s' * (len(groups) > 1)} {', '.join(map(str, sorted(groups)))}"
