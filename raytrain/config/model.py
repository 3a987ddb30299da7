"""The keys of `rl_module.model_config`: the fields of RLlib's `DefaultModelConfig`.

A key that is not given stays out of what RLlib gets, so RLlib's own default holds (PPO's differ
from the class's: `vf_share_layers` is false). Left out: `fusionnet_*`, which no PPO network uses;
`lstm_use_prev_action` and `lstm_use_prev_reward`, which the new API stack does not read;
initializers given as functions, which YAML cannot hold. `log_std_init` is raytrain's own: the
learner puts it into a network that RLlib has built.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, SerializerFunctionWrapHandler, model_serializer

from raytrain.config.fields import AboveZero, FreeMapping, Number, Positive, Section
from raytrain.config.initializers import Bias, Conv, Dense

Activation = Literal["tanh", "relu", "swish", "silu", "linear"]
Layers = list[Positive]


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _conv_filters(value: Any) -> list[list[Any]]:
    what = "must be a list of [channels, kernel, stride], the last two a size or [width, height]"
    if not isinstance(value, (list, tuple)):
        raise ValueError(what)
    layers = []
    for layer in value:
        if not isinstance(layer, (list, tuple)) or len(layer) != 3 or not _is_size(layer[0]):
            raise ValueError(f"{what}; this is not one: {layer!r}")
        for size in layer[1:]:
            pair = size if isinstance(size, (list, tuple)) else [size, size]
            if len(pair) != 2 or not all(map(_is_size, pair)):
                raise ValueError(f"{what}; this is not one: {layer!r}")
        layers.append([list(part) if isinstance(part, (list, tuple)) else part for part in layer])
    return layers


ConvFilters = Annotated[list[list[Any]], PlainValidator(_conv_filters)]


class ModelConfig(Section):
    """The default network: an encoder, a policy head and a value head."""

    fcnet_hiddens: Annotated[Layers, Field(min_length=1)] | None = Field(
        default=None, description="Sizes of the encoder's dense layers (RLlib: [256, 256])."
    )
    fcnet_activation: Activation | None = Field(
        default=None, description="Their activation (RLlib: tanh)."
    )
    fcnet_kernel_initializer: Dense | None = Field(
        default=None, description="A name in torch.nn.init for their weights."
    )
    fcnet_kernel_initializer_kwargs: FreeMapping | None = Field(
        default=None, description="Its keyword arguments."
    )
    fcnet_bias_initializer: Bias | None = Field(
        default=None, description="A name in torch.nn.init for their biases."
    )
    fcnet_bias_initializer_kwargs: FreeMapping | None = Field(
        default=None, description="Its keyword arguments."
    )
    fcnet_use_layernorm: bool | None = Field(
        default=None, description="LayerNorm after each of them (RLlib: false)."
    )
    conv_filters: ConvFilters | None = Field(
        default=None, description="[channels, kernel, stride] of each convolution over an image."
    )
    conv_activation: Activation | None = Field(
        default=None, description="The convolutions' activation (RLlib: relu)."
    )
    conv_kernel_initializer: Conv | None = Field(
        default=None, description="A name in torch.nn.init for their weights."
    )
    conv_kernel_initializer_kwargs: FreeMapping | None = Field(
        default=None, description="Its keyword arguments."
    )
    conv_bias_initializer: Bias | None = Field(
        default=None, description="A name in torch.nn.init for their biases."
    )
    conv_bias_initializer_kwargs: FreeMapping | None = Field(
        default=None, description="Its keyword arguments."
    )
    head_fcnet_hiddens: Layers | None = Field(
        default=None,
        description="Sizes of dense layers in the policy and value heads (RLlib: none).",
    )
    head_fcnet_activation: Activation | None = Field(
        default=None, description="Their activation (RLlib: relu)."
    )
    head_fcnet_kernel_initializer: Dense | None = Field(
        default=None, description="A name in torch.nn.init for their weights."
    )
    head_fcnet_kernel_initializer_kwargs: FreeMapping | None = Field(
        default=None, description="Its keyword arguments."
    )
    head_fcnet_bias_initializer: Bias | None = Field(
        default=None, description="A name in torch.nn.init for their biases."
    )
    head_fcnet_bias_initializer_kwargs: FreeMapping | None = Field(
        default=None, description="Its keyword arguments."
    )
    head_fcnet_use_layernorm: bool | None = Field(
        default=None, description="LayerNorm after each of them (RLlib: false)."
    )
    vf_share_layers: bool | None = Field(
        default=None, description="One encoder for policy and value function (RLlib's PPO: false)."
    )
    free_log_std: bool | None = Field(
        default=None, description="Continuous actions: log-std is a parameter, not an output."
    )
    log_std_init: Number | None = Field(
        default=None,
        description="The log-std that `free_log_std` begins with (raytrain's own key; RLlib: 0.0).",
    )
    log_std_clip_param: AboveZero | None = Field(
        default=None, description="Clip log-std to plus and minus this (RLlib: 20.0)."
    )
    use_lstm: bool | None = Field(
        default=None, description="Put an LSTM behind the encoder (RLlib: false)."
    )
    lstm_cell_size: Positive | None = Field(
        default=None, description="Size of the LSTM (RLlib: 256)."
    )
    max_seq_len: Positive | None = Field(
        default=None, description="Timesteps of a training sequence for the LSTM (RLlib: 20)."
    )
    lstm_kernel_initializer: Dense | None = Field(
        default=None, description="A name in torch.nn.init for the LSTM's weights."
    )
    lstm_kernel_initializer_kwargs: FreeMapping | None = Field(
        default=None, description="Its keyword arguments."
    )
    lstm_bias_initializer: Bias | None = Field(
        default=None, description="A name in torch.nn.init for the LSTM's biases."
    )
    lstm_bias_initializer_kwargs: FreeMapping | None = Field(
        default=None, description="Its keyword arguments."
    )

    @model_serializer(mode="wrap")
    def _only_given(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if value is not None}


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
"""Keys of `ModelConfig` that say which weights there are; the others leave names and shapes alone."""
