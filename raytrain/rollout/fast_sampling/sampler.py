"""Sampling a group's fragment into arrays, a vector step at a time.

    observations --act--> actions --step--> observations, rewards, flags      (one row of `Fragment`)

What comes out are RLlib's episodes, bit for bit those that its own env runner makes from the same
random streams, in its order: first the finished ones as they ended, then the running ones by
environment. A step that resets an environment belongs to no episode and is not counted.

Every info that an environment returns is kept in its episode, as the environment gave it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

import numpy as np
from ray.rllib.core.columns import Columns
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from raytrain.errors import RaytrainError
from raytrain.policy.env_actions import LeafMapping
from raytrain.rollout.divergence import why_no_action
from raytrain.rollout.fast_sampling.episode_rows import numbers_in
from raytrain.rollout.fast_sampling.forward import Acting
from raytrain.rollout.fast_sampling.fragments import (
    ACTIONS,
    REWARDS,
    Ended,
    Episodes,
    Fragment,
    Progress,
)
from raytrain.rollout.fast_sampling.mean_std_filter import BatchFilter
from raytrain.rollout.fast_sampling.vector_step import StepArrays, stepper


@dataclass(frozen=True)
class Wanted:
    """How much to sample: `env_steps` over all environments, or whole `episodes`."""

    env_steps: int | None = None
    episodes: int | None = None


@dataclass
class Sampled:
    """What one `sample()` brought. Seconds are wall-clock."""

    episodes: list[Any] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    measured: list[dict[str, float]] = field(default_factory=list)
    """The numbers of the last info of each in `ended`."""
    env_steps: int = 0
    vector_steps: int = 0
    inference_s: float = 0.0
    env_step_s: float = 0.0
    other_s: float = 0.0


class FragmentSampler:
    """Samples the environments of one group. Its whole memory between calls is `progress`."""

    def __init__(self, runner: Any, filter_connector: Any, *, id_prefix: str) -> None:
        self._runner = runner
        self._filter_connector = filter_connector
        self._id_prefix = id_prefix
        env, config = runner.env, runner.config
        self._num_envs = int(env.num_envs)
        self._action_space = env.single_action_space
        self._observation_space = env.single_observation_space
        self._episodes_space = (
            filter_connector.observation_space if filter_connector else self._observation_space
        )
        self._for_environment = LeafMapping.of(
            self._action_space, normalize=config.normalize_actions, clip=config.clip_actions
        )
        self._lookback = int(config.episode_lookback_horizon)
        self._fragment = Fragment(self._lookback, self._num_envs, self._observation_space)
        self.progress: Progress | None = None
        self._present: _Run | None = None

    def begin_episodes(self, seed: int | None) -> None:
        """Reset every environment; running episodes are dropped."""
        observations, infos = self._runner.env.reset(seed=seed, options=None)
        n = self._num_envs
        rows = np.zeros((self._lookback + 1, *observations.shape), observations.dtype)
        rows[-1] = observations
        if self._filter_connector is not None:
            BatchFilter(self._filter_connector)(rows[-1])
        born = 0 if self.progress is None else self.progress.born
        self.progress = Progress(
            observations=rows,
            columns={},
            infos=[list(infos)],
            ended=np.zeros(n, np.bool_),
            lengths=np.zeros(n, np.int64),
            returns=np.zeros(n),
            durations=np.zeros(n),
            ids=[self._id(born + index) for index in range(n)],
            born=born + n,
        )

    def sample(self, wanted: Wanted, *, explore: bool, version: int) -> Sampled:
        """Sample a fragment. `version`: the sequence number of the weights, which goes into the
        episodes."""
        assert self.progress is not None, "begin_episodes() comes first"
        began = perf_counter_ns()
        self._present = run = _Run(self, wanted, explore=explore)
        run.step_on()
        if run.fragment.rows > self._lookback:
            version_column = run.fragment.column(WEIGHTS_SEQ_NO, _versions(self._num_envs))
            version_column[self._lookback : run.fragment.rows] = version
        sampled = run.finish()
        self._present = None
        sampled.other_s = (
            (perf_counter_ns() - began) / 1e9 - sampled.inference_s - sampled.env_step_s
        )
        return sampled

    def present_sampling(self) -> str:
        """How far the present call of `sample` is, as the end of a sentence. Safe in any thread."""
        return "" if self._present is None else self._present.so_far()

    def _id(self, number: int) -> str:
        # RLlib draws its ids from the system's entropy. These are the same at every repetition.
        return f"{self._id_prefix}{number:016x}"


class _Run:
    """One fragment in the making."""

    def __init__(self, sampler: FragmentSampler, wanted: Wanted, *, explore: bool) -> None:
        progress = sampler.progress
        assert progress is not None
        self._sampler = sampler
        self._progress = progress
        self._wanted = wanted
        # RLlib's estimate of the steps of all groups, for modules whose exploration depends on it.
        self._groups = int(sampler._runner.config.num_env_runners or 1)
        self._steps_before_us = sampler._runner.num_env_steps_sampled_lifetime // self._groups
        self._acting = Acting(sampler._runner.module, sampler._action_space, explore=explore)
        connector = sampler._filter_connector
        self._filter = None if connector is None else BatchFilter(connector)
        self._stepper = stepper(sampler._runner.env)
        self.fragment = sampler._fragment
        self.fragment.begin(progress, self._rows_expected())
        n = sampler._num_envs
        self._start = [sampler._lookback] * n
        self._steps_before: list[int] = progress.lengths.tolist()
        self._ids = list(progress.ids)
        self._born = progress.born
        self._returns = np.zeros(n)  # of this chunk
        self._returns_before: list[float] = progress.returns.tolist()
        self._durations_before: list[float] = progress.durations.tolist()
        self._resetting: list[int] = np.flatnonzero(progress.ended).tolist()
        self._times: list[int] = []
        self._sampled = Sampled()

    def _rows_expected(self) -> int:
        if self._wanted.env_steps is None:
            return 256
        # Resets take a row too; `reserve` makes room for more.
        return -(-self._wanted.env_steps // self._sampler._num_envs) * 9 // 8 + 8

    def step_on(self) -> None:
        """Step until there is what is wanted."""
        fragment, sampled, n = self.fragment, self._sampled, self._sampler._num_envs
        act, step = self._acting.act, self._stepper.step
        for_environment, filtered = self._sampler._for_environment, self._filter
        returns, times = self._returns, self._times
        inference = stepping = 0
        times.append(perf_counter_ns())
        while self._more():
            if fragment.full:
                fragment.reserve(fragment.rows * 3 // 2 + 8)
            row = fragment.rows
            began = perf_counter_ns()
            t = (self._steps_before_us + sampled.env_steps) * self._groups
            actions, outputs = act(fragment.observations[row], t)
            if not outputs.keys() <= fragment.columns.keys() or row == fragment.lookback:
                self._make_columns(actions, outputs)
            columns = fragment.columns
            columns[ACTIONS][row] = actions
            for name, values in outputs.items():
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

    def so_far(self) -> str:
        """For `FragmentSampler.present_sampling`."""
        ended = len(self._sampled.ended)
        episodes = (
            "no episode has" if not ended else f"{ended} episode{'s have' if ended > 1 else ' has'}"
        )
        return f": {episodes} ended in {self._sampled.env_steps:,} steps"

    def _more(self) -> bool:
        if self._wanted.env_steps is not None:
            return self._sampled.env_steps < self._wanted.env_steps
        assert self._wanted.episodes is not None
        return len(self._sampled.ended) < self._wanted.episodes

    def _make_columns(self, actions: Any, outputs: dict[str, Any]) -> None:
        self.fragment.column(ACTIONS, actions[None])
        self.fragment.column(REWARDS, np.zeros((1, self._sampler._num_envs)))
        for name, values in outputs.items():
            self.fragment.column(name, values[None])

    def _begin_episodes(self) -> None:
        for index in self._resetting:
            self._start[index] = self.fragment.rows
            self._returns[index] = 0.0
        self._resetting = []

    def _end_episodes(self, terminateds: Any, truncateds: Any) -> None:
        row = self.fragment.rows
        for index in np.flatnonzero(terminateds | truncateds).tolist():
            self._sampled.ended.append(
                Ended(
                    env_index=index,
                    start=self._start[index],
                    stop=row,
                    id=self._ids[index],
                    terminated=bool(terminateds[index]),
                    truncated=bool(truncateds[index]),
                    steps_before=self._steps_before[index],
                    episode_return=float(self._returns[index]) + self._returns_before[index],
                    duration_s=self._seconds(index, row) + self._durations_before[index],
                )
            )
            self._sampled.measured.append(numbers_in(self.fragment.infos[-1][index]))
            self._ids[index] = self._sampler._id(self._born)
            self._born += 1
            self._steps_before[index] = 0
            self._returns_before[index] = self._durations_before[index] = 0.0
            self._resetting.append(index)
            if len(self._sampled.ended) == self._wanted.episodes:
                return

    def _seconds(self, index: int, row: int) -> float:
        first = self._sampler._lookback
        return (self._times[row - first] - self._times[self._start[index] - first]) / 1e9

    def finish(self) -> Sampled:
        """Make the episodes, and put the sampler's progress where this fragment ends."""
        fragment, sampled = self.fragment, self._sampled
        if not sampled.vector_steps:
            return sampled
        self._check_log_probabilities()
        episodes = Episodes(fragment, self._sampler._episodes_space, self._sampler._action_space)
        for each in sampled.ended:
            episode = episodes.make(
                each.env_index,
                each.start,
                each.stop,
                episode_id=each.id,
                steps_before=each.steps_before,
                terminated=each.terminated,
                truncated=each.truncated,
            )
            sampled.episodes.append(episode)
        if self._wanted.env_steps is not None:
            sampled.episodes += self._running(episodes)
        self._put_progress()
        return sampled

    def _running(self, episodes: Episodes) -> list[Any]:
        row = self.fragment.rows
        return [
            episodes.make(
                index,
                self._start[index],
                row,
                episode_id=self._ids[index],
                steps_before=self._steps_before[index],
            )
            for index in range(self._sampler._num_envs)
            if index not in self._resetting and self._start[index] < row
        ]

    def _put_progress(self) -> None:
        row = self.fragment.rows
        ended = np.zeros(self._sampler._num_envs, np.bool_)
        ended[self._resetting] = True
        lengths, returns, durations = (
            self._steps_before,
            self._returns_before,
            self._durations_before,
        )
        for index in np.flatnonzero(~ended).tolist():
            lengths[index] += row - self._start[index]
            returns[index] += float(self._returns[index])
            durations[index] += self._seconds(index, row)
        observations, columns, infos = self.fragment.tail()
        self._sampler.progress = Progress(
            observations=observations,
            columns=columns,
            infos=infos,
            ended=ended,
            lengths=np.array(lengths, np.int64),
            returns=np.array(returns),
            durations=np.array(durations),
            ids=self._ids,
            born=self._born,
        )

    def _check_log_probabilities(self) -> None:
        """Actions drawn from NaN are no actions; Torch's own sampling would have raised."""
        first, rows = self.fragment.lookback, self.fragment.rows
        logp = self.fragment.columns.get(Columns.ACTION_LOGP)
        if logp is None or not np.isnan(logp[first:rows]).any():
            return
        row, index = np.argwhere(np.isnan(logp[first:rows]))[0][:2]
        observation = self.fragment.observations[first + row, index]
        raise RaytrainError(
            f"The policy's output for environment {index} is NaN after {row} steps of the fragment. "
            f"{why_no_action(observation)}"
        )


def _versions(num_envs: int) -> Any:
    return np.zeros((1, num_envs), np.int64)
