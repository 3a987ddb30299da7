"""RLlib's default PPO network as the list of layers that `network` builds again without RLlib.

The default module of dense, convolutional or LSTM layers with its default distributions can be
described; a module or catalog of one's own cannot: `NoPlainForm` says why.
"""

from __future__ import annotations

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

from raytrain.policy.network import ACTIVATIONS

_NAMES = {kind: name for name, kind in ACTIVATIONS.items()}


class NoPlainForm(Exception):
    """The module is something else than layers that `network` knows."""


def layers_of(module: Any) -> tuple[dict[str, Any], ...]:
    """From preprocessed observations to distribution inputs. Raises NoPlainForm."""
    _require(type(module) is DefaultPPOTorchRLModule, "the module", module)
    _require(type(module.catalog) is PPOCatalog, "the catalog", module.catalog)
    encoders = (TorchActorCriticEncoder, TorchStatefulActorCriticEncoder)
    _require(type(module.encoder) in encoders, "the encoder", module.encoder)
    shared = module.encoder.config.shared
    actor = module.encoder.encoder if shared else module.encoder.actor_encoder
    _require(type(module.pi) in (TorchMLPHead, TorchFreeLogStdMLPHead), "the head", module.pi)
    names = {id(each): name for name, each in module.named_modules()}
    return (*_encoder(actor, names), *_flat(module.pi.net, names), *_log_std(module.pi))


def _encoder(encoder: Any, names: dict[int, str]) -> list[dict[str, Any]]:
    if type(encoder) in (TorchMLPEncoder, TorchCNNEncoder):
        return _flat(encoder.net, names)
    _require(type(encoder) is TorchLSTMEncoder, "the actor's encoder", encoder)
    _require(encoder.lstm.batch_first, "the LSTM, which is not batch-major,", encoder.lstm)
    lstm = {
        "layer": "lstm",
        "tensors": names[id(encoder.lstm)],
        "layers": encoder.lstm.num_layers,
    }
    tokenizer = encoder.tokenizer
    if tokenizer is None:
        return [lstm]
    _require(type(tokenizer) is TorchMLPEncoder, "the LSTM's tokenizer", tokenizer)
    return [*_flat(tokenizer.net, names), lstm]


def _require(holds: bool, what: str, found: Any) -> None:
    if not holds:
        raise NoPlainForm(f"{what} is a {type(found).__name__}")


def _flat(net: nn.Module, names: dict[int, str]) -> list[dict[str, Any]]:
    if type(net) is TorchMLP:
        return _flat(net.mlp, names)
    if type(net) is TorchCNN:
        first, last = [0, 3, 1, 2], [0, 2, 3, 1]  # channels come last, Torch wants them first
        inner = _flat(net.cnn, names)
        return [{"layer": "permute", "axes": first}, *inner, {"layer": "permute", "axes": last}]
    if type(net) is nn.Sequential:
        return [layer for each in net for layer in _flat(each, names)]
    return [_leaf(net, names[id(net)])]


def _leaf(module: Any, name: str) -> dict[str, Any]:
    kind = type(module)
    if kind is nn.Linear:
        return {"layer": "linear", "tensors": name}
    if kind is nn.LayerNorm:
        return {"layer": "layer_norm", "tensors": name, "eps": module.eps}
    plain = kind is nn.Conv2d and (module.dilation, module.groups) == ((1, 1), 1)
    if plain and tuple(module.padding) == (0, 0):
        return {"layer": "conv2d", "tensors": name, "stride": list(module.stride)}
    if kind is nn.ZeroPad2d:
        return {"layer": "zero_pad2d", "padding": list(module.padding)}
    if kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
        return {"layer": "flatten"}
    if kind in _NAMES and repr(module) == repr(kind()):
        return {"layer": _NAMES[kind]}
    raise NoPlainForm(f"{name} is {module!r}")


def _log_std(head: Any) -> list[dict[str, Any]]:
    bound = float(head.log_std_clip_param_const) if head.clip_log_std else None
    if type(head) is TorchFreeLogStdMLPHead:
        return [{"layer": "free_log_std", "tensors": "pi.log_std", "bound": bound}]
    return [] if bound is None else [{"layer": "clip_log_std", "bound": bound}]
