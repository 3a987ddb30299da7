"""Which learners can update fast, and with which gradients, decided once when a learner is built.

    hand-written   RLlib's default network of dense layers, on a CPU
    autograd       every other module without a recurrent state; GPUs
    none           RLlib's own update, at RLlib's speed: recurrent modules, connectors of one's own,
                   several optimizers, mixed precision, ...

The first two compute what the third does, to float32 rounding.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical, TorchDiagGaussian
from ray.rllib.core.rl_module.apis import SelfSupervisedLossAPI
from ray.rllib.core.rl_module.torch import TorchRLModule

from raytrain import _ray
from raytrain.policy.rllib_network import NotDefaultNetwork
from raytrain.ppo.fast_update.flat_adam import FlatAdam
from raytrain.ppo.fast_update.mlp_network import MlpPolicy


def why_not_fast(learner: Any) -> str:
    """Why a built learner needs RLlib's own update; empty if it does not."""
    if list(learner.module.keys()) != [DEFAULT_MODULE_ID]:
        return f"the modules are {sorted(learner.module.keys())}"
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    unusual = _ray.learners.unusual_torch_settings(learner.config)
    if unusual:
        return f"{', '.join(unusual)} is set"
    if not learner.config.minibatch_size:
        return "there is no minibatch_size"
    if not _ray.learners.has_default_connectors(learner):
        return "the learner's connectors are not RLlib's own"
    return _why_not_this_module(module) or _why_not_these_optimizers(learner, module)


def _why_not_this_module(module: Any) -> str:
    if not isinstance(module, TorchRLModule) or isinstance(module, SelfSupervisedLossAPI):
        return f"the module is a {type(module).__name__}"
    if module.is_stateful():
        return "the module is recurrent"
    space = module.observation_space
    if not isinstance(space, (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete)):
        return f"the observation space is a {type(space).__name__}"
    return ""


def _why_not_these_optimizers(learner: Any, module: Any) -> str:
    optimizers = _ray.learners.optimizers(learner)
    if len(optimizers) != 1:
        return f"there are {len(optimizers)} optimizers"
    _, optimizer = optimizers[0]
    served = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    trained = [id(parameter) for parameter in module.parameters() if parameter.requires_grad]
    everything = {id(parameter) for parameter in module.parameters()}
    if set(served) != everything or len(trained) != len(served):
        return "the optimizer does not train all parameters of the module"
    return FlatAdam.why_not(optimizer)


def hand_written_network(learner: Any, module: Any) -> MlpPolicy | str:
    """The network whose gradients are written by hand, or why autograd must compute them."""
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
    if not served:
        return f"the action space is {actions}, with {distribution.__name__}"
    try:
        return MlpPolicy.of(module)
    except NotDefaultNetwork as error:
        return str(error)
