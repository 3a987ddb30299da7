"""Which of three ways a learner updates in, decided once when it is built.

    hand-written   RLlib's default network of dense layers, on a CPU
    autograd       every other module without a recurrent state; GPUs
    rllib          whatever else: RLlib's own update, at RLlib's speed

The first two compute what the third does, to float32 rounding. What they do not know (recurrent
modules, connectors of one's own, several optimizers, mixed precision, ...) is never attempted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical, TorchDiagGaussian
from ray.rllib.core.rl_module.apis import SelfSupervisedLossAPI
from ray.rllib.core.rl_module.torch import TorchRLModule

from raytrain import _ray
from raytrain.policy.rllib_network import NotDefaultNetwork
from raytrain.ppo.fast_update.flat_adam import FlatAdam
from raytrain.ppo.fast_update.mlp_network import MlpPolicy

HAND_WRITTEN, AUTOGRAD, RLLIB = "hand-written", "autograd", "rllib"


@dataclass(frozen=True)
class Tier:
    """The way of an update, and why it is not a leaner one (empty for the leanest)."""

    name: str
    reason: str = ""
    network: MlpPolicy | None = None
    """The network's layers, in the hand-written tier."""


def choose_tier(learner: Any, module_id: str) -> Tier:
    """The leanest tier that serves this learner, which RLlib has built."""
    reason = _why_rllib(learner, module_id)
    if reason:
        return Tier(RLLIB, reason)
    module = learner.module[module_id].unwrapped()
    reason = _why_autograd(learner, module)
    if reason:
        return Tier(AUTOGRAD, reason)
    try:
        return Tier(HAND_WRITTEN, network=MlpPolicy.of(module))
    except NotDefaultNetwork as error:
        return Tier(AUTOGRAD, str(error))


def _why_rllib(learner: Any, module_id: str) -> str:
    config = learner.config
    if list(learner.module.keys()) != [module_id]:
        return f"the modules are {sorted(learner.module.keys())}"
    module = learner.module[module_id].unwrapped()
    unusual = _ray.learners.unusual_torch_settings(config)
    if unusual:
        return f"{', '.join(unusual)} is set"
    if not config.minibatch_size:
        return "there is no minibatch_size"
    if not _ray.learners.has_default_connectors(learner):
        return "the learner's connectors are not RLlib's own"
    return _why_not_this_module(module) or _why_not_these_optimizers(learner, module)


def _why_not_this_module(module: Any) -> str:
    if not isinstance(module, TorchRLModule) or isinstance(module, SelfSupervisedLossAPI):
        return f"the module is a {type(module).__name__}"
    if module.is_stateful():
        return "the module is recurrent"
    for name, space in (("observation", module.observation_space), ("action", module.action_space)):
        if not isinstance(space, (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete)):
            return f"the {name} space is a {type(space).__name__}"
    return ""


def _why_not_these_optimizers(learner: Any, module: Any) -> str:
    optimizers = _ray.learners.optimizers(learner)
    if len(optimizers) != 1:
        return f"there are {len(optimizers)} optimizers"
    _, optimizer = optimizers[0]
    served = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if {id(p) for p in served} != {id(p) for p in module.parameters()} or len(trained) != len(
        served
    ):
        return "the optimizer does not train all parameters of the module"
    return FlatAdam.serves(optimizer) or ""


def _why_autograd(learner: Any, module: Any) -> str:
    if torch.device(learner.device).type != "cpu":
        return f"the device is {learner.device}"
    if not learner.config.use_critic:
        return "use_critic is false"
    observations, actions = module.observation_space, module.action_space
    if not (
        isinstance(observations, gym.spaces.Box)
        and len(observations.shape) == 1
        and np.issubdtype(observations.dtype, np.floating)
    ):
        return f"the observation space is {observations}"
    distribution = module.get_train_action_dist_cls()
    if distribution is not module.get_exploration_action_dist_cls():
        return "training and exploration use different action distributions"
    if isinstance(actions, gym.spaces.Discrete):
        served = distribution is TorchCategorical
    else:
        box = isinstance(actions, gym.spaces.Box) and len(actions.shape) == 1
        served = box and distribution is TorchDiagGaussian
    return "" if served else f"the action space is {actions}, with {distribution.__name__}"
