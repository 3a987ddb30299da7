"""The env runner of an env group: RLlib's, with a state that can be taken and put back exactly.

A group is the unit of sampling: the environments of one configured env runner with their random
streams, running episodes, filter state and metric windows. Whatever process hosts it, a group's
data are the same, because its random streams are swapped in for the time of a `sample()` and
nothing else of the process is used. An actor may host further groups beside its own.

A group is sampled into arrays (see `sampler`) wherever that can stand for RLlib's own way, and else
by RLlib (see `eligibility`); the episodes are the same.

A group's snapshot is one pickled dict (the environments may only be known to pickle):

    group        index, 0 .. num_env_runners - 1 (0 if there are no remote runners)
    seed         of the resets that are seeded (the first, and each of sampling by whole episodes)
    runner       counters; running episodes and the cached batch, if RLlib samples
    progress     the fields of `fragments.Progress`, if the group is sampled into arrays; or None
    vector_env   the vector environment's last observations, rewards and flags
    envs         one snapshot per environment, by the strategy that proved itself
    connectors   state of both connector pipelines
    metrics      metric windows
    rng          Python, NumPy and Torch generators of the group, as JSON types
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import cloudpickle
import numpy as np
import ray
import torch
from ray.rllib.core import (
    COMPONENT_ENV_TO_MODULE_CONNECTOR,
    COMPONENT_MODULE_TO_ENV_CONNECTOR,
    COMPONENT_RL_MODULE,
)
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ENV_RESET_TIMER,
    ENV_STEP_TIMER,
    RLMODULE_INFERENCE_TIMER,
    SAMPLE_TIMER,
    TIME_BETWEEN_SAMPLING,
    TIMERS,
    WEIGHTS_SEQ_NO,
)

from raytrain import _ray
from raytrain._ray import actors as _ray_actors
from raytrain._ray.actor_signals import spare_this_actor
from raytrain.checkpoint import weights_sha256
from raytrain.errors import RaytrainError
from raytrain.policy.rllib_env_actions import map_actions
from raytrain.rng import RngStreams, preserved
from raytrain.rollout.env_errors import environment_errors
from raytrain.rollout.env_snapshots import Snapshotter, Strategy, snapshotter
from raytrain.rollout.fast_sampling.eligibility import observation_filter, why_not
from raytrain.rollout.fast_sampling.episode_rows import (
    EpisodeRecorder,
    finished_row,
    summarise_chunks,
)
from raytrain.rollout.fast_sampling.fragments import Progress
from raytrain.rollout.fast_sampling.sampler import FragmentSampler, Sampled, Wanted
from raytrain.rollout.rollout import Rollout
from raytrain.rollout.timeout import StallReporter, stall_key

_TRAINING, _EVALUATION = 0, 1
_WORD_BY = 0.9


@dataclass(frozen=True)
class RunnerSettings:
    """Settings of a stage, by its name; None for those that a runner was made with."""

    name: str | None
    config: Any
    strategy: Strategy


class GroupEnvRunner(SingleAgentEnvRunner):
    """Hosts one env group of its own, `group`, and others if it is asked for them: every method that
    takes `group` begins to host the group that it names."""

    sampling: ClassVar[Literal["arrays", "rllib"]] = "arrays"
    """"arrays" where that can stand for RLlib's own way, or always "rllib"."""

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        spare_this_actor()
        with _ray.runners.quick_connectors():
            super().__init__(config=config, **kwargs)
        self._made_with, self._arguments = config, kwargs
        self._others: dict[int, GroupEnvRunner] = {}
        self._finished: list[dict[str, Any]] = []
        self.group = max(int(self.worker_index or 0), 1) - 1
        self._shots: Snapshotter | None = None
        purpose = _EVALUATION if self.config.in_evaluation else _TRAINING
        self._entropy = (int(self.config.seed or 0), purpose, self.group)
        self._streams = RngStreams.seeded(*self._entropy)
        _ray.runners.set_runner_seed(self, _reset_seed(*self._entropy, 0))
        self._settings_name: str | None = None
        self._begins_anew = False
        self._sampled_at: float | None = None
        self._seconds: dict[str, float] = {}
        self._not_into_arrays: str | None = None
        self._stall_reporter = StallReporter(self._leave_word)
        self._busy_with = self.group
        self._id_prefix = f"{purpose:04x}{self.group:012x}"
        self._sampler = self._make_sampler(self._id_prefix)
        self._map_actions()

    def _make_sampler(self, id_prefix: str) -> FragmentSampler | None:
        if self.env is None or self.sampling == "rllib":
            return None
        self._not_into_arrays = why_not(self, EpisodeRecorder)
        if self._not_into_arrays is not None:
            return None
        return FragmentSampler(self, observation_filter(self), id_prefix=id_prefix)

    def _map_actions(self) -> None:
        if self.env is not None and self._sampler is None:
            map_actions(
                _ray.runners.connectors(self)[1],
                self.env.single_action_space,
                normalize=self.config.normalize_actions,
                clip=self.config.clip_actions,
            )

    def why_not_into_arrays(self) -> str | None:
        """Why RLlib's own, slower way samples here; None if it does not."""
        return self._not_into_arrays

    def hosted(self, group: int | None) -> GroupEnvRunner:
        """The runner of a group in this process, made if there is none; None is the own group."""
        if group is None or group == self.group:
            return self
        if group not in self._others:
            # What RLlib does to the global generators here is not for the groups that are present.
            with preserved():
                other = type(self)(
                    config=self._made_with, **{**self._arguments, "worker_index": group + 1}
                )
            other.module = self.module  # One copy of the weights serves all.
            self._others[group] = other
        return self._others[group]

    def present_sampling(self) -> str:
        """See `RolloutCollector.present_sampling`."""
        return "" if self._sampler is None else self._sampler.present_sampling()

    def release(self, group: int) -> None:
        """Forget a group that another actor hosts from now on. The own one stays, for when it returns."""
        other = self._others.pop(group, None)
        if other is not None:
            other.stop()

    def process(self) -> tuple[str, int, str]:
        """The actor's id, the process id and the host's name: says that this process is there."""
        return _actor_id(), os.getpid(), socket.gethostname()

    def _leave_word(self, standing: str) -> None:
        _ray_actors.publish_stall(stall_key(_actor_id(), self._busy_with), standing)

    @override(SingleAgentEnvRunner)
    def stop(self) -> None:
        for other in self._others.values():
            other.stop()
        super().stop()

    def use_strategy(self, strategy: Strategy) -> None:
        """Set how the environments are snapshotted. Must come before the first `sample()`."""
        if self._shots is not None or self.env is None:
            return
        self._shots = snapshotter(strategy)
        envs = self.env.unwrapped.envs
        for index, env in enumerate(envs):
            envs[index] = self._shots.wrap(env)

    def use_settings(
        self, settings: RunnerSettings, *, iteration: int, group: int | None = None
    ) -> bytes | None:
        """Go on with another config in this process: environments are made anew, and episodes begin
        that are seeded by the iteration. Weights, filters and counters stay. Returns the group's
        snapshot, None without environments."""
        host = self.hosted(group)
        if host is not self:
            return host.use_settings(settings, iteration=iteration)
        self.config = settings.config.copy(copy_frozen=False)
        self._settings_name = settings.name
        if self.env is None:
            return None
        with self._streams.active():
            self.make_env()
        self._shots = None
        self.use_strategy(settings.strategy)
        progress = self._sampler.progress if self._sampler is not None else None
        self._sampler = self._make_sampler(self._id_prefix)
        if self._sampler is not None:
            self._sampler.progress = progress  # Of which only the next episode's number is used.
        self._map_actions()
        self._begin_anew(iteration)
        return self.snapshot()

    def _begin_anew(self, iteration: int) -> None:
        if self.config.in_evaluation:
            iteration = 0  # Evaluations are compared: they play the same episodes throughout.
        _ray.runners.set_runner_seed(self, _reset_seed(*self._entropy, iteration))
        _ray.runners.start_with_fresh_episodes(self)
        self._begins_anew = True

    def note_finished(
        self, env_index: int, episode_return: float, length: int, measured: Mapping[str, float]
    ) -> None:
        """Note an episode that ended, with the numbers of its last info."""
        row = finished_row(self.group, env_index, episode_return, length, measured)
        self._finished.append(row)

    def take_finished(self, group: int | None = None) -> list[dict[str, Any]]:
        """The rows noted since the last call."""
        host = self.hosted(group)
        if host is not self:
            return host.take_finished()
        rows, self._finished = self._finished, []
        return rows

    # -- sampling --------------------------------------------------------------------------------

    @override(SingleAgentEnvRunner)
    def sample(self, **kwargs: Any) -> list[Any]:
        with environment_errors(self.env):
            return self._sample_group(**kwargs)

    def _sample_group(self, **kwargs: Any) -> list[Any]:
        self._begins_anew = False
        if self._sampler is not None:
            with self._streams.active():
                return self._sample_arrays(self._sampler, **kwargs)
        try:
            with self._streams.active():
                episodes: list[Any] = super().sample(**kwargs)
        except RuntimeError as error:
            # RLlib raises this, without a message, for whatever a step of an environment raised.
            if error.args or error.__cause__ is None:
                raise
            raise error.__cause__ from None
        summarise_chunks(_ray.runners.unfinished_chunks(self))
        return episodes

    def _sample_arrays(
        self,
        sampler: FragmentSampler,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool | None = None,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> list[Any]:
        """RLlib's `sample()`, step by step the same in what it resets, counts and logs."""
        if random_actions:
            raise RaytrainError("random_actions: raytrain samples from the policy only")
        if self._sampled_at is not None:
            between = time.perf_counter() - self._sampled_at
            self.metrics.log_value(TIME_BETWEEN_SAMPLING, between)
        version = _ray.runners.weights_version(self)
        self.metrics.log_value(WEIGHTS_SEQ_NO, version, window=1)
        with self.metrics.log_time(SAMPLE_TIMER):
            wanted = self._wanted(num_timesteps, num_episodes)
            whole = wanted.episodes is not None
            initial = _ray.runners.needs_reset(self)
            if force_reset or whole or initial:
                with self.metrics.log_time(ENV_RESET_TIMER):
                    sampler.begin_episodes(_ray.runners.runner_seed(self) if initial else None)
            _ray.runners.set_needs_reset(self, whole)
            explore = self.config.explore if explore is None else explore
            sampled = sampler.sample(wanted, explore=bool(explore), version=version)
        self._log(sampled)
        for each, measured in zip(sampled.ended, sampled.measured, strict=True):
            self.note_finished(each.env_index, each.episode_return, each.length, measured)
        self._sampled_at = time.perf_counter()
        return sampled.episodes

    def _wanted(self, num_timesteps: int | None, num_episodes: int | None) -> Wanted:
        if num_timesteps is not None or num_episodes is not None:
            return Wanted(num_timesteps, num_episodes)
        if self.config.batch_mode != "truncate_episodes":
            return Wanted(episodes=self.num_envs)
        fragment = self.config.get_rollout_fragment_length(self.worker_index)
        return Wanted(env_steps=fragment * self.num_envs)

    def _log(self, sampled: Sampled) -> None:
        log = self.metrics.log_value
        self._seconds = {"env_step": sampled.env_step_s, "inference": sampled.inference_s}
        if sampled.vector_steps:
            log(RLMODULE_INFERENCE_TIMER, sampled.inference_s / sampled.vector_steps)
            log(ENV_STEP_TIMER, sampled.env_step_s / sampled.vector_steps)
        for name in ("inference_s", "env_step_s", "other_s"):
            log((TIMERS, name), getattr(sampled, name), reduce="sum")
        _ray.runners.log_sampled(self, sampled.env_steps, len(sampled.ended), sampled.vector_steps)
        _ray.runners.log_episodes(
            self, [(each.length, each.episode_return, each.duration_s) for each in sampled.ended]
        )

    def rollout(
        self,
        sync: dict[str, Any] | None,
        *,
        snapshot: bool,
        group: int | None = None,
        patience_s: float | None = None,
    ) -> Rollout:
        """Take over weights and connector state (`sync`, as for `set_state`), sample one fragment,
        and return it with everything that belongs to it. Shortly before `patience_s` has passed, word
        is left of where the process stands."""
        host = self.hosted(group)
        self._busy_with = host.group
        with self._stall_reporter.watching(None if patience_s is None else _WORD_BY * patience_s):
            return host._rollout(sync, snapshot=snapshot)

    def _rollout(self, sync: dict[str, Any] | None, *, snapshot: bool) -> Rollout:
        began = time.perf_counter()
        if sync is not None:
            self.take_over(sync)
        return Rollout(
            episodes=self.sample(),
            metrics=self.get_metrics(),
            finished=self.take_finished(),
            connectors=self.connector_state(),
            snapshot=self.snapshot() if snapshot else None,
            seconds={**self._seconds, "rollout": time.perf_counter() - began},
        )

    # -- state -----------------------------------------------------------------------------------

    def take_over(self, sync: dict[str, Any]) -> None:
        """Set weights, connector state and counters of all groups here, whatever version the weights
        have. `sync`: as for `set_state`, with all tensors of the module.

        Raises:
            RaytrainError: the weights are not exactly those that the module has.
        """
        # Not RLlib's `set_state`, which ignores weights that are not newer than its own, takes a part of
        # them for all, and turns float64 into float32.
        rest = {key: value for key, value in sync.items() if key != COMPONENT_RL_MODULE}
        _load_weights(self.module, sync[COMPONENT_RL_MODULE])
        for host in (self, *self._others.values()):
            host.set_state(rest)
            _ray.runners.set_weights_version(host, sync.get(WEIGHTS_SEQ_NO, 0))

    def load_group(
        self,
        strategy: Strategy,
        sync: dict[str, Any],
        snapshot: bytes | None,
        *,
        iteration: int,
        group: int | None = None,
        settings: RunnerSettings | None = None,
    ) -> str:
        """Make a group that of `snapshot` (None: a group that has not sampled yet) with the weights
        of `sync`, under `settings` if there are others than this runner was made with. Returns the
        digest of the weights now held, which the caller compares."""
        host = self.hosted(group)
        if host is not self:
            return host.load_group(strategy, sync, snapshot, iteration=iteration, settings=settings)
        if settings is None:
            settings = RunnerSettings(None, self._made_with, strategy)
        if settings.name != self._settings_name:
            self.use_settings(settings, iteration=iteration)
        self.use_strategy(strategy)
        if snapshot is not None:
            self.restore(snapshot, iteration=iteration)
        self.take_over(sync)
        return weights_sha256(self.module.state_dict())

    def connector_state(self) -> dict[str, Any]:
        """State of both connector pipelines."""
        state: dict[str, Any] = self.get_state(
            components=[COMPONENT_ENV_TO_MODULE_CONNECTOR, COMPONENT_MODULE_TO_ENV_CONNECTOR]
        )
        return state

    def snapshot(self, group: int | None = None) -> bytes:
        """A group's whole state but the weights (see the module's docstring)."""
        host = self.hosted(group)
        if host is not self:
            return host.snapshot()
        assert self._shots is not None, "adopt() comes first"
        progress = self._sampler.progress if self._sampler is not None else None
        vector_env = self.env.unwrapped
        state = {
            "group": self.group,
            "runner": _ray.runners.runner_attributes(self),
            "seed": _ray.runners.runner_seed(self),
            "progress": None if progress is None else vars(progress),
            "vector_env": _ray.runners.vector_env_attributes(vector_env),
            # Environments that are about to begin anew have nothing to remember.
            "envs": None
            if self._begins_anew
            else [self._shots.take(env) for env in vector_env.envs],
            "connectors": self.connector_state(),
            "metrics": self.metrics.stats,
            "rng": self._streams.to_state(),
        }
        data: bytes = cloudpickle.dumps(state)
        return data

    def restore(self, snapshot: bytes, *, iteration: int) -> None:
        """Put back what `snapshot` returned. Where environments cannot be restored (strategy
        `reset`, and after `without_episodes`) new episodes begin, seeded by the iteration, so that a
        second restore elsewhere does not repeat them."""
        assert self._shots is not None, "use_strategy() comes first"
        state = cloudpickle.loads(snapshot)
        self.set_state(state["connectors"])
        self.metrics.stats = state["metrics"]
        if state["rng"] is not None:
            self._streams = RngStreams.from_state(state["rng"])
        self._finished = []
        _ray.runners.set_runner_attributes(self, state["runner"])
        if self._shots.strategy == "reset" or state["envs"] is None:
            self._begin_anew(iteration)
            # Of which only the number of the next episode will be used.
            self._set_progress(state.get("progress"))
            return
        self._begins_anew = False
        if "seed" in state:
            _ray.runners.set_runner_seed(self, state["seed"])
        self._take_progress(state.get("progress"))
        vector_env = self.env.unwrapped
        # On scratch streams: what a restore draws from the global generators is not the run's.
        with RngStreams.from_state(state["rng"]).active():
            for index, saved in enumerate(state["envs"]):
                vector_env.envs[index] = self._shots.restore(vector_env.envs[index], saved)
        _ray.runners.set_vector_env_attributes(vector_env, state["vector_env"])

    def _take_progress(self, progress: dict[str, Any] | None) -> None:
        arrays, begun = self._sampler is not None, not _ray.runners.needs_reset(self)
        if (arrays and begun and progress is None) or (progress is not None and not arrays):
            raise RaytrainError(
                f"The state of env group {self.group} was saved by a run that sampled in another way. "
                "Continue with the raytrain version and the config that the run was started with."
            )
        self._set_progress(progress)

    def _set_progress(self, progress: dict[str, Any] | None) -> None:
        if self._sampler is not None:
            self._sampler.progress = None if progress is None else Progress(**progress)


def without_episodes(snapshot: bytes, *, reseed: bool) -> bytes:
    """A group's snapshot from which it begins new episodes; with `reseed` on random streams of its
    own."""
    state = cloudpickle.loads(snapshot)
    data: bytes = cloudpickle.dumps(
        {**state, "envs": None, "rng": None if reseed else state["rng"]}
    )
    return data


def _load_weights(module: Any, weights: dict[str, Any]) -> None:
    tensors = {name: _tensor(value) for name, value in weights.items()}
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:  # Torch's, which lists names and shapes.
        raise RaytrainError(
            f"An env runner cannot take over the learner's weights: {error}"
        ) from error


def _tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    # An array that came through Ray cannot be written to, which Torch warns of.
    return torch.from_numpy(value if value.flags.writeable else value.copy())


def _reset_seed(*entropy: int) -> int:
    """A seed for the first reset, far from those of other groups (Gymnasium counts up from it)."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _actor_id() -> str:
    found: str | None = ray.get_runtime_context().get_actor_id()
    return found or ""
