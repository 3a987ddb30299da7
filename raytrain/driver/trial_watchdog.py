"""Trials of which nothing is heard any more.

A trial looks after the hangs of its own parts (`trial.watchdog`). When its process itself stands
still (stopped, or stuck in native code), only the driver can notice: no result for twice as long as
the trial would have borne by itself. Its process is then killed, and Tune starts the trial again.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import ray

from raytrain import _ray
from raytrain.cluster.nodes import address_of

_PATIENCE = 2.0
_FIRST_FACTOR = 10.0
_REMEMBERED = 31


class TrialWatchdog:
    """`factor` and `floor_s`: see `fault_tolerance.hang_factor` and `hang_floor_s`."""

    def __init__(
        self, factor: float, floor_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._factor = factor
        self._floor_s = floor_s
        self._clock = clock
        self._heard: dict[str, float] = {}
        self._gaps: dict[str, deque[float]] = {}

    def started(self, trial: str) -> None:
        self._heard[trial] = self._clock()
        self._gaps[trial] = deque(maxlen=_REMEMBERED)

    def heard(self, trial: str) -> None:
        """A result came."""
        now = self._clock()
        self._gaps[trial].append(now - self._heard[trial])
        self._heard[trial] = now

    def look(self, trials: list[Any]) -> dict[str, str]:
        """Kill what stands still; a sentence for each such trial."""
        return {
            str(trial): self._kill(trial)
            for trial in trials
            if trial.status == "RUNNING" and self.silence(str(trial)) > self._limit(str(trial))
        }

    def silence(self, trial: str) -> float:
        """Seconds since something was heard of the trial."""
        return self._clock() - self._heard.get(trial, self._clock())

    def _limit(self, trial: str) -> float:
        # The first gap holds the start, of which the others say nothing.
        gaps = list(self._gaps.get(trial, ()))[1:]
        if not gaps:
            return _PATIENCE * _FIRST_FACTOR * self._floor_s
        return _PATIENCE * max(self._floor_s, self._factor * statistics.median(gaps))

    def _kill(self, trial: Any) -> str:
        silence = self.silence(str(trial))
        self._heard[str(trial)] = self._clock()
        actor = _ray.tune.trial_actor(trial)
        where = "an unknown node"
        if actor is not None:
            node = _ray.cluster.actor_node(_ray.cluster.actor_id(actor))
            where = f"node {address_of(node)}" if node else where
            ray.kill(actor)
        return f"nothing was heard of the trial's process ({where}) for {silence:.0f} s, so it was killed"
