"""Where an iteration's time goes, in seconds; the metrics `timers/iteration/*`.

    env_step_s     stepping and resetting environments
    inference_s    the policy's forward passes and the drawing of actions
    sampling_s     the rest of sampling: making episodes, snapshots of the groups
    waiting_s      waiting for env runners that are slower than their mean, and for data on its way
    update_s       the learner, from episodes to new weights
    weights_s      handing weights to the env runners, and checking them
    checkpoint_s   waiting for the checkpoint after the iteration before: the copy of the state, and
                   the commit of an earlier one that had not ended
    tune_s         between this iteration and the one before: Tune, and the driver
    other_s        everything else
    total_s        the sum, from the end of the iteration before to the end of this one

With remote env runners the first three are means over the env groups. RLlib's own sampling does not
measure them separately: all its time is `sampling_s`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

PARTS = (
    "env_step", "inference", "sampling", "waiting", "update", "weights", "checkpoint", "tune"
)  # fmt: skip


class Stopwatch:
    """Seconds since the last `row()`, by part."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began = clock()
        self._spent = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the body's time to a part."""
        began = self._clock()
        try:
            yield
        finally:
            self.add(part, self._clock() - began)

    def add(self, part: str, seconds: float) -> None:
        """Add seconds to a part."""
        self._spent[part] += seconds

    def split_sampling(self, whole: float, groups: Mapping[str, float]) -> None:
        """Add the time of sampling. `groups` holds means over the env groups: `env_step` and
        `inference` where they are known, and `rollout` (a group's whole time)."""
        known = {part: groups.get(part, 0.0) for part in ("env_step", "inference")}
        rollout = min(groups.get("rollout", whole), whole)
        self.add("waiting", whole - rollout)
        self.add("sampling", max(0.0, rollout - sum(known.values())))
        for part, seconds in known.items():
            self.add(part, seconds)

    def row(self) -> dict[str, float]:
        """The metrics; measuring begins anew."""
        now = self._clock()
        total, spent = now - self._began, self._spent
        self._began, self._spent = now, dict.fromkeys(PARTS, 0.0)
        row = {f"{part}_s": seconds for part, seconds in spent.items()}
        return {**row, "other_s": max(0.0, total - sum(spent.values())), "total_s": total}
