"""The data that sampling returns: of one group (`Rollout`), of all groups in
an iteration (`Collected`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED


@dataclass(frozen=True)
class Rollout:
    """The result of one `EnvGroup.rollout()`."""

    episodes: list[Any]
    """Episode chunks, in order: first the finished ones, then the running ones."""
    metrics: dict[str, Any]
    """Reduced RLlib stats, to aggregate in group order."""
    finished: list[dict[str, Any]]
    """A row for each episode that ended (see `episode_rows`)."""
    connectors: dict[str, Any]
    """State of the connector pipelines after the rollout, to merge in group order."""
    snapshot: bytes | None
    """The group's state after the rollout, if it was asked for."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock: `rollout`, and of that `env_step` and `inference` where they are measured."""

    @property
    def env_steps(self) -> int:
        """Environment steps. (RLlib counts NaN for a rollout without a step.)"""
        steps = float(self.metrics.get(NUM_ENV_STEPS_SAMPLED, 0))
        return 0 if math.isnan(steps) else int(steps)


@dataclass
class Collected:
    """The data of one iteration, merged in group order."""

    episodes: list[Any] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    finished: list[dict[str, Any]] = field(default_factory=list)
    env_steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Means over the groups of `Rollout.seconds`."""

    def add(self, rollouts: Sequence[Rollout]) -> int:
        """Add one rollout of each group. Returns the number of their environment steps."""
        steps = sum(rollout.env_steps for rollout in rollouts)
        self.env_steps += steps
        for rollout in rollouts:
            self.episodes.extend(rollout.episodes)
            self.metrics.append(rollout.metrics)
            self.finished.extend(rollout.finished)
            for part, seconds in rollout.seconds.items():
                self.seconds[part] = self.seconds.get(part, 0.0) + seconds / len(rollouts)
        return steps
