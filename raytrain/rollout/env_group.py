"""An env group: RLlib's env runner, with a state that can be captured and restored exactly.

A group is the unit of sampling: the environments of one configured env runner with their random
streams, running episodes, filter state and metric windows. Its data do not depend on the process
that hosts it: its random streams are swapped in for the time of a `sample()`, and nothing else of
the process is used. A group is sampled into arrays where that can stand in for RLlib's own
sampling, and by RLlib elsewhere (see `fast_sampling`); the episodes are the same.

A group's snapshot is one pickled dict (the environments may only be known to pickle):

    group        index, 0 .. num_env_runners - 1 (0 if there are no remote runners)
    seed         for the seeded resets (the first one, and each one when whole episodes are sampled)
    runner       counters; running episodes and the cached batch, if RLlib samples
    progress     the fields of `fragments.Progress`, if the group is sampled into arrays; or None
    vector_env   the vector environment's last observations, rewards and flags
    envs         one snapshot per environment, by the strategy in use; None between episodes
    connectors   state of both connector pipelines
    metrics      metric windows
    callbacks    what `get_state()` of each callbacks object of the user's own returns, or None
    rng          Python, NumPy and Torch generators of the group, as JSON types
"""

from __future__ import annotations

import copy
import io
import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import cloudpickle
import numpy as np
import torch
from ray.rllib.core import (
    COMPONENT_ENV_TO_MODULE_CONNECTOR,
    COMPONENT_MODULE_TO_ENV_CONNECTOR,
    COMPONENT_RL_MODULE,
    DEFAULT_MODULE_ID,
)
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
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
from raytrain.arithmetic.machine import describe_machine
from raytrain.arithmetic.portable import make_portable
from raytrain.checkpoint import weights_sha256
from raytrain.config.action_mask import observed_space
from raytrain.config.run_code import ProcessCode
from raytrain.errors import RaytrainError
from raytrain.policy.env_actions import policy_space
from raytrain.policy.rllib_catalog import choose_catalog
from raytrain.policy.rllib_env_actions import map_actions, mask_actions
from raytrain.rng import RngStreams
from raytrain.rollout.env_errors import environment_errors
from raytrain.rollout.env_snapshots import Snapshotter, Strategy, snapshotter
from raytrain.rollout.fast_sampling.eligibility import why_not
from raytrain.rollout.fast_sampling.episode_rows import (
    ChunkTotals,
    finished_row,
    restore_totals,
    summarise_chunks,
)
from raytrain.rollout.fast_sampling.fragments import Progress
from raytrain.rollout.fast_sampling.own_callbacks import (
    OwnCallbacks,
    load_state,
    state_of,
    wants_chunks,
)
from raytrain.rollout.fast_sampling.sampler import FragmentSampler, Sampled, Wanted, mask_reader
from raytrain.rollout.rehearsal import sampling_fingerprint
from raytrain.rollout.rollout import Rollout

OBSERVED = "__observed__"
"""Among a group's spaces those of its environment, action masks in observations included."""

_TRAINING, _EVALUATION = 0, 1


@dataclass(frozen=True)
class RunnerSettings:
    """Settings of a stage, by its name; None for those that a group was constructed with."""

    name: str | None
    config: Any
    strategy: Strategy


class Loaded(NamedTuple):
    """What an env group says when it is set up."""

    weights_sha256: str
    other_code: tuple[str, ...]
    """See `ProcessCode.changes_here`."""


class EnvGroup(SingleAgentEnvRunner):
    """The group that `worker_index` names."""

    sampling: ClassVar[Literal["arrays", "rllib"]] = "arrays"
    """"arrays" where that can stand in for RLlib's own sampling; or always "rllib"."""

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        make_portable()
        with _ray.runners.quick_connectors():
            super().__init__(config=config, **kwargs)
        self._first_config = config
        self._settings_name: str | None = None
        self.group = max(int(self.worker_index or 0), 1) - 1
        purpose = _EVALUATION if self.config.in_evaluation else _TRAINING
        self._entropy = (int(self.config.seed or 0), purpose, self.group)
        self._streams = RngStreams.seeded(*self._entropy)
        _ray.runners.set_runner_seed(self, _reset_seed(*self._entropy, 0))
        self._snapshotter: Snapshotter | None = None
        self._finished: list[dict[str, Any]] = []
        self._between_episodes = False
        self._sampled_at: float | None = None
        self._sampler: FragmentSampler | None = None
        self._arithmetic: tuple[str, dict[str, str]] | None = None
        self._own_callbacks = OwnCallbacks(self)
        self._keeps_chunks = wants_chunks(self.config)
        self._choose_sampling()

    @override(SingleAgentEnvRunner)
    def make_module(self) -> None:
        spaces = self.get_spaces()
        if spaces is not None:
            spec = self.config.get_rl_module_spec(env=self.env, spaces=spaces)
            if choose_catalog(spec):
                chosen = RLModuleSpec(catalog_class=spec.catalog_class)
                self.config.rl_module(rl_module_spec=chosen)
        super().make_module()

    def _choose_sampling(self) -> None:
        """Decide whether the present environments are sampled into arrays."""
        before, self._sampler = self._sampler, None
        self._why_not_into_arrays: str | None = None
        self._seconds: dict[str, float] = {}
        if self.env is None:
            return
        if self.sampling == "arrays":
            self._why_not_into_arrays = why_not(self)
            if self._why_not_into_arrays is None:
                _, purpose, group = self._entropy
                calls_back = self._own_callbacks.has("on_episode_end")
                self._sampler = FragmentSampler(
                    self,
                    id_prefix=f"{purpose:04x}{group:012x}",
                    on_end=self._own_callbacks.end_episode if calls_back else None,
                    keep_chunks=self._keeps_chunks,
                )
                if before is not None:  # Only the number of the next episode will be used.
                    self._sampler.progress = before.progress
                return
        self._map_actions()

    def _map_actions(self) -> None:
        """For RLlib's own sampling."""
        map_actions(
            _ray.runners.connectors(self)[1],
            self.env.single_action_space,
            normalize=self.config.normalize_actions,
            clip=self.config.clip_actions,
        )
        mask_actions(
            _ray.runners.connectors(self)[1],
            mask_reader(self.config, self.env.single_action_space),
        )

    @override(SingleAgentEnvRunner)
    def get_spaces(self) -> dict[str, Any]:
        """As RLlib's, but the module acts in `policy_space`; and `OBSERVED`."""
        spaces: dict[str, Any] = super().get_spaces()
        if self.env is not None:
            actions = self.env.single_action_space
            spaces[OBSERVED] = observed_space(self.env.unwrapped.envs[0]), actions
            observations, actions = spaces[DEFAULT_MODULE_ID]
            spaces[DEFAULT_MODULE_ID] = observations, policy_space(actions)
        return spaces

    def arithmetic(self) -> tuple[str, dict[str, str]]:
        """The fingerprint of what this process computes for the group (see `rehearsal`), and the
        description of its machine."""
        if self._arithmetic is None:
            fingerprint = sampling_fingerprint(
                self.module, self.module.action_space, envs=self.num_envs
            )
            self._arithmetic = fingerprint, describe_machine()
        return self._arithmetic

    def why_not_into_arrays(self) -> str | None:
        """Why RLlib's own, slower way samples here; None if it does not."""
        return self._why_not_into_arrays

    def present_sampling(self) -> str:
        """See `RolloutCollector.present_sampling`."""
        present = None if self._sampler is None else self._sampler.present
        if present is None:
            return ""
        count = len(present.ended)
        episodes = {0: "no episode has", 1: "1 episode has"}.get(count, f"{count} episodes have")
        return f": {episodes} ended in {present.env_steps:,} steps"

    def use_strategy(self, strategy: Strategy) -> None:
        """Set how the environments are snapshotted, if it is not set. Must come before
        the first `sample()`."""
        if self._snapshotter is not None or self.env is None:
            return
        self._snapshotter = snapshotter(strategy)
        envs = self.env.unwrapped.envs
        envs[:] = [self._snapshotter.wrap(env) for env in envs]

    def use_settings(self, settings: RunnerSettings, *, iteration: int) -> bytes | None:
        """Continue with another config: environments are constructed anew, and new episodes begin,
        seeded by the iteration. Weights, filters and counters stay. Returns the group's snapshot;
        None without environments."""
        self.config = settings.config.copy(copy_frozen=False)
        self._settings_name = settings.name
        if self.env is None:
            return None
        with self._streams.active():
            self.make_env()
        self._snapshotter = None
        self.use_strategy(settings.strategy)
        self._choose_sampling()
        self._begin_new_episodes(iteration)
        return self.snapshot()

    def _begin_new_episodes(self, iteration: int) -> None:
        if self.config.in_evaluation:
            iteration = 0  # Evaluations are compared: they play the same episodes throughout.
        _ray.runners.set_runner_seed(self, _reset_seed(*self._entropy, iteration))
        _ray.runners.set_needs_reset(self, True)
        _ray.runners.unfinished_chunks(self).clear()  # Their episodes do not continue.
        self._between_episodes = True

    def note_finished(
        self, env_index: int, episode_return: float, length: int, measured: Mapping[str, float]
    ) -> None:
        """Record an episode that ended, with the numbers of its last info."""
        row = finished_row(self.group, env_index, episode_return, length, measured)
        self._finished.append(row)

    def take_finished(self) -> list[dict[str, Any]]:
        """The rows of the episodes that ended since the last call."""
        rows, self._finished = self._finished, []
        return rows

    # -- sampling --------------------------------------------------------------------------------

    @override(SingleAgentEnvRunner)
    def sample(self, **kwargs: Any) -> list[Any]:
        self._between_episodes = False
        with environment_errors(self.env), self._streams.active():
            if self._sampler is not None:
                return self._sample_arrays(self._sampler, **kwargs)
            try:
                episodes: list[Any] = super().sample(**kwargs)
            except RuntimeError as error:
                # RLlib raises this, without a message, for whatever an environment's step raised.
                if error.args or error.__cause__ is None:
                    raise
                raise error.__cause__ from None
        chunks = _ray.runners.unfinished_chunks(self)
        if self._keeps_chunks:
            for of_episode in filter(None, chunks.values()):
                # A copy: a learner in this process may change the one that is returned.
                of_episode[-1] = copy.deepcopy(of_episode[-1])
        else:
            summarise_chunks(chunks)
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
        """RLlib's `sample()`: resets, counts and logs the same, step by step."""
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
            self._own_callbacks.end_sample(sampled.episodes)
        self._log(sampled)
        for ended in sampled.ended:
            self.note_finished(ended.env_index, ended.episode_return, ended.length, ended.measured)
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
        ended = [(entry.length, entry.episode_return, entry.duration_s) for entry in sampled.ended]
        _ray.runners.log_sampled(self, sampled.env_steps, len(ended), sampled.vector_steps)
        _ray.runners.log_episodes(self, ended)

    def rollout(self, sync: dict[str, Any] | None, *, snapshot: bool) -> Rollout:
        """Take over weights and connector state (`sync`, as for `set_state`; None: keep the present
        ones), sample one fragment, and return it with everything that belongs to it."""
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
        """Set weights, connector state and counters, whatever version the weights have. `sync`: as
        for `set_state`, with all tensors of the module.

        Raises:
            RaytrainError: the weights are not exactly those that the module has.
        """
        # RLlib's `set_state` ignores weights that are not newer than its own, accepts a part of
        # them for all, and turns float64 into float32.
        _load_weights(self.module, sync[COMPONENT_RL_MODULE])
        self.set_state({key: value for key, value in sync.items() if key != COMPONENT_RL_MODULE})
        _ray.runners.set_weights_version(self, sync.get(WEIGHTS_SEQ_NO, 0))

    def load(
        self,
        strategy: Strategy,
        sync: dict[str, Any],
        snapshot: bytes | None,
        *,
        iteration: int,
        settings: RunnerSettings | None = None,
        code: ProcessCode | None = None,
    ) -> Loaded:
        """Make this the group of `snapshot` (None: a group that has not sampled yet) with the
        weights of `sync`, under `settings` (None: those of the constructor). Returns the digest of
        the weights that it now holds, and what differs from `code`, for the caller to compare."""
        if settings is None:
            settings = RunnerSettings(None, self._first_config, strategy)
        if settings.name != self._settings_name:
            self.use_settings(settings, iteration=iteration)
        self.use_strategy(strategy)
        if snapshot is not None:
            self.restore(snapshot, iteration=iteration)
        self.take_over(sync)
        other_code = tuple(code.changes_here()) if code is not None else ()
        return Loaded(weights_sha256(self.module.state_dict()), other_code)

    def connector_state(self) -> dict[str, Any]:
        """State of both connector pipelines."""
        state: dict[str, Any] = self.get_state(
            components=[COMPONENT_ENV_TO_MODULE_CONNECTOR, COMPONENT_MODULE_TO_ENV_CONNECTOR]
        )
        return state

    def snapshot(self) -> bytes:
        """The whole state but the weights (see the module's docstring)."""
        assert self._snapshotter is not None, "use_strategy() comes first"
        progress = self._sampler.progress if self._sampler is not None else None
        vector_env = self.env.unwrapped
        state = {
            "group": self.group,
            "runner": _ray.runners.runner_attributes(self),
            "seed": _ray.runners.runner_seed(self),
            "progress": None if progress is None else vars(progress),
            "vector_env": _ray.runners.vector_env_attributes(vector_env),
            "envs": None
            if self._between_episodes
            else [self._snapshotter.take(env) for env in vector_env.envs],
            "connectors": self.connector_state(),
            "metrics": self.metrics.stats,
            "callbacks": state_of(self._own_callbacks.objects),
            "rng": self._streams.to_state(),
        }
        data: bytes = cloudpickle.dumps(state)
        return data

    def restore(self, snapshot: bytes, *, iteration: int) -> None:
        """Restore what `snapshot` returned. Where environments cannot be restored (strategy
        `reset`, and after `without_episodes`) new episodes begin, seeded by the iteration, so that
        a second restore elsewhere does not repeat them."""
        assert self._snapshotter is not None, "use_strategy() comes first"
        state = _Unpickler(io.BytesIO(snapshot)).load()
        self.set_state(state["connectors"])
        self.metrics.stats = state["metrics"]
        load_state(self._own_callbacks.objects, state.get("callbacks", ()))
        if state["rng"] is not None:
            self._streams = RngStreams.from_state(state["rng"])
        self._finished = []
        _ray.runners.set_attributes(self, state["runner"])
        restore_totals(_ray.runners.unfinished_chunks(self))
        progress = None if (fields := state.get("progress")) is None else Progress(**fields)
        if self._snapshotter.strategy == "reset" or state["envs"] is None:
            self._begin_new_episodes(iteration)
            if self._sampler is not None:  # Only the number of the next episode will be used.
                self._sampler.progress = progress
            return
        self._between_episodes = False
        if "seed" in state:
            _ray.runners.set_runner_seed(self, state["seed"])
        # The last observations; between iterations whole episodes need a reset, too.
        begun = any(last is not None for last in state["vector_env"]["_env_obs"])
        self._continue_from(progress, begun=begun)
        vector_env = self.env.unwrapped
        # On scratch streams: what a restore draws from the global generators is not the run's.
        with RngStreams.from_state(state["rng"]).active():
            for index, saved in enumerate(state["envs"]):
                vector_env.envs[index] = self._snapshotter.restore(vector_env.envs[index], saved)
        _ray.runners.set_attributes(vector_env, state["vector_env"])

    def _continue_from(self, progress: Progress | None, *, begun: bool) -> None:
        arrays = self._sampler is not None
        if (arrays and begun and progress is None) or (progress is not None and not arrays):
            raise RaytrainError(
                f"The state of env group {self.group} was saved by a run that sampled in another "
                "way. Continue with the raytrain version and the config of the run's start."
            )
        if self._sampler is not None:
            self._sampler.progress = progress


class _Unpickler(pickle.Unpickler):
    """raytrain 0.1.0 pickled `ChunkTotals` by the module where it was then."""

    def find_class(self, module: str, name: str) -> Any:
        return ChunkTotals if name == "ChunkTotals" else super().find_class(module, name)


def without_episodes(snapshot: bytes, *, reseed: bool) -> bytes:
    """The snapshot of a group that will begin new episodes; with `reseed` also on
    new random streams."""
    state = _Unpickler(io.BytesIO(snapshot)).load()
    data: bytes = cloudpickle.dumps(
        {**state, "envs": None, "rng": None if reseed else state["rng"]}
    )
    return data


def _load_weights(module: Any, weights: dict[str, Any]) -> None:
    tensors = {name: _tensor(value) for name, value in weights.items()}
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:  # Torch's, which lists names and shapes.
        raise RaytrainError(f"An env runner cannot load the learner's weights: {error}") from error


def _tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    # An array that came through Ray is read-only, which Torch warns about.
    return torch.from_numpy(value if value.flags.writeable else value.copy())


def _reset_seed(*entropy: int) -> int:
    """A seed for the first reset, far from those of other groups (Gymnasium counts up from it)."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
