"""Which spaces can be trained on, checked before Ray starts, and what to do about the others.

observations   Box (D,), float32 or float64            dense layers
               Box (H, W, C), float32 or float64       convolutions: `conv_filters`, or a size that
                                                       RLlib has them for (10, 42, 64, 84, 96)
actions        Box                                     a diagonal Gaussian
               Discrete, MultiDiscrete, MultiBinary    categorical, with any `start`; a Box of few
                                                       integers too (see `policy.env_actions`)
               Tuple, Dict                             of these, nested as deep as wanted

RLlib 2.60 refuses other observations only once Ray has started, with an error of Torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from raytrain.config import ConfigError, ExperimentConfig, Problem, make_env
from raytrain.errors import BadInput
from raytrain.policy.env_actions import UNBOUNDED, bounds_taken_for_none, policy_space

Say = Callable[[str], None]

_SIZES = (10, 42, 64, 84, 96)
_FLOATS = ("float32", "float64")
_FLATTEN = "gymnasium.wrappers.FlattenObservation(env)"
_IN_FLOAT = "gymnasium.wrappers.DtypeObservation({}, np.float32)"
_RETURN = "name a function of your own under environment.env that makes it and returns"
_SCALED = (
    "gymnasium.wrappers.TransformObservation(env, lambda image: (image / 255).astype(np.float32), "
    "gymnasium.spaces.Box(0, 1, env.observation_space.shape, np.float32))"
)
_MOST_OUTPUTS = 2**24
"""Behind a layer of 256, that many have 16 GiB of weights."""


class UnsupportedActions(BadInput):
    """No policy can be made for the environment's action space."""


def spaces_of(env: Any) -> dict[str, Any]:
    """The environment's spaces by name, action masks in observations included; it is closed."""
    from raytrain.config.action_mask import observed_space
    from raytrain.rollout.env_snapshots import close

    close(env)
    observations = observed_space(env) if hasattr(env, "observation_space") else None
    actions = getattr(env, "action_space", None)
    return {"observation space": observations, "action space": actions}


# -- observations --------------------------------------------------------------------------------


def require_observations(space: Any, config: ExperimentConfig) -> None:
    """Raise ConfigError unless the config's network can take observations of `space`."""
    problem = observation_problem(space, conv_filters=bool(config.rl_module.model.conv_filters))
    if problem is not None:
        raise ConfigError(Problem(problem, field="environment.env", value=config.environment.env))


def observation_problem(space: Any, *, conv_filters: bool = False) -> str | None:
    """Why no network can be built for observations of `space`, and the remedy; None if one can."""
    if not isinstance(space, Box):
        text = str(space)
        text = text if len(text) <= 80 else f"{text[:77]}..."
        remedy = f"{_RETURN} {_IN_FLOAT.format(_FLATTEN)}"
        if not space.is_np_flattenable:
            remedy = "return an array of one size that holds what the agent needs"
        return f"its observation space is {text}, and the network takes arrays: {remedy}"
    shape, dtype = space.shape, str(space.dtype)
    what = f"its observation space is a Box of shape {shape} and dtype {dtype}"
    if 0 in shape:
        return f"{what}, which holds no numbers"
    if len(shape) not in (1, 3):
        inner = "env" if dtype in _FLOATS else _IN_FLOAT.format("env")
        image = f" or, as an image, gymnasium.wrappers.ReshapeObservation({inner}, {(*shape, 1)})"
        return (
            f"{what}, and the network takes one dimension, or three for an image: {_RETURN} "
            f"{_FLATTEN.replace('env', inner)}{image if len(shape) == 2 else ''}"
        )
    if dtype not in _FLOATS:
        remedy = _SCALED if len(shape) == 3 and dtype == "uint8" else _IN_FLOAT.format("env")
        return f"{what}, and the network takes float32: {_RETURN} {remedy}"
    has_filters = any((size, size) in (shape[:2], shape[1:]) for size in _SIZES)
    if len(shape) == 3 and not conv_filters and not has_filters:
        sizes = ", ".join(f"{size}x{size}" for size in _SIZES)
        return (
            f"{what}, and RLlib has default convolutions for {sizes} only: give "
            "rl_module.model_config.conv_filters, such as [[16, 8, 4], [32, 4, 2]], or resize the "
            "image in the environment"
        )
    return None


# -- actions -------------------------------------------------------------------------------------


def require_actions(config: ExperimentConfig, say: Say) -> None:
    """Make the environment once and look at its action space.

    Raises:
        UnsupportedActions: with the part that is not supported, and what to use in its place.
    """
    env = make_env(config)
    space = env.action_space
    env.close()
    if config.rl_module.model.free_log_std and not isinstance(policy_space(space), Box):
        raise UnsupportedActions(
            f"rl_module.model_config.free_log_std: the action space of {config.environment.env!r} "
            f"is {space}, and only a Box has a log-std. Leave the key out."
        )
    for where, leaf in _leaves_of(space, "the action space"):
        problem = _action_problem(leaf)
        if problem is not None:
            raise UnsupportedActions(
                f"environment.env ({config.environment.env!r}): {where} is {leaf}, {problem}"
            )
        ignored = bounds_taken_for_none(leaf)
        if len(ignored) and config.environment.normalize_actions:
            say(
                f"Bounds of {UNBOUNDED:g} and more count as no bounds: {where} has {ignored[0]:g}, "
                "so its actions are not scaled to its bounds. Give finite bounds to scale them."
            )


def _leaves_of(space: gym.Space[Any], where: str) -> Iterator[tuple[str, gym.Space[Any]]]:
    """The leaves of nested spaces with their places; an empty Tuple or Dict is a leaf itself."""
    inner: list[tuple[Any, gym.Space[Any]]] = []
    if isinstance(space, Tuple):
        inner = list(enumerate(space.spaces))
    elif isinstance(space, Dict):
        inner = list(space.spaces.items())
    if not inner:
        yield where, space
    for key, part in inner:
        yield from _leaves_of(part, f"{where}[{key!r}]")


def _action_problem(leaf: gym.Space[Any]) -> str | None:
    """Why there is no policy for it, and what to do; None for a space that is supported."""
    if isinstance(leaf, Tuple | Dict):
        return "which holds nothing: there is nothing to learn. Give it at least one space."
    if not isinstance(leaf, Box | Discrete | MultiDiscrete | MultiBinary):
        return (
            "for which there is no distribution. Use Box, Discrete, MultiDiscrete, MultiBinary, or "
            "a Tuple or Dict of these."
        )
    if 0 in leaf.shape:
        return "which holds no number: there is nothing to learn. Give it at least one."
    if isinstance(leaf, Box) and leaf.dtype.kind not in "fiu":
        return f"of dtype {leaf.dtype}. Use one of floats or integers, or MultiBinary."
    outputs = _outputs(policy_space(leaf))
    if outputs > _MOST_OUTPUTS:
        return (
            f"for which the network would need {outputs:,} outputs; the limit is "
            f"{_MOST_OUTPUTS:,}. Split the number into digits, with MultiDiscrete."
        )
    return None


def _outputs(leaf: Any) -> int:
    """How many outputs the network has for a leaf of a policy's space."""
    if isinstance(leaf, Box):
        return 2 * int(leaf.shape[0])
    sizes = [leaf.n] if isinstance(leaf, Discrete) else leaf.nvec
    return sum(int(size) for size in sizes)
