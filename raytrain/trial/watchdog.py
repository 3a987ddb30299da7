"""A thread of the trial's process that watches for hangs and for nodes that are about to end.

**Hangs.** The trial reports in which phase of an iteration it is (`start`, `sample`, `update`,
`weights`, `save`). A phase is overdue when it takes `hang_factor` times its running median, and at
least `hang_floor_s`; the first run of a phase, which also imports and compiles, may take ten times
the floor. Learners wait for each other in collectives, without a limit if a peer is gone, so a dead
learner is looked for earlier: a second into a phase, each remote process is asked for a sign of
life. A busy process answers after its work; the call to a dead one fails at once.

**Nodes that are about to end.** Ray reports which nodes are draining, and when they end. If a
process of the trial is on one, the trial leaves after its present iteration. If that may take
longer than the node has, the state after the last iteration is committed from here, and the process
ends, so no finished iteration is lost.

    overdue / peer died ─> verdict ─> remote processes are killed
                                        ├─> the trial's own call fails, and it raises the verdict
                                        └─> still stuck: `last_words.json` is written, SIGKILL
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from raytrain import _ray
from raytrain.cluster.adaptive_timeout import AdaptiveTimeout
from raytrain.cluster.nodes import (
    Hung,
    NodeLost,
    NodePreempted,
    PeerDied,
    address_of,
    loss_of_actor,
    node_is_gone,
)
from raytrain.errors import RaytrainError
from raytrain.storage import Location

LAST_WORDS = "last_words.json"
"""Why a trial ended its process: {"attempt", "loss", "message"}. The driver deletes the file."""

_LOOK_EVERY_S = 0.5
_ASK_AFTER_S = 1.0
_PEERS_PATIENCE_S = 2.0
_STUCK_S = 10.0
_ANSWER_S = 5.0

Actors = Mapping[str, Any]


@dataclass(frozen=True)
class Leaving:
    """A node with a part of the trial ends at `deadline`, by the watchdog's clock.

    `deadline` is infinite if the end is not known.
    """

    address: str
    deadline: float


@dataclass
class _Phase:
    name: str
    began: float
    asked: dict[Any, str] | None = None  # see `_ask`
    dead_since: float | None = None


class Watchdog:
    """`actors` returns the trial's present remote processes by their names (`learner 1`).

    `timeout` makes the limit of a phase, which then learns from how long the phase takes.
    `save_kept` commits the state after the last iteration, if it is in memory.
    """

    def __init__(
        self,
        place: Location,
        timeout: Callable[[], AdaptiveTimeout],
        *,
        actors: Callable[[], Actors],
        save_kept: Callable[[], str | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.attempt = 0
        self.verdict: RaytrainError | None = None
        self.leaving: Leaving | None = None
        self._place = place
        self._actors = actors
        self._save_kept = save_kept
        self._clock = clock
        self._phase: _Phase | None = None
        self._timeouts: defaultdict[str, AdaptiveTimeout] = defaultdict(timeout)
        self._node = ray.get_runtime_context().get_node_id()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="raytrain-watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._ended.set()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The body is a phase of that name, unless it is part of another phase."""
        if self._phase is not None:
            yield
            return
        began = self._clock()
        self._phase = _Phase(name, began)
        try:
            yield
        finally:
            self._phase = None
        # Not one that failed: it was cut short.
        self._timeouts[name].add(self._clock() - began)

    def usual(self, name: str) -> float | None:
        """The running median of a phase in seconds; None before its first end."""
        return self._timeouts[name].usual_s

    def explain(self, error: Exception) -> Exception:
        """`error`, or what is behind it: a learner that lost its peer in the middle of a collective
        reports a broken connection, and the peer's death is the cause."""
        if self.verdict is not None:
            return self.verdict
        # What Ray or Torch may report when another process has failed.
        if not isinstance(error, RayError | RuntimeError | ConnectionError):
            return error
        actors = dict(self._actors())
        for who, actor in actors.items():
            node = _ray.cluster.actor_node(actor)
            if node is not None and node != self._node and node_is_gone(node):
                return NodeLost(f"the node {address_of(node)} was lost, and {who} with it")
        asked = _ask(actors)
        deadline = self._clock() + _ANSWER_S
        waiting = list(asked)
        while waiting and self._clock() < deadline:
            done, waiting = ray.wait(waiting, timeout=max(0.0, deadline - self._clock()))
            for reference in done:
                died = _death(reference)
                if died is not None:
                    return _loss(asked[reference], died)
        return error

    # -- the thread ------------------------------------------------------------------------------

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_EVERY_S):
            try:
                self._look_at_nodes()
                phase = self._phase
                if phase is not None and self.verdict is None:
                    verdict = self._dead_peer(phase) or self._overdue(phase)
                    if verdict is not None and self._phase is phase:
                        self._act_on(verdict, phase)
            except RayError:
                continue  # The head does not answer, so nothing is known and nothing is done.

    def _look_at_nodes(self) -> None:
        draining = _ray.cluster.draining_nodes()
        if not draining or self.leaving is not None:
            self._leave_in_time()
            return
        nodes = {self._node, *map(_ray.cluster.actor_node, self._actors().values())}
        for node in sorted(nodes & draining.keys()):
            ends = draining[node]  # Ray's deadline is by the wall clock.
            left = math.inf if ends is None else ends - time.time()
            self.leaving = Leaving(address_of(node), self._clock() + left)

    def _leave_in_time(self) -> None:
        """End this process if the present iteration may end after the node."""
        if self.leaving is None or self._phase is None:
            return
        if self.leaving.deadline - self._clock() > max(3.0, 3 * (self.usual("save") or 1.0)):
            return
        saved = self._save_kept()
        if saved is not None:
            self._end(
                NodePreempted(
                    f"its node {self.leaving.address} is taken away before the iteration ends; "
                    f"{saved}"
                )
            )

    def _dead_peer(self, phase: _Phase) -> RaytrainError | None:
        now = self._clock()
        if now - phase.began < _ASK_AFTER_S:
            return None
        if phase.asked is None:
            phase.asked = _ask(self._actors())
        if not phase.asked:
            return None
        done, _ = ray.wait(list(phase.asked), num_returns=len(phase.asked), timeout=0)
        dead = {phase.asked[ref]: died for ref in done if (died := _death(ref)) is not None}
        learners = {who: died for who, died in dead.items() if who.startswith("learner")}
        if not learners:
            return None  # A lost env runner is restarted by the call to it.
        phase.dead_since = phase.dead_since or now
        if now - phase.dead_since < _PEERS_PATIENCE_S:
            return None  # Its peers may notice it themselves, and the call ends.
        who, died = next(iter(learners.items()))
        return _loss(who, died)

    def _overdue(self, phase: _Phase) -> RaytrainError | None:
        took = self._clock() - phase.began
        if took < self._timeouts[phase.name].limit_s:
            return None
        usual = self.usual(phase.name)
        often = "it never ended before" if usual is None else f"usually {usual:.1f} s"
        return Hung(
            f"the {phase.name} has taken {took:.0f} s ({often}); no sign of life from "
            f"{self._silent(phase)}"
        )

    def _silent(self, phase: _Phase) -> str:
        """The processes that do not answer, and their nodes.

        A busy process does not answer either, so all of them are named.
        """
        waiting: list[str] = []
        if phase.asked:
            done, _ = ray.wait(list(phase.asked), num_returns=len(phase.asked), timeout=0)
            by_name = dict(self._actors())
            for reference, who in phase.asked.items():
                if reference not in done and who in by_name:
                    node = _ray.cluster.actor_node(by_name[who])
                    waiting.append(f"{who} (node {address_of(node) if node else 'unknown'})")
        own = f"the trial's process (pid {os.getpid()}, node {address_of(self._node)})"
        return ", ".join(waiting) or own

    def _act_on(self, verdict: RaytrainError, phase: _Phase) -> None:
        self.verdict = verdict
        for actor in self._actors().values():
            ray.kill(actor)
        deadline = self._clock() + _STUCK_S
        while self._clock() < deadline:
            if self._phase is not phase:
                return
            time.sleep(0.05)
        self._end(verdict)

    def _end(self, why: RaytrainError) -> None:
        words = {
            "attempt": self.attempt,
            "loss": getattr(why, "loss", "failure"),
            "message": str(why),
        }
        try:
            self._place.write_atomic(LAST_WORDS, json.dumps(words).encode())
        finally:
            os.kill(os.getpid(), signal.SIGKILL)


def _ask(actors: Actors) -> dict[Any, str]:
    """Ask each process for a sign of life. The name of each, by the reference of its answer."""
    return {actor.__ray_ready__.remote(): name for name, actor in actors.items()}


def _death(reference: Any) -> RayActorError | None:
    """The error of a reference that is ready, if its actor died."""
    try:
        ray.get(reference, timeout=1)
    except RayActorError as error:
        return error
    except RayError:
        return None
    return None


def _loss(who: str, died: RayActorError) -> RaytrainError:
    loss, address = ("failure", None)
    if died.actor_id:
        loss, address = loss_of_actor(died.actor_id, preempted=died.preempted)
    if loss == "lost_node":
        return NodeLost(f"the node {address} was lost, and {who} with it")
    if loss == "preemption":
        return NodePreempted(f"the node {address} was taken away, and {who} with it")
    node = _ray.cluster.actor_node(died.actor_id) if died.actor_id else None
    where = f" (node {address_of(node)})" if node else ""
    return PeerDied(f"{who}{where} died: it was killed or crashed")
