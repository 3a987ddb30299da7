"""One batched forward pass for each step: from observations to actions, and what goes with them.

RLlib runs its module, an action distribution object and six connectors. Here the same operations
run on the same tensors in the same order without these, so that actions, `action_logp` and
`action_dist_inputs` are RLlib's to the last bit and draw the same random numbers (see
`policy.distributions`).

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
import tree
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical, TorchDiagGaussian

from raytrain.arithmetic.portable import is_portable
from raytrain.policy.action_masks import COLUMN as ACTION_MASKS
from raytrain.policy.action_masks import masked
from raytrain.policy.arithmetic import as_array
from raytrain.policy.distributions import (
    ActionDistribution,
    sample_categorical,
    sample_categoricals,
    sample_gaussian,
)
from raytrain.policy.rllib_module import action_distribution
from raytrain.policy.rllib_network import NotDefaultNetwork, PolicyLayers
from raytrain.rollout.fast_sampling.fragments import Array

Layer: TypeAlias = Callable[[Any], Any]
Outputs: TypeAlias = dict[str, Any]
Sampling: TypeAlias = Callable[..., tuple[Any, Any]]
"""From distribution inputs [N, D] to actions [N, ...] and their log probabilities [N]."""


class Acting:
    """The policy of one fragment: its weights must not be replaced while it is in use.

    `act(observations, t)` returns actions (nested as the space) and model outputs as arrays
    [N, ...], with the dtypes that RLlib's connectors give them (int32 and float32), in RLlib's
    order of columns. The arrays are valid until the next call. `t`: the environment steps sampled
    so far, for modules whose exploration depends on it. `masks`: (N, K), see `action_masks`; the
    distribution inputs that are returned are masked, and the masks are an output.
    """

    def __init__(self, module: Any, action_space: gym.Space[Any], *, explore: bool) -> None:
        self._module = module
        self._explore = explore
        self._device = next((p.device for p in module.parameters()), torch.device("cpu"))
        self._sampling = _sampling(module, action_space, explore=explore)
        self._layers: list[Layer] | None = None
        if explore and self._sampling is not None and self._device.type == "cpu":
            self._layers = _layers(module)
        self._observations: Any = None  # Made for the first batch.

    def act(
        self, observations: Array, t: int, masks: Array | None = None
    ) -> tuple[Any, dict[str, Array]]:
        if self._observations is None:
            # No 64 bits, as in RLlib's NumpyToTensor. The tensor shares the array's memory.
            wide = observations.dtype == np.float64
            zeros = np.zeros(observations.shape, np.float32 if wide else observations.dtype)
            # Torch's memory: MKL promises the same sums only for arrays that are aligned to 64
            # bytes, and NumPy's alignment depends on what the process has allocated before.
            self._observations = torch.from_numpy(zeros).clone()
            self._array = self._observations.numpy()
        self._array[...] = observations
        allowed = None if masks is None else torch.from_numpy(masks).to(self._device)
        if self._layers is not None:
            return self._act_directly(self._layers, allowed)
        batch = {Columns.OBS: self._observations.to(self._device, copy=True)}
        with torch.no_grad():
            if self._explore:
                outputs: Outputs = dict(self._module.forward_exploration(batch, t=t))
            else:
                outputs = dict(self._module.forward_inference(batch))
            if allowed is not None:
                name = Columns.ACTION_DIST_INPUTS
                outputs[name] = masked(outputs[name], allowed)
                outputs[ACTION_MASKS] = allowed
            if Columns.ACTIONS not in outputs:
                inputs = outputs[Columns.ACTION_DIST_INPUTS]
                if self._sampling is not None:
                    actions, logp = self._sample(inputs, allowed)
                else:
                    distribution = action_distribution(
                        self._module, inputs, deterministic=not self._explore
                    )
                    actions = distribution.sample()
                    logp = distribution.logp(actions)
                outputs[Columns.ACTIONS] = actions
                outputs.setdefault(Columns.ACTION_LOGP, logp)
        actions = outputs.pop(Columns.ACTIONS)
        return _arrays(actions), {name: as_array(value) for name, value in outputs.items()}

    def _sample(self, inputs: Any, allowed: Any) -> tuple[Any, Any]:
        assert self._sampling is not None
        return (
            self._sampling(inputs) if allowed is None else self._sampling(inputs, allowed=allowed)
        )

    def _act_directly(self, layers: list[Layer], allowed: Any) -> tuple[Any, dict[str, Array]]:
        with torch.inference_mode():
            x = self._observations
            for layer in layers:
                x = layer(x)
            if allowed is not None:
                x = masked(x, allowed)
            actions, logp = self._sample(x, allowed)
            outputs = {Columns.ACTION_DIST_INPUTS: x.numpy()}
            if allowed is not None:
                outputs[ACTION_MASKS] = allowed.numpy()
            outputs[Columns.ACTION_LOGP] = logp.numpy()
            return _arrays(actions), outputs


def _arrays(actions: Any) -> Any:
    if isinstance(actions, torch.Tensor):
        return as_array(actions)
    return tree.map_structure(as_array, actions)


def _layers(module: Any) -> list[Layer] | None:
    """The default PPO module from observations to distribution inputs, as a list of functions; None
    for any other module."""
    try:
        network = PolicyLayers.of(module)
    except NotDefaultNetwork:
        return None
    if module.is_stateful():
        return None
    # For dropout and the like; RLlib's exploration pass does the same.
    module.eval()
    layers: list[Layer] = []
    for layer in (*network.encoder, *network.head):
        # Into what the dense layer before has made, which nobody else holds.
        in_place = _IN_PLACE.get(type(layer)) if layers and type(layers[-1]) is _Dense else None
        if type(layer) is torch.nn.Linear and layer.bias is not None:
            layers.append(_Dense(layer))
        else:
            layers.append(in_place or layer.forward)
    bound = math.inf if network.log_std_bound is None else network.log_std_bound
    if network.log_std is not None:
        layers.append(partial(_append, columns=network.log_std.detach().clamp(-bound, bound)))
    elif network.log_std_bound is not None:
        layers.append(partial(_clip_log_std, bound=bound))
    return layers


_IN_PLACE: dict[type, Layer] = {torch.nn.Tanh: torch.tanh_, torch.nn.ReLU: torch.relu_}


class _Dense:
    """`torch.nn.functional.linear`, which is this `addmm`, into reused memory: allocating and
    freeing a small tensor takes longer than computing it. In portable arithmetic it is what
    `arithmetic.portable_torch` makes of `addmm`."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        self._bias, self._weight = layer.bias.detach(), layer.weight.detach().t()
        self._portable = is_portable()
        self._out: Any = None

    def __call__(self, x: Any) -> Any:
        if self._out is None:
            self._out = torch.empty(x.shape[0], self._bias.shape[0], dtype=self._bias.dtype)
        if self._portable:
            np.matmul(x.numpy(), self._weight.numpy(), out=self._out.numpy())
            return self._out.add_(self._bias)
        return torch.addmm(self._bias, x, self._weight, out=self._out)


def _clip_log_std(outputs: Any, bound: float) -> Any:
    outputs.chunk(2, dim=-1)[1].clamp_(-bound, bound)
    return outputs


def _append(outputs: Any, columns: Any) -> Any:
    return torch.cat([outputs, columns.expand(len(outputs), -1)], dim=-1)


def _sampling(module: Any, space: gym.Space[Any], *, explore: bool) -> Sampling | None:
    """How to sample from the module's distribution, or (without `explore`) how to take its mode;
    None for RLlib's own way, and where the distribution is not one of RLlib's defaults."""
    kind = module.get_exploration_action_dist_cls()
    # Distributions of other spaces than these two are classes that RLlib makes for the space.
    is_default = type(module) is DefaultPPOTorchRLModule
    if not explore:
        # RLlib 2.60 adds up arrays of different shapes as the log-probability of a mode.
        nested = isinstance(space, gym.spaces.Dict | gym.spaces.Tuple) and is_default
        return ActionDistribution(space).mode if nested else None
    if kind is TorchCategorical:
        return sample_categorical
    if kind is TorchDiagGaussian:
        return sample_gaussian
    if not is_default:
        return None
    if isinstance(space, gym.spaces.MultiDiscrete):
        return partial(sample_categoricals, sizes=[int(n) for n in space.nvec])
    return ActionDistribution(space).sample
