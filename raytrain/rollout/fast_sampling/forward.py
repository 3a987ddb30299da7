"""One batched forward pass per step: from observations to actions and the learner's inputs.

RLlib uses its module, an action distribution object and six connectors. Here the same operations
run on the same tensors in the same order, without the code around them, so that actions,
`action_logp` and `action_dist_inputs` are RLlib's to the last bit and draw the same random numbers:

    Discrete        softmax of the normalised logits, one draw by the exponential trick of
                    `torch.multinomial` (the largest p / q of q ~ Exp(1))
    MultiDiscrete   the same for each component, in order
    Box             `torch.normal(mean, exp(log_std))`, log density as `torch.distributions.Normal`

Everything else that RLlib can sample from (no exploration, custom distributions, custom modules)
goes through RLlib's own objects, still as one batch and without connectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical, TorchDiagGaussian
from ray.rllib.core.models.torch.encoder import (
    TorchActorCriticEncoder,
    TorchCNNEncoder,
    TorchMLPEncoder,
)
from ray.rllib.core.models.torch.heads import TorchMLPHead

Array: TypeAlias = np.ndarray[Any, Any]
Layer: TypeAlias = Callable[[Any], Any]
Outputs: TypeAlias = dict[str, Any]
Sampling: TypeAlias = Callable[[Any], tuple[Any, Any]]
"""From distribution inputs [N, D] to actions [N, ...] and their log probabilities [N]."""

_LOG_SQRT_2PI = math.log(math.sqrt(2 * math.pi))


class Acting:
    """The policy of one fragment: its weights must not be replaced while it is in use.

    `act(observations, t)` returns actions and model outputs as arrays [N, ...], with the dtypes
    that RLlib's connectors give them (int32 and float32), in RLlib's order of columns. The arrays
    are valid until the next call. `t`: the environment steps sampled so far, for modules whose
    exploration depends on it.
    """

    def __init__(self, module: Any, action_space: gym.Space[Any], *, explore: bool) -> None:
        self._module = module
        self._explore = explore
        self._device = next((p.device for p in module.parameters()), torch.device("cpu"))
        self._sampling = _sampling(module, action_space) if explore else None
        self._layers: list[Layer] | None = None
        if self._sampling is not None and self._device.type == "cpu":
            self._layers = _layers(module)
        self._observations: Any = None  # Made for the first batch.

    def act(self, observations: Array, t: int) -> tuple[Array, dict[str, Array]]:
        if self._observations is None:
            self._allocate(observations)
        self._array[...] = observations
        if self._layers is not None:
            return self._act_directly(self._layers)
        batch = {Columns.OBS: self._observations.to(self._device, copy=True)}
        with torch.no_grad():
            if self._explore:
                outputs: Outputs = dict(self._module.forward_exploration(batch, t=t))
            else:
                outputs = dict(self._module.forward_inference(batch))
            if Columns.ACTIONS not in outputs:
                inputs = outputs[Columns.ACTION_DIST_INPUTS]
                if self._sampling is not None:
                    actions, logp = self._sampling(inputs)
                else:
                    actions, logp = self._by_distribution(inputs)
                outputs[Columns.ACTIONS] = actions
                outputs.setdefault(Columns.ACTION_LOGP, logp)
        arrays = {name: as_array(value) for name, value in outputs.items()}
        return arrays.pop(Columns.ACTIONS), arrays

    def _allocate(self, observations: Array) -> None:
        # No 64 bits, as in RLlib's NumpyToTensor. The tensor shares the array's memory.
        wide = observations.dtype == np.float64
        self._array = np.zeros(observations.shape, np.float32 if wide else observations.dtype)
        self._observations = torch.from_numpy(self._array)

    def _act_directly(self, layers: list[Layer]) -> tuple[Array, dict[str, Array]]:
        with torch.inference_mode():
            x = self._observations
            for layer in layers:
                x = layer(x)
            actions, logp = self._sampling(x)  # type: ignore[misc]
            return as_array(actions), {
                Columns.ACTION_DIST_INPUTS: x.numpy(),
                Columns.ACTION_LOGP: logp.numpy(),
            }

    def _by_distribution(self, inputs: Any) -> tuple[Any, Any]:
        if self._explore:
            distribution = self._module.get_exploration_action_dist_cls().from_logits(inputs)
        else:
            kind = self._module.get_inference_action_dist_cls()
            distribution = kind.from_logits(inputs).to_deterministic()
        actions = distribution.sample()
        return actions, distribution.logp(actions)


def as_array(value: Any) -> Any:
    """On the CPU and without 64 bits, as RLlib's TensorToNumpy converts."""
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
    if not isinstance(array, np.ndarray):
        return array
    if array.dtype == np.float64:
        return array.astype(np.float32)
    if array.dtype == np.int64:
        return array.astype(np.int32)
    return array


def _layers(module: Any) -> list[Layer] | None:
    """The default PPO module from observations to distribution inputs, as a list of functions; None
    for any other module."""
    if type(module) is not DefaultPPOTorchRLModule or module.is_stateful():
        return None
    encoder = module.encoder
    if type(encoder) is not TorchActorCriticEncoder or _hooked(module):
        return None
    actor = encoder.encoder if encoder.config.shared else encoder.actor_encoder
    if type(actor) not in (TorchMLPEncoder, TorchCNNEncoder):
        return None
    # For dropout and the like; RLlib's exploration pass does the same.
    module.eval()
    layers = _flat(actor.net)
    if type(module.pi) is not TorchMLPHead:
        return [*layers, module.pi.forward]
    layers += _flat(module.pi.net)
    if module.pi.clip_log_std:
        bound = module.pi.log_std_clip_param_const
        layers.append(partial(_clip_log_std, low=-bound, high=bound))
    return layers


def _flat(net: torch.nn.Module) -> list[Layer]:
    """`net` as functions, without the modules that only call other modules."""
    inner: Any = getattr(net, "mlp", net)
    if type(inner) is not torch.nn.Sequential:
        return [inner.forward]
    layers: list[Layer] = []
    dense = False  # Whether the layer before returns a tensor that nothing else refers to.
    for layer in inner:
        if type(layer) is torch.nn.Linear and layer.bias is not None:
            layers.append(_Dense(layer))
            dense = True
            continue
        if type(layer) is torch.nn.Tanh and dense:
            layers.append(torch.tanh_)
        elif type(layer) is torch.nn.ReLU and dense:
            layers.append(torch.relu_)
        else:
            layers.append(layer.forward)
        dense = False
    return layers


class _Dense:
    """`torch.nn.functional.linear`, which is this `addmm`, into reused memory: allocating and
    freeing a small tensor takes longer than computing it."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        self._bias, self._weight = layer.bias.detach(), layer.weight.detach().t()
        self._out: Any = None

    def __call__(self, x: Any) -> Any:
        if self._out is None:
            self._out = torch.empty(x.shape[0], self._bias.shape[0], dtype=self._bias.dtype)
        return torch.addmm(self._bias, x, self._weight, out=self._out)


def _hooked(module: torch.nn.Module) -> bool:
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def _clip_log_std(outputs: Any, low: Any, high: Any) -> Any:
    outputs.chunk(2, dim=-1)[1].clamp_(low, high)
    return outputs


def _sampling(module: Any, space: gym.Space[Any]) -> Sampling | None:
    """How to sample from the module's distribution; None if it is not one of RLlib's defaults."""
    kind = module.get_exploration_action_dist_cls()
    if kind is TorchCategorical:
        return _categorical
    if kind is TorchDiagGaussian:
        return _gaussian
    # RLlib creates a class for each MultiDiscrete space.
    if isinstance(space, gym.spaces.MultiDiscrete) and type(module) is DefaultPPOTorchRLModule:
        return partial(_categoricals, sizes=[int(n) for n in space.nvec])
    return None


def _categorical(logits: Any) -> tuple[Any, Any]:
    # The operations of logsumexp take about a third of its time. (It replaces infinite maxima by 0;
    # here they become NaN, which the sampler reports.)
    largest = logits.amax(-1, True)
    normalised = logits - (logits - largest).exp_().sum(-1, True).log_().add_(largest)
    race = torch.softmax(normalised, -1)
    race.div_(torch.empty_like(race).exponential_())
    actions = race.argmax(-1, True)
    return actions.squeeze(-1), normalised.gather(-1, actions).squeeze(-1)


def _categoricals(logits: Any, sizes: list[int]) -> tuple[Any, Any]:
    drawn = [_categorical(part) for part in torch.split(logits, sizes, dim=-1)]
    actions = torch.stack([action for action, _ in drawn], dim=-1)
    return actions, torch.sum(torch.stack([logp for _, logp in drawn]), dim=0)


def _gaussian(inputs: Any) -> tuple[Any, Any]:
    mean, log_std = inputs.chunk(2, dim=-1)
    std = log_std.exp()
    actions = torch.normal(mean, std)
    logp = (actions - mean).pow_(2).neg_().div_(std.pow(2).mul_(2))
    return actions, logp.sub_(std.log_()).sub_(_LOG_SQRT_2PI).sum(-1)
