"""Which env groups can be sampled into arrays (`sampler`), and why others cannot.

The array sampler does what RLlib's default connectors do, without connectors, and what encodes and
normalizes observations (see `policy.rllib_observations`). So it can replace them only if there are
no other connectors, if the module sees one array, and if no callback looks at running episodes.
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.rl_module.torch import TorchRLModule

from raytrain import _ray
from raytrain.policy.env_actions import policy_space
from raytrain.policy.rllib_observations import Preprocessing
from raytrain.rng import preserved
from raytrain.rollout.fast_sampling.forward import Acting
from raytrain.rollout.fast_sampling.fragments import action_columns
from raytrain.rollout.fast_sampling.own_callbacks import OF_RUNNING_EPISODES, hooks
from raytrain.rollout.fast_sampling.vector_step import resets_at_next_step


def why_not(runner: Any) -> str | None:
    """Why RLlib must sample for `runner`; None if it can be sampled into arrays."""
    return (
        _about_the_config(runner.config)
        or _about_the_spaces(runner.env)
        or _about_the_connectors(runner)
        or _about_the_module(runner)
    )


def _about_the_config(config: Any) -> str | None:
    if config.is_multi_agent:
        return "the environment is multi-agent"
    found = [name for hook in OF_RUNNING_EPISODES for name, _ in hooks(config, hook)]
    if found:
        return f"the callback {found[0]} looks at running episodes"
    if config.restart_failed_sub_environments:
        return "restart_failed_sub_environments replaces environments between two steps"
    if not config.episodes_to_numpy:
        return "episodes_to_numpy is off"
    return None


def _about_the_spaces(env: Any) -> str | None:
    if not resets_at_next_step(env):
        return "the vector environment does not reset at the next step after an episode's end"
    return None


def _about_the_connectors(runner: Any) -> str | None:
    to_module, to_env = _ray.runners.connectors(runner)
    before = Preprocessing.of(to_module)
    if before.normalizer is not None and list(before.normalizer.get_state()) != [None]:
        return "its MeanStdFilter is a multi-agent one"
    observations = runner.env.single_observation_space
    if before.encoding is None and type(observations) is not gym.spaces.Box:
        return f"its module sees observations of {type(observations).__name__}, not one array"
    for pipeline, own, defaults in (
        ("env-to-module", before.others, _ray.connectors.ENV_TO_MODULE),
        ("module-to-env", to_env.connectors, _ray.connectors.MODULE_TO_ENV),
    ):
        what = _ray.connectors.why_not_default(map(type, own), defaults)
        if what:
            return f"its {pipeline} connector pipeline {what}"
    if _ray.runners.state_server(runner) is not None:
        return "it pulls its weights from a state server"
    return None


def _about_the_module(runner: Any) -> str | None:
    module = runner.module
    if not isinstance(module, TorchRLModule):
        return f"its module is a {type(module).__name__}"
    if module.is_stateful():
        return "its module is stateful"
    if type(module) is DefaultPPOTorchRLModule:
        return None
    # A custom module: a copy of it is called once, to see what it returns.
    env = runner.env
    space = _ray.runners.connectors(runner)[0].observation_space
    zeros = np.zeros((env.num_envs, *space.shape), space.dtype)
    with preserved(), torch.no_grad():
        acting = Acting(copy.deepcopy(module), policy_space(env.single_action_space), explore=True)
        actions, outputs = acting.act(zeros, 0)
    for name, value in {**action_columns(actions), **outputs}.items():
        if not isinstance(value, np.ndarray) or value.shape[:1] != (env.num_envs,):
            return (
                f"its module {type(module).__name__} returns {name!r} in another form than arrays"
            )
    return None
