"""RLlib's PPO with exact iterations and a complete state.

`ExactPPO` is RLlib's `PPO` with another env runner, another learner and another way of moving data
between them (see `env_runner`, `learner`, `collector`); loss, connectors, metric names and
checkpoint files are RLlib's. `state` lists what a saved state consists of.

A new stage of the curriculum (see `curriculum`) changes the running processes:

    algorithm       its config, and that of evaluation
    learners        config, learning rate, entropy and KL coefficients, gradient clipping
    env runners     config, environments (made anew, episodes begin anew), snapshot strategy
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

from ray.exceptions import RayActorError
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.utils import force_list
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ALL_MODULES,
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    EPISODE_RETURN_MEAN,
    EVALUATION_RESULTS,
    FAULT_TOLERANCE_STATS,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES,
    NUM_EPISODES_LIFETIME,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)

from raytrain import _ray
from raytrain._ray import actors as _ray_actors
from raytrain.arithmetic.portable import make_portable
from raytrain.arithmetic.settings import THREADS, Role
from raytrain.cluster.failures import why_it_died
from raytrain.config import ExperimentConfig, stage_config, to_algorithm_config
from raytrain.config.run_code import ProcessCode
from raytrain.config.to_rllib import mean_std_filter
from raytrain.errors import RaytrainError
from raytrain.policy.rllib_observations import ObservationConnectors
from raytrain.ppo import state
from raytrain.ppo.curriculum import REPORTED, Curriculum, StagePlan, recent_size
from raytrain.ppo.fork_state import weights_in
from raytrain.ppo.learner import MODULE_ID, ExactPPOTorchLearner
from raytrain.ppo.learner_group import Learners, LearnersDiffer
from raytrain.ppo.rllib_checkpoint import RLlibFiles
from raytrain.ppo.slow_evaluation import reporting_if_slow
from raytrain.ppo.state import Restored, StateMismatch
from raytrain.ppo.stopping import Progress, StopRule
from raytrain.ppo.stopwatch import Stopwatch
from raytrain.records.recent_episodes import RecentEpisodes, summarised
from raytrain.rng import RngStreams
from raytrain.rollout.collector import NoNewEnvSteps, RolloutCollector
from raytrain.rollout.divergence import why_not_finite
from raytrain.rollout.env_group import RunnerSettings
from raytrain.rollout.env_runner import EnvRunnerActor
from raytrain.rollout.env_snapshots import Strategy
from raytrain.rollout.fast_sampling.episode_rows import EpisodeRecorder
from raytrain.rollout.runner_pool import RunnerRules

_LOSSES = ("total_loss", "policy_loss", "vf_loss", "entropy", "mean_kl_loss")


class NonFinite(RaytrainError):
    """A loss or a weight became NaN or infinite."""


def _has_own_network(config: AlgorithmConfig) -> bool:
    """Whether the user's own module or catalog sees observations as RLlib gives them."""
    spec = config.rl_module_spec
    return spec.module_class is not DefaultPPOTorchRLModule or spec.catalog_class is not None


def prepare(config: AlgorithmConfig) -> PPOConfig:
    """Plug the exact env runner, learner and episode recorder into a PPO config (in place), and
    the connectors that encode observations, if network and connectors are RLlib's own."""
    config.env_runners(env_runner_cls=EnvRunnerActor)
    config.learners(learner_class=ExactPPOTorchLearner)
    own = [kind for kind in force_list(config.callbacks_class) if kind is not RLlibCallback]
    config.callbacks(callbacks_class=[*own, EpisodeRecorder])
    connector = _ray.runners.env_to_module_connector(config)
    if connector in (None, mean_std_filter) and not _has_own_network(config):
        normalize = connector is not None
        config.env_runners(env_to_module_connector=ObservationConnectors(normalize=normalize))
    # Ray restarts a dead runner at once; `collector` decides what it does then.
    config.fault_tolerance(restart_failed_env_runners=True, ignore_env_runner_failures=False)
    _ray.runners.set_auto_sync(config, False)
    config.algo_class = ExactPPO
    return config


class ExactPPO(PPO):
    """See the module's docstring.

    `strategy` says how environments are snapshotted. With `stages` the algorithm goes through
    them, and their configs and strategies hold. `recent` is the number of finished episodes that
    averages are taken over. `rules` says how many env runner actors there are and what the loss
    of one means. `code` is what their processes should have imported.
    """

    def __init__(
        self,
        config: AlgorithmConfig | None = None,
        *,
        strategy: str = "reset",
        stages: Sequence[StagePlan] = (),
        recent: int = REPORTED,
        rules: RunnerRules | None = None,
        code: ProcessCode | None = None,
        **kwargs: Any,
    ) -> None:
        # Without a curriculum there is one stage without an end.
        first = StagePlan("", StopRule(), config, strategy)
        self.curriculum = Curriculum(stages or [first])
        self.has_stages = bool(stages)
        self.strategy = self.curriculum.stage.strategy
        self.recent = RecentEpisodes(recent)
        self.rules = rules or RunnerRules()
        self._process_code = code
        super().__init__(self.curriculum.stage.config, **kwargs)

    @override(PPO)
    def setup(self, config: AlgorithmConfig) -> None:
        make_portable()
        reserved, most = self.rules.actors(self.config.num_env_runners)
        with _ray_actors.elastic_runners(reserved=reserved, most=most):
            try:
                super().setup(config)
            except RayActorError as error:
                why = why_it_died(error).removeprefix("it ")
                raise RaytrainError(f"An env runner {why}") from error
        self.finished_episodes: list[dict[str, Any]] = []
        self.stopwatch = Stopwatch()
        self.weights_digest = ""
        self._damaged_weights: list[str] = []
        self._batch: list[Any] = []
        self.rllib_files = RLlibFiles(self)
        self.learners = Learners(self.learner_group)
        self.env_groups = self._make_groups(self.env_runner_group, elastic=True)
        self.eval_env_groups: RolloutCollector | None = None
        if self.eval_env_runner_group:
            self.eval_env_groups = self._make_groups(self.eval_env_runner_group, elastic=False)
        self.start_groups({}, {}, iteration=0)
        self.check_weights()
        for what, reason in (
            ("sampling", self.env_groups.why_not_into_arrays()),
            ("update", self.learners.why_not_fast()),
        ):
            if reason:
                self.tell(f"RLlib's own {what} is used, which is several times slower: {reason}.")

    def arithmetic(self) -> dict[str, tuple[str, Mapping[str, str]]]:
        """The fingerprint of what computes, and its machine: of "learner", "env_runner" and, with
        evaluation, "evaluation_runner"."""
        computed_by = {
            "learner": self.learners.arithmetic(),
            "env_runner": self.env_groups.arithmetic(),
        }
        if self.eval_env_groups is not None:
            computed_by["evaluation_runner"] = self.eval_env_groups.arithmetic()
        return computed_by

    def tell(self, message: str) -> None:
        """Called with a sentence about each failure and recovery inside the algorithm."""

    def tell_now(self, message: str) -> None:
        """As `tell`, about work that is still in progress; called in any thread."""

    def lost_exactness(self, why: str) -> None:
        """Called with the reason in the iteration that ends the run's exactness."""

    @override(PPO)
    def cleanup(self) -> None:
        for name in ("env_groups", "eval_env_groups"):
            groups = getattr(self, name, None)  # Neither is there if `setup` has failed.
            if groups is not None:
                groups.stop()
        super().cleanup()

    def phase(self, name: str) -> AbstractContextManager[None]:
        """A context for each part of an iteration that waits for other processes: `sample`,
        `update`, `weights`, `save`."""
        return nullcontext()

    # -- one iteration ---------------------------------------------------------------------------

    @override(PPO)
    def training_step(self) -> None:
        with (
            self.phase("sample"),
            self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)),
        ):
            began = time.perf_counter()
            collected = self.env_groups.sample(self.config.total_train_batch_size)
            self.stopwatch.split_sampling(time.perf_counter() - began, collected.seconds)
            if recreated := self.env_groups.take_recreated():
                _ray.runners.tell_of_recreated(self, recreated)
            self.metrics.aggregate(collected.metrics, key=ENV_RUNNER_RESULTS)
        self._batch = collected.episodes  # Until the losses are known to be finite.
        self.finished_episodes.extend(collected.finished)
        self.recent.extend(collected.finished)
        steps_sampled = self.env_steps_sampled

        with (
            self.phase("update"),
            self.stopwatch.measure("update"),
            self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)),
        ):
            learner_results = self.learner_group.update(
                episodes=collected.episodes,
                timesteps={
                    NUM_ENV_STEPS_SAMPLED_LIFETIME: steps_sampled,
                    NUM_MODULE_STEPS_TRAINED_LIFETIME: self.metrics.peek(
                        (LEARNER_RESULTS, ALL_MODULES, NUM_MODULE_STEPS_TRAINED_LIFETIME), default=0
                    ),
                },
                num_epochs=self.config.num_epochs,
                minibatch_size=self.config.minibatch_size,
                shuffle_batch_per_epoch=self.config.shuffle_batch_per_epoch,
            )
            self.metrics.aggregate(learner_results, key=LEARNER_RESULTS)

        with (
            self.phase("weights"),
            self.stopwatch.measure("weights"),
            self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)),
        ):
            self.env_groups.publish(
                self._sampler_weights(), steps_sampled, iteration=self.iteration + 1
            )
            self.check_weights()

    @override(PPO)
    def step(self) -> dict[str, Any]:
        began = time.monotonic()
        plan = self.curriculum.next_stage(self.progress(self.iteration))
        if plan is not None:
            self.enter_stage(plan)
        before, known = self.env_steps_sampled, len(self.finished_episodes)
        result: dict[str, Any] = super().step()
        if self.env_steps_sampled <= before:
            raise NoNewEnvSteps(f"Iteration {self.iteration + 1} brought no new environment steps.")
        result["weights_sha256"] = self.weights_digest
        result.setdefault(FAULT_TOLERANCE_STATS, {}).update(self.env_groups.counts)
        result.setdefault(TIMERS, {})["iteration"] = self.stopwatch.row()
        self._report_episodes(result, self.finished_episodes[known:])
        self._warn_of_evaluation(result)
        # Tune's own is a difference of two wall clock times. It adds these up to `time_total_s`.
        result["time_this_iter_s"] = time.monotonic() - began
        return result

    def _warn_of_evaluation(self, result: Mapping[str, Any]) -> None:
        """Report returns that are not finite: they change no weight, so nothing else shows them."""
        metrics = result.get(EVALUATION_RESULTS, {}).get(ENV_RUNNER_RESULTS, {})
        mean = float(metrics.get(EPISODE_RETURN_MEAN, 0.0))
        if not math.isfinite(mean) and metrics.get(NUM_EPISODES):
            self.tell(
                f"The mean return of this evaluation is {mean}: the environment returned a reward "
                "that is NaN or infinite. It is not used as a score."
            )

    @override(PPO)
    def evaluate(self, parallel_train_future: Any = None) -> Any:
        episodes = self.eval_env_groups.present_sampling if self.eval_env_groups else str
        with reporting_if_slow(self.tell_now, episodes):
            return super().evaluate(parallel_train_future)

    @override(PPO)
    def _before_evaluate(self) -> None:
        # RLlib's own push does not wait, and leaves a local evaluation runner without the filters.
        if self.eval_env_groups is not None:
            sync = {**self._sampler_weights(), **self.env_groups.connector_state()}
            self.eval_env_groups.take_over(sync)
            self.eval_env_groups.forget_snapshots()

    @property
    def env_steps_sampled(self) -> int:
        """Environment steps sampled since the run began."""
        return self._lifetime(NUM_ENV_STEPS_SAMPLED_LIFETIME)

    @property
    def episodes_finished(self) -> int:
        """Episodes finished since the run began."""
        return self._lifetime(NUM_EPISODES_LIFETIME)

    def _lifetime(self, counter: str) -> int:
        return int(self.metrics.peek((ENV_RUNNER_RESULTS, counter), default=0))

    def progress(self, iteration: int) -> Progress:
        """The counters at the end of `iteration`; its time is 0, which only the trial knows."""
        return Progress(iteration, self.env_steps_sampled, self.episodes_finished, 0.0)

    def count_from(self, iteration: int) -> None:
        """Set the last iteration; the next one has the number after it."""
        self._iteration = iteration

    @property
    def last_episodes(self) -> list[Any]:
        """The episodes of the last iteration, until `raise_if_not_finite` is called."""
        return self._batch

    def take_finished_episodes(self) -> list[dict[str, Any]]:
        """Rows of the episodes that ended since the last call, in group order."""
        rows, self.finished_episodes = self.finished_episodes, []
        return rows

    def raise_if_not_finite(self, result: Mapping[str, Any]) -> None:
        """Raise `NonFinite` if a loss in `result` or a weight is NaN or infinite."""
        losses = result.get(LEARNER_RESULTS, {}).get(MODULE_ID, {})
        bad = [
            f"learners/{MODULE_ID}/{name} is {float(losses[name])}"
            for name in _LOSSES
            if name in losses and not math.isfinite(float(losses[name]))
        ]
        bad += [f"weight {name} holds NaN or infinity" for name in self._damaged_weights[:3]]
        episodes, self._batch = self._batch, []
        if bad:
            iteration = result.get("training_iteration", self.iteration)
            raise NonFinite(
                f"Training diverged in iteration {iteration}: {'; '.join(bad)}. "
                f"{why_not_finite(episodes)}"
            )

    # -- stages ----------------------------------------------------------------------------------

    def enter_stage(self, plan: StagePlan) -> None:
        """Apply a stage's settings in this process, the learners and the env runners, without a
        restart. Episodes begin anew; weights, optimizer, filters and counters stay."""
        before: Any = self.config
        self.config: Any = _frozen(plan.config)
        self.strategy = plan.strategy
        self.evaluation_config = _frozen(self.config.get_evaluation_config_object())
        self.rllib_files = RLlibFiles(self)  # They hold the config.
        kl_coeff = self.config.kl_coeff if self.config.kl_coeff != before.kl_coeff else None
        self.learners.use_settings(self.config, self.env_steps_sampled, kl_coeff)
        for groups, config in (
            (self.env_groups, self.config),
            (self.eval_env_groups, self.evaluation_config),
        ):
            if groups is not None:
                settings = RunnerSettings(plan.name, config, cast(Strategy, plan.strategy))
                groups.use_settings(settings, iteration=self.iteration)
        self.recent.clear()

    def enter_saved_stage(self, saved: dict[str, Any] | None, *, fork: bool) -> None:
        """Enter the stage of a saved state before the rest is loaded. Raises StateMismatch."""
        if not self.has_stages:
            return
        # A fork of a run without this stage begins with its own first stage.
        present = self.curriculum.stage.name
        if self.curriculum.load(saved):
            if self.curriculum.stage.name != present:
                self.enter_stage(self.curriculum.stage)
        elif not fork:
            name = saved["stage"] if saved else "none"
            raise StateMismatch(
                f"the checkpoint was saved in the stage {name!r}, which is not in `curriculum`. "
                "Put the stage back, or fork the run (--from CHECKPOINT --name NEW)."
            )

    # -- state -----------------------------------------------------------------------------------

    def capture(self) -> Callable[[Path], None]:
        """See `state.capture`."""
        return state.capture(self)

    def save_exact(self, directory: Path) -> None:
        """Write the whole state into `directory` (created)."""
        self.capture()(directory)

    def load_exact(self, directory: Path, *, fork: bool = False) -> Restored:
        """Restore what `save_exact` wrote (see `state.restore`)."""
        restored = state.restore(self, directory, fork=fork)
        make_callback(
            "on_checkpoint_loaded",
            callbacks_objects=self.callbacks,
            callbacks_functions=self.config.callbacks_on_checkpoint_loaded,
            kwargs={"algorithm": self},
        )
        return restored

    def load_policy_state(self, directory: Path) -> None:
        """Load only the weights and the observation filters of what `save_exact` wrote.

        Raises:
            StateMismatch: the weights are not those of this network.
        """
        before = RngStreams.capture()
        try:
            self.learners.load_weights(weights_in(directory))
        except RuntimeError as error:  # Torch's, which lists names and shapes.
            raise StateMismatch(
                f"{directory} holds the weights of another network: {error}. Use the "
                "rl_module.model_config that they were trained with."
            ) from None
        connectors = state.read_opaque(directory)["connectors"]
        self.start_groups({}, {}, iteration=0, connectors=connectors)
        self.check_weights()
        before.install()

    # -- inside ----------------------------------------------------------------------------------

    def _report_episodes(self, result: dict[str, Any], ended: list[dict[str, Any]]) -> None:
        """Add the environment's own metrics, averages over the last episodes, and the stage."""
        result.update({"custom": own} if (own := summarised(ended)) else {})
        result["recent"] = self.recent.means(REPORTED)
        self._report_evaluation(result)
        if self.has_stages:
            now = self.progress(self.iteration + 1)
            result["stage"] = self.curriculum.stage.name
            result["curriculum"] = self.curriculum.observe(now, result, self.recent)

    def _report_evaluation(self, result: dict[str, Any]) -> None:
        evaluation, interval = result.get(EVALUATION_RESULTS), self.config.evaluation_interval
        if self.eval_env_groups is None or not evaluation:
            return
        if not interval or (self.iteration + 1) % interval:
            # RLlib 2.60 repeats the last evaluation, of other weights, in later results.
            del result[EVALUATION_RESULTS]
            return
        own = summarised(self.eval_env_groups.take_finished())
        evaluation.update({"custom": own} if own else {})

    def _make_groups(self, runners: Any, *, elastic: bool) -> RolloutCollector:
        return RolloutCollector(
            runners,
            strategy=self.strategy,
            tell=self.tell,
            sample_timeout_s=self.config.sample_timeout_s,
            rules=self.rules,
            elastic=elastic,
            code=self._process_code,
            lost_exactness=self.lost_exactness,
        )

    def start_groups(
        self,
        groups: dict[int, bytes],
        eval_groups: dict[int, bytes],
        *,
        iteration: int,
        connectors: dict[str, Any] | None = None,
    ) -> None:
        """Start all groups with these snapshots, the present weights and `connectors`."""
        steps = {NUM_ENV_STEPS_SAMPLED_LIFETIME: self.env_steps_sampled}
        sync = {**self._sampler_weights(), **steps, **(connectors or {})}
        self.env_groups.start(sync, groups, iteration=iteration)
        if self.eval_env_groups is not None:
            self.eval_env_groups.start(sync, eval_groups, iteration=iteration)

    def _sampler_weights(self) -> dict[str, Any]:
        return self.learners.sampler_weights(self.env_groups.weight_names())

    def check_weights(self) -> None:
        """Set the weights digest. Raises StateMismatch if the learners do not agree on it."""
        try:
            self.weights_digest, self._damaged_weights = self.learners.weights_check()
        except LearnersDiffer as error:
            raise StateMismatch(
                f"After iteration {self.iteration + 1} {error}. One of them computed other "
                "numbers; resume from the last checkpoint, which is good."
            ) from None


def _frozen(config: AlgorithmConfig) -> AlgorithmConfig:
    """A validated and frozen copy, as RLlib holds it."""
    config = config.copy(copy_frozen=False)
    config.validate()
    config.freeze()
    return config


def algorithm_arguments(
    config: ExperimentConfig,
    snapshot: Mapping[str, Any],
    threads: Mapping[Role, int] | None = None,
) -> dict[str, Any]:
    """The arguments of `ExactPPO` for a trial's own config. `snapshot`: the entry of
    experiment.json on how the environments are snapshotted. `threads` of arithmetic in the
    processes of each role; None: as many as they happen to have."""

    def algorithm(values: ExperimentConfig) -> PPOConfig:
        prepared = prepare(to_algorithm_config(values))
        for_processes = {**prepared.learner_config_dict, THREADS: dict(threads or {})}
        prepared.learners(learner_config_dict=for_processes)
        return prepared

    own = snapshot.get("stages", {})
    stages = [
        StagePlan(
            name=stage.name,
            rule=StopRule.of_stage(stage.until),
            config=algorithm(stage_config(config, index)),
            strategy=str(own.get(stage.name, snapshot)["strategy"]),
        )
        for index, stage in enumerate(config.curriculum)
    ]
    return {
        "config": stages[0].config if stages else algorithm(config),
        "strategy": str(snapshot["strategy"]),
        "stages": stages,
        "recent": recent_size(config),
    }
