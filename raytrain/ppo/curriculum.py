"""The stages of a trial's curriculum, and the present one.

    iteration k ends    observe(k): does the stage end here?  `ended` goes into result and state
    state k is saved    with the stage that ended, before anything of the next one
    iteration k + 1     next_stage(): the algorithm applies the stage's settings (see
                        `ExactPPO.enter_stage`), and episodes begin anew

A resume from state k finds `ended` in it and enters the next stage in the same way, so a kill at a
boundary changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

from raytrain.config import ExperimentConfig
from raytrain.config.fields import EPISODE_WINDOW
from raytrain.ppo.stopping import Progress, StopRule
from raytrain.records.recent_episodes import RecentEpisodes


@dataclass(frozen=True)
class StagePlan:
    """One stage: when it ends, its `AlgorithmConfig`, and how its environments are snapshotted."""

    name: str
    rule: StopRule
    config: Any
    strategy: str


class Curriculum:
    """The stages of a trial and the present one; `plans` has one at least."""

    def __init__(self, plans: Sequence[StagePlan]) -> None:
        self._plans = tuple(plans)
        self._index = 0
        self._begun = Progress(0, 0, 0, 0.0)
        self.ended: str | None = None
        """What ended the present stage, as `name value`; None if it has not ended."""

    @property
    def stage(self) -> StagePlan:
        """The present stage."""
        return self._plans[self._index]

    @property
    def over(self) -> bool:
        """Whether the last stage has ended."""
        return self.ended is not None and self._index + 1 == len(self._plans)

    def begin(self, now: Progress) -> None:
        """Begin with the first stage."""
        self._index, self._begun, self.ended = 0, now, None

    def observe(
        self, now: Progress, result: Mapping[str, Any], recent: RecentEpisodes
    ) -> dict[str, Any]:
        """Decide whether the stage ends with the iteration that led to `now`. Returns the entry
        `curriculum` of the iteration's result; `ended` is 0 or 1."""
        since = Progress(*(a - b for a, b in zip(astuple(now), astuple(self._begun), strict=True)))
        self.ended = self.stage.rule.reached(since, result, recent)
        return {
            "stage": self._index + 1,
            "stages": len(self._plans),
            "timesteps": since.timesteps,
            "ended": int(self.ended is not None),
        }

    def next_stage(self, now: Progress) -> StagePlan | None:
        """Begin the next stage if the present one has ended and is not the last."""
        if self.ended is None or self.over:
            return None
        self._index, self._begun, self.ended = self._index + 1, now, None
        return self.stage

    def to_state(self) -> dict[str, Any]:
        """As JSON types."""
        return {"stage": self.stage.name, "begun": asdict(self._begun), "ended": self.ended}

    def knows(self, state: Mapping[str, Any] | None) -> bool:
        """Whether the stage of a saved state is one of these, by its name."""
        return state is not None and any(plan.name == state["stage"] for plan in self._plans)

    def load(self, state: Mapping[str, Any] | None) -> bool:
        """Restore what `to_state` returned. False: no stage here has that name."""
        if state is None or not self.knows(state):
            return False
        self._index = [plan.name for plan in self._plans].index(state["stage"])
        self._begun = Progress(**state["begun"])
        self.ended = state["ended"]
        return True


def is_over(config: ExperimentConfig, metrics: Mapping[str, Any]) -> bool:
    """Whether a result is the last one of the last stage of `config`."""
    entry = metrics.get("curriculum")
    if not config.curriculum or not isinstance(entry, Mapping):
        return False
    return bool(entry.get("ended")) and metrics.get("stage") == config.curriculum[-1].name


def recent_size(config: ExperimentConfig) -> int:
    """The number of finished episodes that the windows of a config need."""
    windows = [stage.until.window for stage in config.curriculum]
    return max(REPORTED, config.stop.window or 0, config.checkpoint.score_window or 0, *windows, 0)


REPORTED = EPISODE_WINDOW
"""Episodes of the averages that every result reports under `recent`."""
