"""Which observation spaces RLlib's networks can be built for, and what to do about the others.

    Box of one dimension, float32 or float64           dense layers
    Box of three dimensions, float32 or float64        convolutions: `conv_filters`, or a size that RLlib
                                                       has them for (RLlib 2.60: 10, 42, 64, 84, 96)

RLlib says this of the rest once Ray has started, in the words of Torch (2.60, on both ways of sampling).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raytrain.config.errors import ConfigError, Problem

if TYPE_CHECKING:
    from raytrain.config.schema import ExperimentConfig

_SIZES = (10, 42, 64, 84, 96)
_FLOATS = ("float32", "float64")
_FLATTEN = "gymnasium.wrappers.FlattenObservation(env)"
_IN_FLOAT = "gymnasium.wrappers.DtypeObservation({}, np.float32)"
_RETURN = "name a function of your own under environment.env that makes it and returns"
_SCALED = (
    "gymnasium.wrappers.TransformObservation(env, lambda image: (image / 255).astype(np.float32), "
    "gymnasium.spaces.Box(0, 1, env.observation_space.shape, np.float32))"
)


def require_served(space: Any, config: ExperimentConfig) -> None:
    """Raise ConfigError unless the config's network can take observations of `space`."""
    why = why_not_served(space, conv_filters=bool(config.rl_module.model.conv_filters))
    if why is not None:
        raise ConfigError(Problem(why, field="environment.env", value=config.environment.env))


def why_not_served(space: Any, *, conv_filters: bool = False) -> str | None:
    """Why no network can be built for observations of `space`, and the remedy; None if one can."""
    from gymnasium import spaces

    if not isinstance(space, spaces.Box):
        return f"its observation space is {_short(space)}, and the network takes arrays: {_encode(space)}"
    shape, kind = space.shape, str(space.dtype)
    what = f"its observation space is a Box of shape {shape} and dtype {kind}"
    if 0 in shape:
        return f"{what}, which holds no numbers"
    if len(shape) not in (1, 3):
        inner = "env" if kind in _FLOATS else _IN_FLOAT.format("env")
        image = f" or, as an image, gymnasium.wrappers.ReshapeObservation({inner}, {(*shape, 1)})"
        flat = _FLATTEN.replace("env", inner)
        return (
            f"{what}, and the network takes one dimension, or three for an image: {_RETURN} "
            f"{flat}{image if len(shape) == 2 else ''}"
        )
    if kind not in _FLOATS:
        remedy = _SCALED if len(shape) == 3 and kind == "uint8" else _IN_FLOAT.format("env")
        return f"{what}, and the network takes float32: {_RETURN} {remedy}"
    if len(shape) == 3 and not conv_filters and not _has_default_filters(shape):
        sizes = ", ".join(f"{size}x{size}" for size in _SIZES)
        return (
            f"{what}, and RLlib has default convolutions for {sizes} only: give "
            "rl_module.model_config.conv_filters, such as [[16, 8, 4], [32, 4, 2]], or resize the image "
            "in the environment"
        )
    return None


def _has_default_filters(shape: tuple[int, ...]) -> bool:
    return any(pair == (size, size) for size in _SIZES for pair in (shape[:2], shape[1:]))


def _encode(space: Any) -> str:
    """How to make an array of what is none."""
    if not space.is_np_flattenable:
        return "return an array of one size that holds what the agent is to know"
    return f"{_RETURN} {_IN_FLOAT.format(_FLATTEN)}"


def _short(space: Any) -> str:
    text = str(space)
    return text if len(text) <= 80 else f"{text[:77]}..."
