"""RLlib's PPO in stages: the same algorithm, learners and env runners under one config after another.

What a stage changes is changed in the processes that are there (see `curriculum` for when):

    algorithm       its config, and that of evaluation
    learners        config, learning rate, entropy and KL coefficients, gradient clipping
    env runners     config, environments (made anew, episodes begin anew), how they are snapshotted
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPO
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    EVALUATION_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES_LIFETIME,
)

from raytrain.errors import RaytrainError
from raytrain.ppo.curriculum import REPORTED, Curriculum, StagePlan
from raytrain.ppo.learner_group import Learners
from raytrain.ppo.rllib_checkpoint import RLlibFiles
from raytrain.ppo.stopping import Progress, StopRule
from raytrain.records.recent_episodes import RecentEpisodes, summarised
from raytrain.rollout.collector import RolloutCollector
from raytrain.rollout.env_runner import RunnerSettings
from raytrain.rollout.env_snapshots import Strategy


class StateMismatch(RaytrainError):
    """A saved state does not fit this run, or did not survive being restored."""


class StagedPPO(PPO):
    """`strategy` says how environments are snapshotted. With `stages` the algorithm goes through them,
    and they say which config and strategy hold; `recent` is the number of finished episodes that are
    remembered for averages."""

    _groups: RolloutCollector
    _eval_groups: RolloutCollector | None
    _learners: Learners
    _rllib_files: RLlibFiles

    def __init__(
        self,
        config: AlgorithmConfig | None = None,
        *,
        strategy: str = "reset",
        stages: Sequence[StagePlan] = (),
        recent: int = REPORTED,
        **kwargs: Any,
    ) -> None:
        # Without a curriculum there is one stage without an end.
        first = StagePlan("", StopRule(), config, strategy)
        self.curriculum = Curriculum(stages or [first])
        self._has_stages = bool(stages)
        self.strategy = self.curriculum.stage.strategy
        self.recent = RecentEpisodes(recent)
        super().__init__(self.curriculum.stage.config, **kwargs)

    @property
    def env_steps_sampled(self) -> int:
        """Environment steps sampled over the run's life."""
        key = (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME)
        return int(self.metrics.peek(key, default=0))

    @property
    def episodes_finished(self) -> int:
        """Episodes finished over the run's life."""
        return int(self.metrics.peek((ENV_RUNNER_RESULTS, NUM_EPISODES_LIFETIME), default=0))

    def progress(self, iteration: int) -> Progress:
        """The counters at the end of `iteration`; the time is the trial's to know."""
        return Progress(iteration, self.env_steps_sampled, self.episodes_finished, 0.0)

    def enter_stage(self, plan: StagePlan) -> None:
        """Take over a stage's settings in this process, the learners and the env runners, which are
        not started again. Episodes begin anew; weights, optimizer, filters and counters stay."""
        before: Any = self.config
        self.config: Any = _frozen(plan.config)
        self.strategy = plan.strategy
        self.evaluation_config = self.config.get_evaluation_config_object()
        self.evaluation_config.validate()
        self.evaluation_config.freeze()
        self._rllib_files = RLlibFiles(self)  # Which names the config that the state belongs to.
        kl_coeff = self.config.kl_coeff
        changed = kl_coeff if kl_coeff != before.kl_coeff else None
        self._learners.use_settings(self.config, self.env_steps_sampled, changed)
        for groups, config in (
            (self._groups, self.config),
            (self._eval_groups, self.evaluation_config),
        ):
            if groups is not None:
                settings = RunnerSettings(plan.name, config, cast(Strategy, plan.strategy))
                groups.use_settings(settings, iteration=self.iteration)
        self.recent.clear()

    def enter_next_stage(self) -> None:
        """Begin the next stage if the present one has ended."""
        plan = self.curriculum.next_stage(self.progress(self.iteration))
        if plan is not None:
            self.enter_stage(plan)

    def curriculum_state(self) -> dict[str, Any] | None:
        """As JSON types; None without stages."""
        return self.curriculum.to_state() if self._has_stages else None

    def take_up_stage(self, saved: dict[str, Any] | None, *, fork: bool) -> None:
        """Be in the stage of a saved state, before the rest of it is loaded. Raises StateMismatch."""
        if not self._has_stages:
            return
        # A fork from another curriculum, or from none, begins with its own first stage.
        present = self.curriculum.stage.name
        if self.curriculum.load(saved):
            if self.curriculum.stage.name != present:
                self.enter_stage(self.curriculum.stage)
        elif not fork:
            name = saved["stage"] if saved else "none"
            raise StateMismatch(
                f"the checkpoint was saved in the stage {name!r}, which is not in `curriculum`. Put "
                "the stage back; or fork the run (--from CHECKPOINT --name NEW)."
            )

    def report_episodes(self, result: dict[str, Any], ended: list[dict[str, Any]]) -> None:
        """Add what finished episodes come to: the environment's own metrics, averages over the last
        episodes, and the stage."""
        result.update({"custom": own} if (own := summarised(ended)) else {})
        result["recent"] = self.recent.means(REPORTED)
        self._report_evaluation(result)
        if self._has_stages:
            now = self.progress(self.iteration + 1)
            result["stage"] = self.curriculum.stage.name
            result["curriculum"] = self.curriculum.observe(now, result, self.recent)

    def _report_evaluation(self, result: dict[str, Any]) -> None:
        evaluation, interval = result.get(EVALUATION_RESULTS), self.config.evaluation_interval
        if self._eval_groups is None or not evaluation:
            return
        if not interval or (self.iteration + 1) % interval:
            # RLlib (2.60) repeats the last evaluation in the results of later iterations. A score of
            # other weights is none of this iteration's.
            del result[EVALUATION_RESULTS]
            return
        own = summarised(self._eval_groups.take_finished())
        evaluation.update({"custom": own} if own else {})


def _frozen(config: AlgorithmConfig) -> AlgorithmConfig:
    """A copy as RLlib holds it: validated, and frozen."""
    config = config.copy(copy_frozen=False)
    config.validate()
    config.freeze()
    return config
