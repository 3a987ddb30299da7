"""Trials that stopped reporting.

A trial watches the hangs of its own parts (`trial.watchdog`). If its process itself stands still
(stopped, or stuck in native code), only the driver can notice: no result for twice as long as the
trial would have waited itself. Its process is then killed, and Tune starts the trial again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from raytrain import _ray
from raytrain.cluster.adaptive_timeout import AdaptiveTimeout
from raytrain.cluster.nodes import address_of

_PATIENCE = 2.0
_REMEMBERED = 30


class TrialWatchdog:
    """`factor` and `floor_s`: see `fault_tolerance.hang_factor` and `hang_floor_s`."""

    def __init__(
        self, factor: float, floor_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._factor = factor
        self._floor_s = floor_s
        self._clock = clock
        self._reported: dict[str, float] = {}
        self._timeouts: dict[str, AdaptiveTimeout] = {}
        self._starting: set[str] = set()

    def started(self, trial: str) -> None:
        self._reported[trial] = self._clock()
        self._timeouts[trial] = AdaptiveTimeout(self._factor, self._floor_s, window=_REMEMBERED)
        self._starting.add(trial)

    def reported(self, trial: str) -> None:
        """The trial reported a result."""
        if trial in self._starting:  # The first gap includes the start.
            self._starting.remove(trial)
        else:
            self._timeouts[trial].add(self.silence(trial))
        self._reported[trial] = self._clock()

    def look(self, trials: list[Any]) -> dict[str, str]:
        """Kill the processes that stopped reporting. Returns a message for each such trial."""
        return {
            str(trial): self._kill(trial)
            for trial in trials
            if trial.status == "RUNNING" and self._is_overdue(str(trial))
        }

    def silence(self, trial: str) -> float:
        """Seconds since the trial's start or last result."""
        return self._clock() - self._reported.get(trial, self._clock())

    def _is_overdue(self, trial: str) -> bool:
        timeout = self._timeouts.get(trial)
        return timeout is not None and self.silence(trial) > _PATIENCE * timeout.limit_s

    def _kill(self, trial: Any) -> str:
        silence = self.silence(str(trial))
        self._reported[str(trial)] = self._clock()
        actor = _ray.tune.trial_actor(trial)
        where = "an unknown node"
        if actor is not None:
            node = _ray.cluster.actor_node(actor)
            where = f"node {address_of(node)}" if node else where
            ray.kill(actor)
        return (
            f"the trial's process ({where}) has not reported for {silence:.0f} s, so it was killed"
        )
