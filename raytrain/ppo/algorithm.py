"""RLlib's PPO with nothing lost: an iteration that is exact, and a state that is complete.

`ExactPPO` is RLlib's `PPO` with its env runner, its learner and its way of moving data between them
replaced (see `env_runner`, `learner`, `collector`); loss, connectors, metrics names and checkpoint files are
RLlib's. A saved state is a directory:

    algorithm_state.pkl, env_runner/, learner_group/, ...    RLlib's, as it writes them
    resume/state.json             counters, random generators, KL and schedules of every learner
    resume/algorithm.pkl          metric windows of the algorithm and of its learners
    resume/groups/group_0000.pkl  one per env group (see `env_runner`)
    resume/eval_groups/...        the same for evaluation
    policy.json, policy.safetensors    the policy, loadable without unpickling

RLlib's part is restored first, ours second; then every runner confirms the weights it holds.
"""

from __future__ import annotations

import json
import math
import pickle
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPO, PPOConfig
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
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)

from raytrain import _ray
from raytrain._ray import actors as _ray_actors
from raytrain.cluster.failures import why_it_died
from raytrain.config import ExperimentConfig, stage_config, to_algorithm_config
from raytrain.errors import RaytrainError
from raytrain.policy.format import PolicyParts, write_policy
from raytrain.policy.from_algorithm import policy_parts
from raytrain.policy.spaces import PolicyFormatError
from raytrain.ppo.curriculum import StagePlan, recent_size
from raytrain.ppo.fork_state import IDENTICAL, ForkDifferences, reseed, settings_of, weights_in
from raytrain.ppo.learner import MODULE_ID, ExactPPOTorchLearner
from raytrain.ppo.learner_group import Learners, LearnersDiffer
from raytrain.ppo.rllib_checkpoint import RLlibFiles
from raytrain.ppo.slow_evaluation import telling_if_slow
from raytrain.ppo.staged import StagedPPO, StateMismatch
from raytrain.ppo.stopping import StopRule
from raytrain.ppo.stopwatch import Stopwatch
from raytrain.rng import RngStreams
from raytrain.rollout.collector import NoNewEnvSteps, RolloutCollector
from raytrain.rollout.divergence import why_not_finite
from raytrain.rollout.env_runner import GroupEnvRunner, without_episodes
from raytrain.rollout.fast_sampling.episode_rows import EpisodeRecorder
from raytrain.rollout.runner_pool import RunnerRules

STATE_FORMAT = 1
RESUME_DIR = "resume"
_LOSSES = ("total_loss", "policy_loss", "vf_loss", "entropy", "mean_kl_loss")


class NonFinite(RaytrainError):
    """A loss or a weight became NaN or infinite."""


@dataclass(frozen=True)
class Restored:
    """What `load_exact` found that bears on exactness: `exact_lost` is None or the reason."""

    iteration: int
    exact_lost: str | None = None


def prepare(config: AlgorithmConfig) -> PPOConfig:
    """Plug the exact env runner, learner and episode recorder into a PPO config (in place)."""
    config.env_runners(env_runner_cls=GroupEnvRunner)
    config.learners(learner_class=ExactPPOTorchLearner)
    config.callbacks(callbacks_class=EpisodeRecorder)
    # A dead runner is started again at once by Ray; what it does then is up to `collector`.
    config.fault_tolerance(restart_failed_env_runners=True, ignore_env_runner_failures=False)
    _ray.runners.leave_syncing_to_us(config)
    config.algo_class = ExactPPO
    return config


class ExactPPO(StagedPPO):
    """See the module's docstring. `rules` says how many env runner actors there are and what their loss
    means; for the other arguments, `StagedPPO`."""

    def __init__(
        self,
        config: AlgorithmConfig | None = None,
        *,
        rules: RunnerRules | None = None,
        **kwargs: Any,
    ) -> None:
        self.rules = rules or RunnerRules()
        super().__init__(config, **kwargs)

    @override(PPO)
    def setup(self, config: AlgorithmConfig) -> None:
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
        self._rllib_files = RLlibFiles(self)
        self._learners = Learners(self.learner_group)
        self._groups = self._make_groups(self.env_runner_group, elastic=True)
        self._eval_groups = (
            self._make_groups(self.eval_env_runner_group, elastic=False)
            if self.eval_env_runner_group
            else None
        )
        self._start_groups({}, {}, iteration=0)
        self._check_weights()
        for what, reason in (
            ("Environments are sampled", self._groups.why_not_into_arrays()),
            ("The learner updates", self._learners.why_not_lean()),
        ):
            if reason:
                self.tell(f"{what} in RLlib's own way, which is several times slower: {reason}.")

    def tell(self, message: str) -> None:
        """Called with one plain sentence for each loss and recovery inside the algorithm."""

    def tell_now(self, message: str) -> None:
        """As `tell`, of what goes on at this moment; called in any thread."""

    def lost_exactness(self, why: str) -> None:
        """Called in the iteration from which on the run is not exact any more, with the reason."""

    @override(PPO)
    def cleanup(self) -> None:
        for groups in (getattr(self, "_groups", None), getattr(self, "_eval_groups", None)):
            if groups is not None:
                groups.stop()
        super().cleanup()

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Entered for each part of an iteration that waits for other processes: `sample`, `update`,
        `weights`, `save`."""
        return nullcontext()

    # -- one iteration ---------------------------------------------------------------------------

    @override(PPO)
    def training_step(self) -> None:
        with (
            self.phase("sample"),
            self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)),
        ):
            began = time.perf_counter()
            collected = self._groups.sample(self.config.total_train_batch_size)
            self.stopwatch.split_sampling(time.perf_counter() - began, collected.seconds)
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
            self._groups.publish(
                self._sampler_weights(), steps_sampled, iteration=self.iteration + 1
            )
            self._check_weights()

    @override(PPO)
    def step(self) -> dict[str, Any]:
        began = time.monotonic()
        self.enter_next_stage()
        before, known = self.env_steps_sampled, len(self.finished_episodes)
        result: dict[str, Any] = super().step()
        if self.env_steps_sampled <= before:
            raise NoNewEnvSteps(f"Iteration {self.iteration + 1} brought no new environment steps.")
        result["weights_sha256"] = self.weights_digest
        result.setdefault(FAULT_TOLERANCE_STATS, {}).update(self._groups.counts)
        result.setdefault(TIMERS, {})["iteration"] = self.stopwatch.row()
        self.report_episodes(result, self.finished_episodes[known:])
        self._look_at_evaluation(result)
        # Tune's own is a difference of two wall clock times. It adds these up to `time_total_s`.
        result["time_this_iter_s"] = time.monotonic() - began
        return result

    def _look_at_evaluation(self, result: Mapping[str, Any]) -> None:
        """Tell of returns that are no numbers: they change no weight, so nothing else shows them."""
        found = result.get(EVALUATION_RESULTS, {}).get(ENV_RUNNER_RESULTS, {})
        mean = float(found.get(EPISODE_RETURN_MEAN, 0.0))
        if not math.isfinite(mean) and found.get(NUM_EPISODES):
            self.tell(
                f"The mean return of this evaluation is {mean}: the environment returned a reward that is "
                "NaN or infinite. It is no score."
            )

    @override(PPO)
    def evaluate(self, parallel_train_future: Any = None) -> Any:
        seen = self._eval_groups.present_sampling if self._eval_groups is not None else str
        with telling_if_slow(self.tell_now, seen):
            return super().evaluate(parallel_train_future)

    @override(PPO)
    def _before_evaluate(self) -> None:
        # RLlib's own push does not wait, and leaves a local evaluation runner without the filters.
        if self._eval_groups is not None:
            sync = {**self._sampler_weights(), **self._groups.connector_state()}
            self._eval_groups.take_over(sync)
            self._eval_groups.take_snapshots_again()

    @property
    def env_groups(self) -> RolloutCollector:
        """The env groups of training."""
        return self._groups

    @property
    def eval_env_groups(self) -> RolloutCollector | None:
        """Those of evaluation, if there is any."""
        return self._eval_groups

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

    # -- state -----------------------------------------------------------------------------------

    def capture(self) -> Callable[[Path], None]:
        """Take the whole state now; the returned function writes it into a directory (created) and
        may run in another thread."""
        learners = self._learners.states()
        rllib = self._rllib_files.capture(float(learners[0]["kl_coeff"][MODULE_ID]))
        groups = self._groups.snapshots()
        eval_groups = self._eval_groups.snapshots() if self._eval_groups else {}
        opaque = {
            "metrics": self.metrics.stats,
            "learners": [learner.pop("opaque") for learner in learners],
            "connectors": self._groups.connector_state(),
        }
        blob = pickle.dumps(opaque, protocol=pickle.HIGHEST_PROTOCOL)
        plain = {
            "format": STATE_FORMAT,
            "iteration": self.iteration,
            "weights_sha256": self.weights_digest,
            "strategy": self.strategy,
            "rng": RngStreams.capture().to_state(),
            "learners": learners,
            "groups": sorted(groups),
            "settings": settings_of(self.config),
            "curriculum": self.curriculum_state(),
            "recent": self.recent.to_state(),
            "envs_per_group": self.config.num_envs_per_env_runner,
        }
        try:
            policy: PolicyParts | PolicyFormatError = policy_parts(
                self, module_state=rllib.module_state
            )
        except PolicyFormatError as error:
            policy = error

        def write(directory: Path) -> None:
            resume = directory / RESUME_DIR
            resume.mkdir(parents=True)
            rllib.write(directory)
            (resume / "state.json").write_text(json.dumps(plain))
            (resume / "algorithm.pkl").write_bytes(blob)
            _write_groups(resume / "groups", groups)
            _write_groups(resume / "eval_groups", eval_groups)
            if isinstance(policy, PolicyParts):
                write_policy(directory, policy, metadata={"iteration": plain["iteration"]})

        if isinstance(policy, PolicyFormatError):
            self.tell(f"The policy cannot be loaded outside of training: {policy}")
        return write

    def save_exact(self, directory: Path) -> None:
        """Write the whole state into `directory` (created)."""
        self.capture()(directory)

    def load_exact(self, directory: Path, *, fork: bool = False) -> Restored:
        """Become what `save_exact` wrote, and wait until every runner holds it. With `fork` another
        run wrote it, and this run's config holds where it says otherwise (see `fork_state`).

        Raises:
            StateMismatch: the directory holds no such state, or the weights are not the saved ones
                after the restore.
        """
        resume = directory / RESUME_DIR
        plain = json.loads((resume / "state.json").read_text())
        if plain.get("format") != STATE_FORMAT:
            raise StateMismatch(
                f"{directory}: resume state has format {plain.get('format')!r}, this raytrain reads "
                f"{STATE_FORMAT}. Use the raytrain version named in its manifest.json."
            )
        opaque = pickle.loads((resume / "algorithm.pkl").read_bytes())
        self.take_up_stage(plain.get("curriculum"), fork=fork)
        apart = ForkDifferences.of(plain, self.config, self.strategy) if fork else IDENTICAL
        if apart.seed:
            reseed(plain, self._learners.states())
        self._rllib_files.restore(directory, self._learners)
        states = zip(plain["learners"], opaque["learners"], strict=True)
        changed = self._learners.load([{**state, "opaque": rest} for state, rest in states])
        reasons = [changed] if changed else []
        self.metrics.stats = opaque["metrics"]
        self._iteration = plain["iteration"]
        if fork and not self.curriculum.knows(plain.get("curriculum")):
            self.curriculum.begin(self.progress(self.iteration))
        self.recent.load([] if apart.episodes else plain.get("recent", []))
        saved = _read_groups(resume / "groups")
        saved_eval = _read_groups(resume / "eval_groups")
        if apart.episodes:
            saved = {i: without_episodes(each, reseed=apart.seed) for i, each in saved.items()}
        if apart.episodes or apart.evaluation:
            saved_eval = {}
        envs = self.config.num_envs_per_env_runner
        if plain["envs_per_group"] != envs:
            reasons.append(
                f"the number of environments in a group changed from {plain['envs_per_group']} to {envs}, "
                "so all groups start new episodes"
            )
            saved, saved_eval = dict.fromkeys(saved, b""), {}
        if len(saved) != len(self._groups.indices):
            reasons.append(
                f"the number of env groups changed from {len(saved)} to {len(self._groups.indices)}"
            )
        self._start_groups(
            {index: snapshot for index, snapshot in saved.items() if snapshot},
            saved_eval,
            iteration=self.iteration,
            connectors=opaque["connectors"],
        )
        self._check_weights()
        if self.weights_digest != plain["weights_sha256"]:
            raise StateMismatch(
                f"{directory}: after the restore the weights digest is {self.weights_digest}, the "
                f"saved one is {plain['weights_sha256']}. The checkpoint does not fit the config."
            )
        if fork:
            self._learners.use_settings(
                self.config, self.env_steps_sampled, self.config.kl_coeff if apart.kl else None
            )
        if self.strategy == "reset":
            reasons.append(
                "the environments cannot be restored; running episodes were started anew"
            )
        # Last: everything above may have drawn random numbers.
        RngStreams.from_state(plain["rng"]).install()
        # What another run was is no loss to this one: it begins here, the same each time.
        return Restored(self.iteration, None if fork else "; ".join(reasons) or None)

    def load_policy_state(self, directory: Path) -> None:
        """Take the weights and the observation filters of what `save_exact` wrote, and nothing else.

        Raises:
            StateMismatch: the weights are not those of this network.
        """
        before = RngStreams.capture()
        try:
            self._learners.load_weights(weights_in(directory))
        except RuntimeError as error:  # Torch's, which lists names and shapes.
            raise StateMismatch(
                f"{directory} holds the weights of another network: {error}. Use the "
                "rl_module.model_config that they were trained with."
            ) from None
        opaque = pickle.loads((directory / RESUME_DIR / "algorithm.pkl").read_bytes())
        self._start_groups({}, {}, iteration=0, connectors=opaque["connectors"])
        self._check_weights()
        before.install()

    # -- inside ----------------------------------------------------------------------------------

    def _make_groups(self, runners: Any, *, elastic: bool) -> RolloutCollector:
        return RolloutCollector(
            runners,
            strategy=self.strategy,
            tell=self.tell,
            sample_timeout_s=self.config.sample_timeout_s,
            rules=self.rules,
            elastic=elastic,
            lost_exactness=self.lost_exactness,
        )

    def _start_groups(
        self,
        groups: dict[int, bytes],
        eval_groups: dict[int, bytes],
        *,
        iteration: int,
        connectors: dict[str, Any] | None = None,
    ) -> None:
        sync = {
            **self._sampler_weights(),
            NUM_ENV_STEPS_SAMPLED_LIFETIME: self.env_steps_sampled,
        }
        sync.update(connectors or {})
        self._groups.start(sync, groups, iteration=iteration)
        if self._eval_groups is not None:
            self._eval_groups.start(sync, eval_groups, iteration=iteration)

    def _sampler_weights(self) -> dict[str, Any]:
        return self._learners.sampler_weights(self._groups.weight_names())

    def _check_weights(self) -> None:
        try:
            self.weights_digest, self._damaged_weights = self._learners.weights_check()
        except LearnersDiffer as error:
            raise StateMismatch(
                f"After iteration {self.iteration + 1} {error}. One of them computed something else; "
                "the last checkpoint is good."
            ) from None


def _write_groups(directory: Path, groups: dict[int, bytes]) -> None:
    if groups:
        directory.mkdir(parents=True)
    for index, snapshot in groups.items():
        (directory / f"group_{index:04d}.pkl").write_bytes(snapshot)


def _read_groups(directory: Path) -> dict[int, bytes]:
    return {
        int(path.stem.removeprefix("group_")): path.read_bytes()
        for path in sorted(directory.glob("group_*.pkl"))
    }


def algorithm_arguments(config: ExperimentConfig, snapshot: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `ExactPPO` for a trial's own config. `snapshot`: what experiment.json says of
    how the environments are snapshotted."""
    own = snapshot.get("stages", {})
    stages = [
        StagePlan(
            name=stage.name,
            rule=StopRule.of_stage(stage.until),
            config=prepare(to_algorithm_config(stage_config(config, index))),
            strategy=str(own.get(stage.name, snapshot)["strategy"]),
        )
        for index, stage in enumerate(config.curriculum)
    ]
    return {
        "config": stages[0].config if stages else prepare(to_algorithm_config(config)),
        "strategy": str(snapshot["strategy"]),
        "stages": stages,
        "recent": recent_size(config),
    }
