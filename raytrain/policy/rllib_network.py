"""RLlib's default PPO network, taken apart: for the sampler, the update and the exported policy.

    observations ─> policy's encoder ─> policy head ─> inputs of the action distribution
                 ─> critic's encoder ─> value head  ─> value

Both encoders are one where the network shares it (`vf_share_layers`). The layers are those of the
module itself, in the order in which they run: `nn.Linear`, `nn.Conv2d`, `nn.LSTM`, activations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.models.torch.encoder import (
    TorchActorCriticEncoder,
    TorchCNNEncoder,
    TorchLSTMEncoder,
    TorchMLPEncoder,
    TorchStatefulActorCriticEncoder,
)
from ray.rllib.core.models.torch.heads import TorchFreeLogStdMLPHead, TorchMLPHead
from ray.rllib.core.models.torch.primitives import TorchCNN, TorchMLP
from torch import nn

from raytrain.policy.network import Layer, Parts, Permute, describe_layer
from raytrain.policy.rllib_catalog import ImagesEncoder, ObservationCatalog

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class NotDefaultNetwork(Exception):
    """The module is not RLlib's default network; the message says in what it differs."""


@dataclass(frozen=True)
class PolicyLayers:
    """What leads from observations to the inputs of the action distribution."""

    encoder: list[nn.Module]
    head: list[nn.Module]
    log_std: nn.Parameter | None
    """(A,) float32, the log-stds that depend on no observation, to append to the head's output."""
    log_std_bound: float | None
    """Log-stds are clipped to plus and minus this; None: not clipped, or no log-stds."""

    @classmethod
    def of(cls, module: Any) -> PolicyLayers:
        """Raises NotDefaultNetwork."""
        _require(module, "the module", DefaultPPOTorchRLModule)
        if any(getattr(part, name) for part in module.modules() for name in _HOOKS):
            raise NotDefaultNetwork("the module has hooks")
        _require(
            module.encoder, "the encoder", TorchActorCriticEncoder, TorchStatefulActorCriticEncoder
        )
        _require(module.pi, "the policy head", TorchMLPHead, TorchFreeLogStdMLPHead)
        shared = module.encoder.config.shared
        return cls(
            encoder=_encoder(module.encoder.encoder if shared else module.encoder.actor_encoder),
            head=_flat(module.pi.net),
            log_std=getattr(module.pi, "log_std", None),
            log_std_bound=(
                float(module.pi.log_std_clip_param_const) if module.pi.clip_log_std else None
            ),
        )


def value_layers(module: Any) -> tuple[list[nn.Module] | None, list[nn.Module]]:
    """The critic's encoder (None: it is the policy's) and the value head of a module that
    `PolicyLayers.of` accepts. Raises NotDefaultNetwork."""
    _require(module.vf, "the value head", TorchMLPHead)
    shared = module.encoder.config.shared
    return None if shared else _encoder(module.encoder.critic_encoder), _flat(module.vf.net)


def describe_network(module: Any) -> tuple[Layer, ...]:
    """The policy's layers as policy.json holds them (see `network`). Raises NotDefaultNetwork, and
    PolicyFormatError for a layer that has no description."""
    network = PolicyLayers.of(module)
    _require(module.catalog, "the catalog", PPOCatalog, ObservationCatalog)
    names = {id(part): name for name, part in module.named_modules()}
    layers = _described((*network.encoder, *network.head), names)
    bound = network.log_std_bound
    if network.log_std is not None:
        layers.append({"layer": "free_log_std", "tensors": "pi.log_std", "bound": bound})
    elif bound is not None:
        layers.append({"layer": "clip_log_std", "bound": bound})
    return tuple(layers)


def _described(layers: Iterable[nn.Module], names: Mapping[int, str]) -> list[Layer]:
    """`names`: of modules by their ids."""
    described: list[Layer] = []
    for layer in layers:
        if type(layer) is Parts:
            images = [
                {
                    "columns": list(columns),
                    "shape": list(shape),
                    "layers": _described(_flat(net), names),
                }
                for (columns, shape), net in zip(layer.places, layer.images, strict=True)
            ]
            rest = [list(columns) for columns in layer.rest]
            described.append({"layer": "parts", "images": images, "rest": rest})
        else:
            described.append(describe_layer(layer, names.get(id(layer), "")))
    return described


def _require(part: Any, what: str, *kinds: type) -> None:
    if type(part) not in kinds:
        raise NotDefaultNetwork(f"{what} is a {type(part).__name__}")


def _encoder(encoder: Any) -> list[nn.Module]:
    if type(encoder) is not TorchLSTMEncoder:
        _require(encoder, "an encoder", TorchMLPEncoder, TorchCNNEncoder, ImagesEncoder)
        return _flat(encoder.net)
    if encoder.tokenizer is None:
        return [encoder.lstm]
    _require(encoder.tokenizer, "the LSTM's tokenizer", TorchMLPEncoder)
    return [*_flat(encoder.tokenizer.net), encoder.lstm]


def _flat(net: nn.Module) -> list[nn.Module]:
    """`net` without the modules that only call others."""
    if type(net) is TorchMLP:
        return _flat(net.mlp)
    if type(net) is TorchCNN:  # It takes and returns channels last.
        return [Permute([0, 3, 1, 2]), *_flat(net.cnn), Permute([0, 2, 3, 1])]
    if type(net) is nn.Sequential:
        return [layer for part in net for layer in _flat(part)]
    return [net]
