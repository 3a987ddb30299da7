"""What fails while a group is sampled, told with the environment's file and line.

An error crosses processes as `EnvironmentFailed`: its own class may be known only where the environment
is, and its traceback stays behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import gymnasium as gym
import numpy as np

from raytrain import _ray
from raytrain.config.user_code import by_the_code_itself, describe, failed, text_of
from raytrain.errors import RaytrainError
from raytrain.policy.env_contract import Contract, ContractBroken, method_place
from raytrain.rollout.divergence import first_not_finite, why_no_action


@contextmanager
def environment_errors(env: Any) -> Iterator[None]:
    """Raise what the environments of the vector environment `env` raised in the body, or made Gymnasium
    raise by what they returned, as `EnvironmentFailed`. Other errors pass."""
    try:
        yield
    except RaytrainError:
        raise
    except BaseException as error:
        if not by_the_code_itself(error):
            raise
        if _went_through_an_environment(error) or isinstance(error, SystemExit):
            raise failed(f"the environment raised {describe(error)}", error) from None
        if _went_through_the_vector_env(error):
            raise failed(_why_refused(env, error), error) from None
        if not_finite := _not_finite(env):
            raise failed(not_finite, error) from None
        raise


def _not_finite(env: Any) -> str | None:
    """That a policy failed because of what an environment returned."""
    for observation in _ray.runners.vector_env_attributes(env.unwrapped)["_env_obs"]:
        found = np.asarray(observation) if isinstance(observation, np.ndarray) else np.zeros(0)
        if first_not_finite(found) is not None:
            return f"The policy fails. {why_no_action(found)}"
    return None


def _frames(error: BaseException) -> Iterator[FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _went_through_an_environment(error: BaseException) -> bool:
    return any(isinstance(each.f_locals.get("self"), gym.Env) for each in _frames(error))


def _went_through_the_vector_env(error: BaseException) -> bool:
    return any(
        str(each.f_globals.get("__name__")).startswith("gymnasium.vector")
        for each in _frames(error)
    )


def _why_refused(env: Any, error: BaseException) -> str:
    """Gymnasium's vector environment could not take what one of its environments returned."""
    vector_env = env.unwrapped
    memory = _ray.runners.vector_env_attributes(vector_env)
    for each, observation in zip(vector_env.envs, memory["_env_obs"], strict=True):
        if observation is not None:
            try:
                Contract(each).observation("step", observation)
            except ContractBroken as broken:
                return str(broken)
    place = method_place(vector_env.envs[0], "step")
    where = "" if place is None else f" (step() is {place})"
    return f"Gymnasium cannot take what the environment returned{where}: {text_of(error)}"
