"""The keys of `rl_module.model_config`: the fields of RLlib's `DefaultModelConfig`.

A key that is not given is not passed to RLlib, so RLlib's own default holds (PPO's
`vf_share_layers` is false, unlike the class's). Left out: `fusionnet_*`, which no PPO network uses;
`lstm_use_prev_action` and `lstm_use_prev_reward`, which the new API stack does not read; and
initializers given as functions, which YAML cannot hold. `log_std_init` and `orthogonal_init` are
raytrain's own keys: the learner sets them in the network that RLlib has built.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, model_serializer

from raytrain.config.fields import (
    AboveZero,
    FreeMapping,
    NonNegative,
    Number,
    PartialSection,
    Positive,
    Section,
    free_mapping,
)
from raytrain.config.initializers import Bias, Conv, Dense

Activation = Literal["tanh", "relu", "swish", "silu", "linear"]
Layers = list[Positive]


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_size_or_pair(value: Any) -> bool:
    pair = value if isinstance(value, (list, tuple)) else [value, value]
    return len(pair) == 2 and all(map(_is_size, pair))


def _conv_filters(value: Any) -> list[list[Any]]:
    what = "must be a list of [channels, kernel, stride], the last two a size or [width, height]"
    if not isinstance(value, (list, tuple)):
        raise ValueError(what)
    for layer in value:
        is_layer = isinstance(layer, (list, tuple)) and len(layer) == 3 and _is_size(layer[0])
        if not is_layer or not all(map(_is_size_or_pair, layer[1:])):
            raise ValueError(f"{what}; this is not one: {layer!r}")
    return [
        [list(part) if isinstance(part, (list, tuple)) else part for part in layer]
        for layer in value
    ]


ConvFilters = Annotated[list[list[Any]], PlainValidator(_conv_filters)]
Arguments = Annotated[
    FreeMapping | None, Field(description="Keyword arguments of the initializer above.")
]


class OrthogonalInit(Section):
    """Gains of orthogonal initial weights; `orthogonal_init: true` is all of the defaults."""

    hidden: NonNegative = math.sqrt(2)
    """Of dense layers and convolutions before the last layers."""
    policy_head: NonNegative = 0.01
    """Of the last layer of the policy head."""
    value_head: NonNegative = 1.0
    """Of the last layer of the value head."""


def _orthogonal_init(value: Any) -> Any:
    return ({} if value else None) if isinstance(value, bool) else value


class ModelConfig(PartialSection):
    """The default network: an encoder, a policy head and a value head."""

    fcnet_hiddens: Annotated[Layers, Field(min_length=1)] | None = None
    """Sizes of the encoder's dense layers (RLlib: [256, 256])."""
    fcnet_activation: Activation | None = None
    """Activation of the dense layers (RLlib: tanh)."""
    fcnet_kernel_initializer: Dense = None
    fcnet_kernel_initializer_kwargs: Arguments = None
    fcnet_bias_initializer: Bias = None
    fcnet_bias_initializer_kwargs: Arguments = None
    fcnet_use_layernorm: bool | None = None
    """LayerNorm after each dense layer (RLlib: false)."""
    conv_filters: ConvFilters | None = None
    """[channels, kernel, stride] of each convolution over an image."""
    conv_activation: Activation | None = None
    """Activation of the convolutions (RLlib: relu)."""
    conv_kernel_initializer: Conv = None
    conv_kernel_initializer_kwargs: Arguments = None
    conv_bias_initializer: Bias = None
    conv_bias_initializer_kwargs: Arguments = None
    head_fcnet_hiddens: Layers | None = None
    """Sizes of dense layers in the policy and value heads (RLlib: none)."""
    head_fcnet_activation: Activation | None = None
    """Activation of the heads' dense layers (RLlib: relu)."""
    head_fcnet_kernel_initializer: Dense = None
    head_fcnet_kernel_initializer_kwargs: Arguments = None
    head_fcnet_bias_initializer: Bias = None
    head_fcnet_bias_initializer_kwargs: Arguments = None
    head_fcnet_use_layernorm: bool | None = None
    """LayerNorm after each of the heads' dense layers (RLlib: false)."""
    orthogonal_init: Annotated[OrthogonalInit | None, BeforeValidator(_orthogonal_init)] = None
    """Orthogonal initial weights drawn from the run's seed, and biases of 0, as `ortho_init` of
    Stable-Baselines3: `true`, or the gains below (raytrain's own key)."""
    vf_share_layers: bool | None = None
    """One encoder for policy and value function (RLlib's PPO: false)."""
    free_log_std: bool | None = None
    """Continuous actions: log-std is a parameter of its own, not an output of the network."""
    log_std_init: Number | None = None
    """Initial log-std with `free_log_std` (raytrain's own key; RLlib: 0.0)."""
    log_std_clip_param: AboveZero | None = None
    """Clip log-std to plus and minus this (RLlib: 20.0)."""
    use_lstm: bool | None = None
    """Put an LSTM behind the encoder (RLlib: false)."""
    lstm_cell_size: Positive | None = None
    """Size of the LSTM (RLlib: 256)."""
    max_seq_len: Positive | None = None
    """Timesteps in a training sequence of the LSTM (RLlib: 20)."""
    lstm_kernel_initializer: Dense = None
    lstm_kernel_initializer_kwargs: Arguments = None
    lstm_bias_initializer: Bias = None
    lstm_bias_initializer_kwargs: Arguments = None


class OwnModelConfig(ModelConfig):
    """The `model_config` of a network or catalog of the user's own: any keys. None of the fields
    that it inherits is set."""

    free: FreeMapping = Field(default={})

    @model_serializer(mode="plain")
    def _all_keys(self) -> dict[str, Any]:
        return self.free


@dataclass(frozen=True)
class FreeKeys:
    """What is written under `model_config`, where any keys are allowed."""

    written: Any


def model_of(value: Any, validate: Callable[[Any], ModelConfig]) -> ModelConfig:
    """For pydantic: the model config that is written."""
    if not isinstance(value, FreeKeys):
        return validate(value)
    return OwnModelConfig(free=free_mapping(value.written))


SHAPE_OF_WEIGHTS = (
    "fcnet_hiddens",
    "fcnet_use_layernorm",
    "conv_filters",
    "head_fcnet_hiddens",
    "head_fcnet_use_layernorm",
    "vf_share_layers",
    "free_log_std",
    "use_lstm",
    "lstm_cell_size",
)
"""Keys of `ModelConfig` on which the names and shapes of the weights depend."""
