"""Stepping the environments of a group into given arrays, where observations are encoded.

`SyncVectorEnv` copies every observation batch, and packs the infos of its environments into
arrays that RLlib's wrapper takes apart again. Here its environments are stepped one after another
in the same way (NEXT_STEP autoreset: the step after an episode's end resets, whatever the
action), and their results are written straight into the given arrays. Any other vector
environment is stepped as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from gymnasium.wrappers.vector import DictInfoToList

from raytrain import _ray
from raytrain.policy.env_contract import Contract
from raytrain.policy.observations import ObservationEncoding
from raytrain.rollout.fast_sampling.fragments import Array, Infos

Split: TypeAlias = Callable[[Any], Iterable[Any]]

_NOTHING: Any = object()


class StepArrays(NamedTuple):
    """The arrays that the results of one step are written to."""

    observations: Array
    """[N, ...], as the module sees them before a filter"""
    rewards: Array
    """[N] float64"""
    terminateds: Array
    """[N] bool"""
    truncateds: Array
    """[N] bool"""


class Stepper:
    """Steps the N environments of a vector environment once."""

    def __init__(self, env: Any, encoding: ObservationEncoding | None) -> None:
        self._env = env
        self._encoding = encoding

    def step(self, actions: Any, into: StepArrays) -> tuple[Infos, bool]:
        """Step with `actions` [N, ...], nested as the action space, and write the results `into`
        the arrays. Returns the N infos, and whether any episode ended."""
        _, rewards, terminateds, truncateds = into
        returned, rewards[:], terminateds[:], truncateds[:], infos = self._env.step(actions)
        write_batch(self._encoding, returned, into.observations)
        return list(infos), bool(terminateds.any() or truncateds.any())

    def leave(self) -> None:
        """Bring the vector environment's own memory up to date with the last step."""


def stepper(env: Any, split: Split, encoding: ObservationEncoding | None = None) -> Stepper:
    """A stepper for the vector environment of a runner, to be used for one fragment. `split`: see
    `ActionMapping`. `encoding`: of its observations, if they are not taken as they are."""
    if type(env) is DictInfoToList and type(env.env) is SyncVectorEnv:
        return _OneByOne(env.env, split, encoding)
    return Stepper(env, encoding)


def write_batch(encoding: ObservationEncoding | None, observations: Any, into: Array) -> None:
    """Write what a vector environment returns as N observations into an array [N, ...]."""
    if encoding is None:
        into[...] = observations
    else:
        encoding.batch(observations, into)


def resets_at_next_step(env: Any) -> bool:
    """Whether `env` resets an environment in the step after its episode's end."""
    return bool(env.metadata.get("autoreset_mode") == AutoresetMode.NEXT_STEP)


class _OneByOne(Stepper):
    def __init__(
        self, env: SyncVectorEnv, split: Split, encoding: ObservationEncoding | None
    ) -> None:
        super().__init__(env, encoding)
        self._split = split
        memory = _ray.runners.vector_env_attributes(env)
        self._last: list[Any] = list(memory["_env_obs"])
        self._resetting: list[bool] = memory["_autoreset_envs"].tolist()
        self._envs = list(env.envs)
        self._steps = [_inner(single_env).step for single_env in self._envs]
        self._results: StepArrays | None = None

    def step(self, actions: Any, into: StepArrays) -> tuple[Infos, bool]:
        observations, rewards, terminateds, truncateds = into
        last, resetting, steps = self._last, self._resetting, self._steps
        infos: Infos = []
        ended = False
        resets, returned = False, _NOTHING
        try:
            for index, action in enumerate(self._split(actions)):
                returned = _NOTHING
                if resets := resetting[index]:
                    returned = self._envs[index].reset()
                    last[index], info = returned
                    rewards[index] = 0.0
                    terminateds[index] = truncateds[index] = resetting[index] = False
                else:
                    returned = steps[index](action)
                    last[index], rewards[index], terminated, truncated, info = returned
                    terminateds[index] = terminated
                    truncateds[index] = truncated
                    if terminated or truncated:
                        ended = resetting[index] = True
                infos.append(dict(info) if info else {})
            # All at once: `stack` checks shapes and casts as the vector environment does.
            if self._encoding is None:
                np.stack(last, axis=0, out=observations)
            else:
                self._encoding.stack(last, observations)
        except (TypeError, ValueError, LookupError):  # LookupError: a part is missing.
            self._check_contract(len(infos), returned, resets=resets)
            raise
        self._results = into
        return infos, ended

    def _check_contract(self, index: int, returned: Any, *, resets: bool) -> None:
        """Raise ContractBroken if a step failed because of what an environment returned:
        environment `index`, or any one if all were stepped."""
        if index < len(self._envs):
            contract = Contract(self._envs[index])
            if returned is not _NOTHING:
                (contract.reset if resets else contract.step)(returned)
            return
        for env, observation in zip(self._envs, self._last, strict=True):
            Contract(env).observation("step", observation)

    def leave(self) -> None:
        if self._results is None:
            return
        observations, rewards, terminateds, truncateds = (array.copy() for array in self._results)
        if self._encoding is not None:
            space, n = self._env.single_observation_space, len(self._last)
            observations = concatenate(space, self._last, create_empty_array(space, n))
        memory = {
            "_env_obs": list(self._last),
            "_observations": observations,
            "_rewards": rewards,
            "_terminations": terminateds,
            "_truncations": truncateds,
            "_autoreset_envs": np.logical_or(terminateds, truncateds),
        }
        _ray.runners.set_attributes(self._env, memory)


def _inner(env: Any) -> Any:
    """`env` without outer wrappers that have done their checks and now only pass each step on."""
    while (type(env) is gym.wrappers.OrderEnforcing and env.has_reset) or (
        type(env) is gym.wrappers.PassiveEnvChecker and env.checked_step
    ):
        env = env.env
    return env
