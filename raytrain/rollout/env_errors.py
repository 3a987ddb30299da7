"""Errors while a group is sampled, reported with the environment's file and line.

An error crosses processes as `EnvironmentFailed`: its own class may be known only where the
environment is, and its traceback stays behind.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np

from raytrain import _ray
from raytrain.config.user_code import by_the_code_itself, failed, text_of, told
from raytrain.errors import RaytrainError
from raytrain.policy.env_contract import Contract, ContractBroken, method_place
from raytrain.rollout.divergence import first_not_finite, why_no_action


@contextmanager
def environment_errors(env: Any) -> Iterator[None]:
    """Raise what the environments of the vector environment `env` raised in the body, or made
    Gymnasium raise by what they returned, as `EnvironmentFailed`. Other errors pass."""
    try:
        yield
    except RaytrainError:
        raise
    except BaseException as error:
        if not by_the_code_itself(error):
            raise
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        owners = (frame.f_locals.get("self") for frame in frames)
        if isinstance(error, SystemExit) or any(isinstance(owner, gym.Env) for owner in owners):
            raise failed(f"the environment raised {told(error)}", error) from None
        modules = (str(frame.f_globals.get("__name__")) for frame in frames)
        if any(module.startswith("gymnasium.vector") for module in modules):
            raise failed(_why_refused(env, error), error) from None
        if not_finite := _not_finite(env):
            raise failed(not_finite, error) from None
        raise


def _not_finite(env: Any) -> str | None:
    """The message, if the policy failed because the environment returned NaN or infinity."""
    for observation in _ray.runners.vector_env_attributes(env.unwrapped)["_env_obs"]:
        if isinstance(observation, np.ndarray) and first_not_finite(observation) is not None:
            return f"The policy failed. {why_no_action(observation)}"
    return None


def _why_refused(env: Any, error: BaseException) -> str:
    """Why Gymnasium's vector environment cannot take what one of its environments returned."""
    vector_env = env.unwrapped
    observations = _ray.runners.vector_env_attributes(vector_env)["_env_obs"]
    for single_env, observation in zip(vector_env.envs, observations, strict=True):
        if observation is not None:
            try:
                Contract(single_env).observation("step", observation)
            except ContractBroken as broken:
                return str(broken)
    place = method_place(vector_env.envs[0], "step")
    where = "" if place is None else f" (step() is {place})"
    return f"Gymnasium cannot take what the environment returned{where}: {text_of(error)}"
