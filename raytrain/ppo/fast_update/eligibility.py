"""Which learners can update fast, and with which gradients, decided once when a learner is built.

    hand-written   RLlib's default network of dense layers, on a CPU
    autograd       every other module without a recurrent state; losses of one's own; GPUs
    none           RLlib's own update, at RLlib's speed: recurrent modules, connectors of one's own,
                   several optimizers, other methods of a learner of one's own, ...

The first two compute what the third does, to float32 rounding.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical, TorchDiagGaussian
from ray.rllib.core.rl_module.apis import SelfSupervisedLossAPI
from ray.rllib.core.rl_module.torch import TorchRLModule

from raytrain import _ray
from raytrain.policy.rllib_network import NotDefaultNetwork
from raytrain.ppo.fast_update.flat_adam import FlatAdam
from raytrain.ppo.fast_update.mlp_network import MlpPolicy

_MAY_OVERRIDE = frozenset(
    {
        "build",
        "configure_optimizers",
        "configure_optimizers_for_module",
        "compute_loss_for_module",
        "before_gradient_based_update",
        "after_gradient_based_update",
        "get_state",
        "set_state",
        "rl_module_required_apis",
        "_update_module_kl_coeff",
    }
)
"""Methods of a learner that the fast update calls, or does not touch. What else a class of the
user's own overrides is replaced by it."""


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
    for kind in _own_classes(learner):
        for name in sorted(vars(kind).keys() - _MAY_OVERRIDE):
            # `_abc_impl` is Python's own.
            if hasattr(PPOTorchLearner, name) and not name.startswith(("__", "_abc_")):
                return f"{kind.__name__}.{name} is not RLlib's"
    return _why_not_this_module(module) or _why_not_these_optimizers(learner, module)


def has_own_loss(learner: Any) -> bool:
    """Whether the loss is one of the user's own."""
    return any("compute_loss_for_module" in vars(kind) for kind in _own_classes(learner))


def _own_classes(learner: Any) -> list[type]:
    """The classes of a learner that are neither raytrain's nor those that RLlib's PPO has."""
    lineage = type(learner).__mro__
    above = lineage[: lineage.index(PPOTorchLearner)]
    return [kind for kind in above if not kind.__module__.startswith(("raytrain.", "ray.train."))]


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
    if has_own_loss(learner):
        return "the loss is not RLlib's"
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
