"""Which env groups can be sampled into arrays (`sampler`), and why others cannot.

The array sampler does what RLlib's default connectors do, without connectors. So it can replace
them only if there are no other connectors, if observations and actions are single arrays, and if no
callback looks at running episodes.
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch import TorchRLModule

from raytrain import _ray
from raytrain.rng import preserved
from raytrain.rollout.fast_sampling.forward import Acting
from raytrain.rollout.fast_sampling.own_callbacks import OF_RUNNING_EPISODES, hooks
from raytrain.rollout.fast_sampling.vector_step import resets_at_next_step


def observation_filter(runner: Any) -> Any | None:
    """The MeanStdFilter connector of a runner's env-to-module pipeline, or None."""
    pieces = _ray.runners.connectors(runner)[0].connectors
    return pieces[0] if pieces and type(pieces[0]) is MeanStdFilter else None


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
    observations, actions = env.single_observation_space, env.single_action_space
    if type(observations) is not gym.spaces.Box:
        return f"its observation space is {type(observations).__name__}, not one Box"
    if type(actions) is gym.spaces.Box:
        if len(actions.shape) == 1 and np.issubdtype(actions.dtype, np.floating):
            return None
        return f"its actions are a Box of shape {actions.shape} and dtype {actions.dtype}"
    if type(actions) is gym.spaces.Discrete:
        return None
    if type(actions) is gym.spaces.MultiDiscrete and actions.nvec.ndim == 1:
        return None
    return f"its action space is {actions}"


def _about_the_connectors(runner: Any) -> str | None:
    to_module, to_env = _ray.runners.connectors(runner)
    pieces = list(to_module.connectors)
    normalising = observation_filter(runner)
    if normalising is not None:
        if list(normalising.get_state()) != [None]:
            return "its MeanStdFilter is a multi-agent one"
        pieces = pieces[1:]
    for pipeline, own, defaults in (
        ("env-to-module", pieces, _ray.connectors.ENV_TO_MODULE),
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
    space = env.single_observation_space
    zeros = np.zeros((env.num_envs, *space.shape), space.dtype)
    with preserved(), torch.no_grad():
        acting = Acting(copy.deepcopy(module), env.single_action_space, explore=True)
        actions, outputs = acting.act(zeros, 0)
    for name, value in {Columns.ACTIONS: actions, **outputs}.items():
        if not isinstance(value, np.ndarray) or value.shape[:1] != (env.num_envs,):
            return (
                f"its module {type(module).__name__} returns {name!r} in another form than arrays"
            )
    return None
