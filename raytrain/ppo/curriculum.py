"""Where a trial stands in its curriculum.

    iteration k ends    observe(k) ─> does the stage end here?  ─>  ended, said in result and state
    state k is saved    with the stage that ended, before anything of the next one
    iteration k + 1     next_stage() ─> the algorithm takes over the stage's settings (see
                        `ExactPPO.enter_stage`), and episodes begin anew

A resume from state k finds `ended` in it and goes on in the same way, so a kill at a boundary changes
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
        self._ended: str | None = None

    @property
    def stage(self) -> StagePlan:
        """The present stage."""
        return self._plans[self._index]

    @property
    def ended(self) -> str | None:
        """What ended the present stage, as `name value`; None if it goes on."""
        return self._ended

    @property
    def over(self) -> bool:
        """Whether the last stage has ended."""
        return self._ended is not None and self._index + 1 == len(self._plans)

    def begin(self, now: Progress) -> StagePlan:
        """Begin with the first stage."""
        self._index, self._begun, self._ended = 0, now, None
        return self.stage

    def observe(
        self, now: Progress, result: Mapping[str, Any], recent: RecentEpisodes
    ) -> dict[str, Any]:
        """Decide whether the stage ends with the iteration that led to `now`. Returns what its result
        says of the curriculum; `ended` is 0 or 1."""
        since = Progress(
            now.iteration - self._begun.iteration,
            now.timesteps - self._begun.timesteps,
            now.episodes - self._begun.episodes,
            now.time_s - self._begun.time_s,
        )
        self._ended = self.stage.rule.reached(since, result, recent)
        return {
            "stage": self._index + 1,
            "stages": len(self._plans),
            "timesteps": since.timesteps,
            "ended": int(self._ended is not None),
        }

    def next_stage(self, now: Progress) -> StagePlan | None:
        """Begin the next stage if the present one has ended and is not the last."""
        if self._ended is None or self.over:
            return None
        self._index, self._begun, self._ended = self._index + 1, now, None
        return self.stage

    def to_state(self) -> dict[str, Any]:
        """As JSON types."""
        return {"stage": self.stage.name, "begun": asdict(self._begun), "ended": self._ended}

    def knows(self, state: Mapping[str, Any] | None) -> bool:
        """Whether there is a stage of the name that `to_state` gave."""
        return state is not None and any(plan.name == state["stage"] for plan in self._plans)

    def load(self, state: Mapping[str, Any] | None) -> bool:
        """Take up what `to_state` returned. False: there is no stage of that name here."""
        if state is None or not self.knows(state):
            return False
        names = [plan.name for plan in self._plans]
        self._index = names.index(state["stage"])
        self._begun = Progress(**state["begun"])
        self._ended = state["ended"]
        return True


def is_over(config: ExperimentConfig, metrics: Mapping[str, Any]) -> bool:
    """Whether a result is that of the end of the last stage of `config`."""
    said = metrics.get("curriculum")
    if not config.curriculum or not isinstance(said, Mapping):
        return False
    return bool(said.get("ended")) and metrics.get("stage") == config.curriculum[-1].name


def recent_size(config: ExperimentConfig) -> int:
    """How many finished episodes have to be kept for every window in a config."""
    windows = [stage.until.window for stage in config.curriculum]
    return max(REPORTED, config.stop.window or 0, config.checkpoint.score_window or 0, *windows, 0)


REPORTED = EPISODE_WINDOW
"""Episodes of the averages that every result reports under `recent`."""
