"""Sampling a group's fragment into arrays, one vector step at a time.

    observations --act--> actions --step--> observations, rewards, flags    (one row of `Fragment`)

The result is RLlib's episodes, bit for bit those that its own env runner makes from the same random
streams, in its order: first the finished ones as they ended, then the running ones by environment.
A step that resets an environment belongs to no episode and is not counted.

Every info that an environment returns is kept in its episode, as the environment gave it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import perf_counter_ns
from typing import Any, TypeAlias

import numpy as np
from ray.rllib.core.columns import Columns
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from raytrain import _ray
from raytrain.config.action_mask import MaskSource
from raytrain.errors import RaytrainError
from raytrain.policy.action_masks import MaskLayout, MaskReader
from raytrain.policy.env_actions import ActionMapping, policy_space
from raytrain.policy.rllib_observations import Preprocessing
from raytrain.rollout.divergence import why_no_action
from raytrain.rollout.fast_sampling.episode_rows import ChunkTotals, numbers_in
from raytrain.rollout.fast_sampling.forward import Acting
from raytrain.rollout.fast_sampling.fragments import (
    REWARDS,
    Chunk,
    Ended,
    Episodes,
    Fragment,
    Progress,
    action_columns,
    in_lists,
)
from raytrain.rollout.fast_sampling.mean_std_filter import BatchFilter
from raytrain.rollout.fast_sampling.vector_step import StepArrays, stepper, write_batch


@dataclass(frozen=True)
class Wanted:
    """How much to sample: `env_steps` over all environments, or whole `episodes`."""

    env_steps: int | None = None
    episodes: int | None = None


@dataclass
class Sampled:
    """The result of one `sample()`. Seconds are wall-clock."""

    episodes: list[Any] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    env_steps: int = 0
    vector_steps: int = 0
    inference_s: float = 0.0
    env_step_s: float = 0.0
    other_s: float = 0.0


OnEnd: TypeAlias = Callable[[int, Any, list[Any]], None]
"""Called with the index of the environment, its episode (or the last chunk of it), and the chunks
before."""


def mask_reader(config: Any, action_space: Any) -> MaskReader | None:
    """What reads the action masks of an RLlib config's environment; None if it has none."""
    source = MaskSource.of(config.learner_config_dict.get("action_mask"))
    return None if source is None else MaskReader(MaskLayout(action_space), source)


class FragmentSampler:
    """Samples the environments of one group. Between two calls it remembers `progress`,
    and no more."""

    def __init__(
        self,
        runner: Any,
        *,
        id_prefix: str,
        on_end: OnEnd | None = None,
        keep_chunks: bool = False,
    ) -> None:
        """`on_end` is called when an episode ends. `keep_chunks`: with the chunks of it that were
        returned before; otherwise with their totals."""
        self.runner = runner
        self.on_end = on_end
        self.keep_chunks = keep_chunks
        to_module = _ray.runners.connectors(runner)[0]
        self.before = Preprocessing.of(to_module)
        self._id_prefix = id_prefix
        env, config = runner.env, runner.config
        self.num_envs = int(env.num_envs)
        self.action_space = policy_space(env.single_action_space)
        self.episodes_space = to_module.observation_space
        self.for_environment = ActionMapping(
            env.single_action_space,
            normalize=config.normalize_actions,
            clip=config.clip_actions,
        )
        self.masks = mask_reader(config, env.single_action_space)
        self.lookback = int(config.episode_lookback_horizon)
        self.fragment = Fragment(self.lookback, self.num_envs, self.episodes_space)
        self.progress: Progress | None = None
        self.present: Sampled | None = None
        """What the present call of `sample` has so far. Safe to read in any thread."""

    def begin_episodes(self, seed: int | None) -> None:
        """Reset every environment; running episodes are dropped."""
        observations, infos = self.runner.env.reset(seed=seed, options=None)
        n = self.num_envs
        rows = np.zeros_like(self.fragment.observations[: self.lookback + 1])
        write_batch(self.before.encoding, observations, rows[-1])
        if (normalize := self.filter()) is not None:
            normalize(rows[-1])
        masks = None
        if self.masks is not None:
            masks = np.ones((n, self.masks.layout.entries), np.bool_)
            self.masks.read(infos, np.zeros(n, np.bool_), masks)
        born = 0 if self.progress is None else self.progress.born
        self.progress = Progress(
            observations=rows,
            columns={},
            infos=[list(infos)],
            ended=np.zeros(n, np.bool_),
            lengths=np.zeros(n, np.int64),
            returns=np.zeros(n),
            durations=np.zeros(n),
            ids=[self.episode_id(born + index) for index in range(n)],
            born=born + n,
            chunks=[[] for _ in range(n)] if self.keep_chunks else [],
            masks=masks,
        )

    def sample(self, wanted: Wanted, *, explore: bool, version: int) -> Sampled:
        """Sample a fragment. `version`: the sequence number of the weights, which is put
        into the episodes."""
        assert self.progress is not None, "begin_episodes() comes first"
        began = perf_counter_ns()
        run = _Run(self, self.progress, wanted, explore=explore, version=version)
        self.present = sampled = run.sampled
        run.step_all()
        if sampled.vector_steps:
            self.progress = run.finish()
        self.present = None
        sampled.other_s = (
            (perf_counter_ns() - began) / 1e9 - sampled.inference_s - sampled.env_step_s
        )
        return sampled

    def filter(self) -> BatchFilter | None:
        """What normalizes encoded observations, with the statistics that the group has now."""
        connector = self.before.normalizer
        return None if connector is None else BatchFilter(connector, self.before.columns)

    def episode_id(self, number: int) -> str:
        # RLlib draws its ids from the system's entropy. These are the same at every repetition.
        return f"{self._id_prefix}{number:016x}"


class _Run:
    """The sampling of one fragment."""

    def __init__(
        self,
        sampler: FragmentSampler,
        progress: Progress,
        wanted: Wanted,
        *,
        explore: bool,
        version: int,
    ) -> None:
        self._sampler = sampler
        self._wanted = wanted
        self._version = version
        runner = sampler.runner
        # RLlib's estimate of the steps of all groups, for modules whose exploration depends on it.
        self._groups = int(runner.config.num_env_runners or 1)
        self._steps_before = runner.num_env_steps_sampled_lifetime // self._groups
        self._acting = Acting(runner.module, sampler.action_space, explore=explore)
        self._filter = sampler.filter()
        self._stepper = stepper(runner.env, sampler.for_environment.split, sampler.before.encoding)
        self._fragment = sampler.fragment
        self._fragment.begin(progress, self._rows_expected())
        self._progress = replace(
            progress,
            lengths=progress.lengths.copy(),
            returns=progress.returns.copy(),
            durations=progress.durations.copy(),
            ids=list(progress.ids),
            chunks=[list(chunks) for chunks in progress.chunks],
            masks=None if progress.masks is None else progress.masks.copy(),
        )
        self._ended_episodes: list[Any] = []
        # Of the present chunk of each environment: its first row, and its return so far.
        self._start = [sampler.lookback] * sampler.num_envs
        self._returns = np.zeros(sampler.num_envs)
        self._resetting: list[int] = np.flatnonzero(progress.ended).tolist()
        self._times: list[int] = []
        self.sampled = Sampled()

    def _rows_expected(self) -> int:
        if self._wanted.env_steps is None:
            return 256
        # Resets take a row too; `reserve` adds more if needed.
        return -(-self._wanted.env_steps // self._sampler.num_envs) * 9 // 8 + 8

    def step_all(self) -> None:
        """Step until the fragment is complete."""
        fragment, sampled, n = self._fragment, self.sampled, self._sampler.num_envs
        act, step = self._acting.act, self._stepper.step
        for_environment, filtered = self._sampler.for_environment, self._filter
        returns, times = self._returns, self._times
        reader, masks = self._sampler.masks, self._progress.masks
        inference = stepping = 0
        times.append(perf_counter_ns())
        while self._more():
            if fragment.full:
                fragment.reserve(fragment.rows * 3 // 2 + 8)
            row = fragment.rows
            began = perf_counter_ns()
            t = (self._steps_before + sampled.env_steps) * self._groups
            actions, outputs = act(fragment.observations[row], t, masks)
            acted_columns = {**action_columns(actions), **outputs}
            if not acted_columns.keys() <= fragment.columns.keys() or row == fragment.lookback:
                self._make_columns(acted_columns)
            columns = fragment.columns
            for name, values in acted_columns.items():
                columns[name][row] = values
            for_env = for_environment(actions)
            acted = perf_counter_ns()
            rewards = columns[REWARDS][row]
            terminateds, truncateds = fragment.terminateds[row], fragment.truncateds[row]
            observations = fragment.observations[row + 1]
            into = StepArrays(observations, rewards, terminateds, truncateds)
            infos, ended = step(for_env, into)
            stepped = perf_counter_ns()
            inference += acted - began
            stepping += stepped - acted
            times.append(stepped)
            if filtered is not None:
                filtered(observations)
            if reader is not None and masks is not None:
                reader.read(infos, terminateds | truncateds, masks)
            fragment.infos.append(infos)
            fragment.rows = row + 1
            returns += rewards
            sampled.env_steps += n - len(self._resetting)
            sampled.vector_steps += 1
            if self._resetting:
                self._begin_episodes()
            if ended:
                self._end_episodes(terminateds, truncateds)
        self._stepper.leave()
        sampled.inference_s, sampled.env_step_s = inference / 1e9, stepping / 1e9

    def _more(self) -> bool:
        if self._wanted.env_steps is not None:
            return self.sampled.env_steps < self._wanted.env_steps
        assert self._wanted.episodes is not None
        return len(self.sampled.ended) < self._wanted.episodes

    def _make_columns(self, acted: dict[str, Any]) -> None:
        self._fragment.column(REWARDS, np.zeros((1, self._sampler.num_envs)))
        for name, values in acted.items():
            self._fragment.column(name, values[None])

    def _begin_episodes(self) -> None:
        for index in self._resetting:
            self._start[index] = self._fragment.rows
            self._returns[index] = 0.0
        self._resetting = []

    def _end_episodes(self, terminateds: Any, truncateds: Any) -> None:
        progress = self._progress
        for index in np.flatnonzero(terminateds | truncateds).tolist():
            extent = self._extent(index)
            before = self._chunks_before(index)
            self._add_chunk(index)
            ended = Ended(
                **extent,
                terminated=bool(terminateds[index]),
                truncated=bool(truncateds[index]),
                episode_return=float(progress.returns[index]),
                duration_s=float(progress.durations[index]),
                measured=numbers_in(self._fragment.infos[-1][index]),
            )
            if self._sampler.on_end is not None:
                ended = self._call_back(self._sampler.on_end, ended, before)
            self.sampled.ended.append(ended)
            progress.ids[index] = self._sampler.episode_id(progress.born)
            progress.born += 1
            progress.lengths[index] = 0
            progress.returns[index] = progress.durations[index] = 0.0
            self._resetting.append(index)
            if len(self.sampled.ended) == self._wanted.episodes:
                return

    def _chunks_before(self, index: int) -> list[Any]:
        """The chunks of the episode before this fragment, or their totals."""
        progress = self._progress
        if self._sampler.keep_chunks:
            chunks, progress.chunks[index] = progress.chunks[index], []
            return chunks
        length = int(progress.lengths[index])
        totals = float(progress.returns[index]), float(progress.durations[index])
        return [ChunkTotals(length, *totals)] if length else []

    def _call_back(self, on_end: OnEnd, ended: Ended, before: list[Any]) -> Ended:
        """Make the episode, and call back with it. It may change the episode, and so its return."""
        fragment = self._fragment
        self._note_version(ended.start, ended.stop)
        spaces = self._sampler.episodes_space, self._sampler.action_space
        episode = Episodes(fragment, *spaces, single=True).make(ended)
        earlier = sum(chunk.get_duration_s() for chunk in before)
        _ray.runners.set_duration(episode, ended.duration_s - earlier)
        rewards = episode.rewards.data
        with in_lists(episode):
            on_end(ended.env_index, episode, before)
        self._ended_episodes.append(episode)
        if episode.rewards.data is rewards:
            return ended
        whole = episode.get_return() + sum(chunk.get_return() for chunk in before)
        return replace(ended, episode_return=float(whole))

    def _note_version(self, start: int, stop: int) -> None:
        """Put the sequence number of the weights into the rows [start, stop)."""
        like = np.zeros((1, self._sampler.num_envs), np.int64)
        self._fragment.column(WEIGHTS_SEQ_NO, like)[start:stop] = self._version

    def _extent(self, index: int) -> dict[str, Any]:
        """Fields of the `Chunk` that an environment's episode has in this fragment so far."""
        return {
            "env_index": index,
            "start": self._start[index],
            "stop": self._fragment.rows,
            "id": self._progress.ids[index],
            "steps_before": int(self._progress.lengths[index]),
        }

    def _add_chunk(self, index: int) -> None:
        """Add the chunk so far to the totals of the environment's episode."""
        progress, first = self._progress, self._sampler.lookback
        start, stop = self._start[index], self._fragment.rows
        seconds = (self._times[stop - first] - self._times[start - first]) / 1e9
        progress.lengths[index] += stop - start
        progress.returns[index] = float(progress.returns[index]) + float(self._returns[index])
        progress.durations[index] = float(progress.durations[index]) + seconds

    def finish(self) -> Progress:
        """Make the episodes. Returns the progress at the end of the fragment."""
        self._check_log_probabilities()
        fragment, sampled, n = self._fragment, self.sampled, self._sampler.num_envs
        self._note_version(fragment.lookback, fragment.rows)
        episodes = Episodes(fragment, self._sampler.episodes_space, self._sampler.action_space)
        sampled.episodes += (
            [episodes.make(ended) for ended in sampled.ended]
            if self._sampler.on_end is None
            else self._ended_episodes
        )
        ended = np.zeros(n, np.bool_)
        ended[self._resetting] = True
        for index in np.flatnonzero(~ended).tolist():
            if self._wanted.env_steps is not None and self._start[index] < fragment.rows:
                chunk = episodes.make(Chunk(**self._extent(index)))
                sampled.episodes.append(chunk)
                if self._sampler.keep_chunks:
                    # A copy: a learner in this process may change the one that is returned.
                    self._progress.chunks[index].append(copy.deepcopy(chunk))
            self._add_chunk(index)
        observations, columns, infos = fragment.tail()
        return replace(
            self._progress, observations=observations, columns=columns, infos=infos, ended=ended
        )

    def _check_log_probabilities(self) -> None:
        """Actions drawn from NaN are no actions; Torch's own sampling would have raised."""
        first, rows = self._fragment.lookback, self._fragment.rows
        logp = self._fragment.columns.get(Columns.ACTION_LOGP)
        if logp is None or not np.isnan(logp[first:rows]).any():
            return
        row, index = np.argwhere(np.isnan(logp[first:rows]))[0][:2]
        observation = self._fragment.observations[first + row, index]
        raise RaytrainError(
            f"The policy's output for environment {index} is NaN after {row} steps of the "
            f"fragment. {why_no_action(observation)}"
        )
