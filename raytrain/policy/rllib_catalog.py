"""Networks for the observation spaces that RLlib's own catalog does not know.

    image (H, W, C)      convolutions ─> heads, as RLlib's; uint8 from 0 to 255 is scaled to [0, 1]
    `FlatBox`            each image ─> convolutions of its own ─┐
                         all other numbers ────────────────────┴─> dense layers ─> heads

The convolutions are those of `conv_filters`, RLlib's for the sizes that it knows (`RLLIB_SIZES`),
or `default_filters`. For every other space the catalog is RLlib's: its networks do not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ENCODER_OUT, Encoder, Model
from ray.rllib.core.models.configs import CNNEncoderConfig, ModelConfig
from ray.rllib.core.models.torch.base import TorchModel
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.models.utils import get_filter_config
from ray.rllib.utils.annotations import override
from torch import nn

from raytrain.policy.network import Parts, Permute, Scale
from raytrain.policy.observations import FlatBox, is_image, parts_of

RLLIB_SIZES = (10, 42, 64, 84, 96)
"""RLlib has convolutions for square images of these sizes."""
_SMALL = 8
_CHANNELS = (16, 32, 64, 128)


def default_filters(height: int, width: int) -> list[list[int]]:
    """`conv_filters` for an image of any size: 4x4 kernels with stride 2 halve it until no side is
    longer than 8, with 16, 32, 64 and then always 128 channels; two of 3x3 with 64 channels follow.
    """
    filters: list[list[int]] = []
    while max(height, width) > _SMALL:
        filters.append([_CHANNELS[min(len(filters), 3)], 4, 2])
        height, width = -(-height // 2), -(-width // 2)
    return [*filters, [64, 3, 1], [64, 3, 1]]


def channels_first(shape: Sequence[int]) -> bool:
    """Whether the first of an image's three axes are the channels: it has at most half the entries
    of each other axis (frames that Gymnasium stacks)."""
    return 2 * shape[0] <= min(shape[1:])


def serves(space: gym.Space[Any], model_config: Any) -> bool:
    """Whether networks for `space` come from `ObservationCatalog`, and not from RLlib's own."""
    if isinstance(space, FlatBox):
        return True
    if not is_image(space):
        return False
    assert space.shape is not None
    return space.dtype == np.uint8 or not (
        (model_config or {}).get("conv_filters") or _rllib_filters(space.shape)
    )


def choose_catalog(spec: RLModuleSpec) -> bool:
    """Give a spec of RLlib's default module, which has its space, the catalog that this space
    needs, if that is not RLlib's own. Returns whether it did."""
    ours = (
        spec.module_class is DefaultPPOTorchRLModule
        and spec.catalog_class is None
        and serves(spec.observation_space, spec.model_config)
    )
    if ours:
        spec.catalog_class = ObservationCatalog
    return ours


class ObservationCatalog(PPOCatalog):
    """See the module's docstring."""

    @classmethod
    @override(PPOCatalog)
    def _get_encoder_config(
        cls,
        observation_space: gym.Space[Any],
        model_config_dict: dict[str, Any],
        action_space: gym.Space[Any] | None = None,
    ) -> ModelConfig:
        rllibs = super()._get_encoder_config
        if model_config_dict["use_lstm"]:  # It asks again for what comes before the LSTM.
            return rllibs(observation_space, model_config_dict, action_space)
        if not isinstance(observation_space, FlatBox):
            return ImagesConfig(
                input_dims=observation_space.shape,
                images=[_image(observation_space, model_config_dict)],
            )
        space, images, rest = observation_space, [], []
        for part in parts_of(space.of):
            if is_image(part.space):
                columns = (part.columns.start, part.columns.stop)
                scaled = space.normalized
                images.append(_image(part.space, model_config_dict, columns, scaled=scaled))
            else:
                rest.append((part.columns.start, part.columns.stop))
        size = sum(stop - start for start, stop in rest)
        size += sum(image.convolutions.output_dims[0] for image in images)
        dense = rllibs(Box(-np.inf, np.inf, (size,)), model_config_dict)
        return ImagesConfig(input_dims=space.shape, images=images, rest=rest, dense=dense)


@dataclass
class ImageConfig:
    """One image: where it is, and its convolutions."""

    convolutions: CNNEncoderConfig
    shape: tuple[int, ...]
    divisor: float | None
    columns: tuple[int, int] | None
    """In a vector; None: it is the whole observation."""

    def build(self) -> nn.Sequential:
        layers: list[nn.Module] = []
        if channels_first(self.shape):
            layers.append(Permute([0, 2, 3, 1]))
        if self.divisor is not None:
            layers.append(Scale(self.divisor))
        return nn.Sequential(*layers, self.convolutions.build(framework="torch").net)


@dataclass
class ImagesConfig(ModelConfig):
    """Of an `ImagesEncoder`."""

    images: list[ImageConfig] = field(default_factory=list)
    rest: list[tuple[int, int]] = field(default_factory=list)
    """The other columns of a vector, each from, to."""
    dense: Any = None
    """Config of the dense layers behind; None: there are none."""

    @property
    def output_dims(self) -> tuple[int, ...]:
        dims: tuple[int, ...] = tuple((self.dense or self.images[0].convolutions).output_dims)
        return dims

    @override(ModelConfig)
    def build(self, framework: str = "torch") -> ImagesEncoder:
        return ImagesEncoder(self)


class ImagesEncoder(TorchModel, Encoder):
    """From a batch of images, or of vectors with images in them, to features."""

    def __init__(self, config: ImagesConfig) -> None:
        TorchModel.__init__(self, config)
        Encoder.__init__(self, config)
        nets = [image.build() for image in config.images]
        if config.dense is None:
            (self.net,) = nets
            return
        images = [
            ((image.columns or (0, 0)), image.shape, net)
            for image, net in zip(config.images, nets, strict=True)
        ]
        dense = config.dense.build(framework="torch").net
        self.net = nn.Sequential(Parts(images, config.rest), dense)

    @override(Model)
    def _forward(self, inputs: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {ENCODER_OUT: self.net(inputs[Columns.OBS])}


def _image(
    space: gym.Space[Any],
    model: dict[str, Any],
    columns: tuple[int, int] | None = None,
    *,
    scaled: bool = False,
) -> ImageConfig:
    assert isinstance(space, Box)
    shape = tuple(space.shape)
    last = (*shape[1:], shape[0]) if channels_first(shape) else shape
    filters = model.get("conv_filters") or _rllib_filters(last) or default_filters(*last[:2])
    in_bytes = space.dtype == np.uint8 and not scaled
    whole = in_bytes and bool((space.low == 0).all() and (space.high == 255).all())
    return ImageConfig(
        convolutions=CNNEncoderConfig(
            input_dims=last,
            cnn_filter_specifiers=filters,
            cnn_activation=model["conv_activation"],
            cnn_kernel_initializer=model["conv_kernel_initializer"],
            cnn_kernel_initializer_config=model["conv_kernel_initializer_kwargs"],
            cnn_bias_initializer=model["conv_bias_initializer"],
            cnn_bias_initializer_config=model["conv_bias_initializer_kwargs"],
        ),
        shape=shape,
        divisor=255.0 if whole else 1.0 if in_bytes and columns is None else None,
        columns=columns,
    )


def _rllib_filters(shape: Sequence[int]) -> list[Any] | None:
    """RLlib's own convolutions, if it has some for this shape."""
    if not any(
        tuple(sides) == (size, size) for size in RLLIB_SIZES for sides in (shape[:2], shape[1:])
    ):
        return None
    filters: list[Any] = get_filter_config(shape)
    return filters
