"""Which action spaces can be trained on, said before Ray starts.

Box of floats, shape (A,)      a diagonal Gaussian
Discrete, MultiDiscrete (A,)   categorical, with any `start`
Tuple, Dict                    of these, nested as deep as wanted
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from raytrain.config import ExperimentConfig, make_env
from raytrain.errors import BadInput
from raytrain.policy.env_actions import UNBOUNDED, bounds_taken_for_none

Say = Callable[[str], None]

_MOST_OUTPUTS = 2**24
"""Behind a layer of 256, that many have 16 GiB of weights."""


class ActionsNotServed(BadInput):
    """No policy can be made for the environment's action space."""


def require_served_actions(config: ExperimentConfig, say: Say) -> None:
    """Make the environment once and look at its action space.

    Raises:
        ActionsNotServed: with the part that is in the way, and what to use in its place.
    """
    env = make_env(config)
    space = env.action_space
    env.close()
    if config.rl_module.model.free_log_std and not isinstance(space, Box):
        raise ActionsNotServed(
            f"rl_module.model_config.free_log_std: the action space of {config.environment.env!r} is "
            f"{space}, and only a Box has a log-std. Leave the key out."
        )
    for where, leaf in leaves_of(space, "the action space"):
        why_not = _why_not(leaf)
        if why_not is not None:
            raise ActionsNotServed(
                f"environment.env ({config.environment.env!r}): {where} is {leaf}, {why_not}"
            )
        found = bounds_taken_for_none(leaf)
        if len(found) and config.environment.normalize_actions:
            say(
                f"Bounds of {UNBOUNDED:g} and more are taken for none: {where} has {found[0]:g}, so its "
                "actions are not scaled to its bounds. Give finite bounds if they shall be."
            )


def leaves_of(space: gym.Space[Any], where: str) -> Iterator[tuple[str, gym.Space[Any]]]:
    """The leaves of nested spaces with their places; an empty Tuple or Dict is one itself."""
    inner: list[tuple[Any, gym.Space[Any]]] = []
    if isinstance(space, Tuple):
        inner = list(enumerate(space.spaces))
    elif isinstance(space, Dict):
        inner = list(space.spaces.items())
    if not inner:
        yield where, space
    for key, each in inner:
        yield from leaves_of(each, f"{where}[{key!r}]")


def _why_not(leaf: gym.Space[Any]) -> str | None:
    """What is in the way, and what to do; None for a space that is served."""
    if isinstance(leaf, Discrete | MultiDiscrete):
        sizes = [leaf.n] if isinstance(leaf, Discrete) else leaf.nvec.flat
        members = sum(int(size) for size in sizes)
        if members > _MOST_OUTPUTS:
            return (
                f"for which the network would need {members:,} outputs; {_MOST_OUTPUTS:,} are the most. Split "
                "the number into digits, with MultiDiscrete."
            )
    if isinstance(leaf, Discrete):
        return None
    if isinstance(leaf, MultiDiscrete):
        if leaf.nvec.ndim == 1:
            return None
        return (
            f"of {leaf.nvec.ndim} axes. Use MultiDiscrete with its {leaf.nvec.size} numbers in a row, and "
            "let step() reshape the action."
        )
    if isinstance(leaf, MultiBinary):
        size = int(np.prod(leaf.shape))
        return f"for which there is no distribution. Use MultiDiscrete([2] * {size})."
    if isinstance(leaf, Tuple | Dict):
        return "which holds nothing: there is nothing to learn. Give it at least one space."
    if not isinstance(leaf, Box):
        return (
            "for which there is no distribution. Use Box, Discrete, MultiDiscrete, or a Tuple or Dict "
            "of these."
        )
    if not np.issubdtype(leaf.dtype, np.floating):
        return (
            f"of {leaf.dtype}: a policy chooses among whole numbers by MultiDiscrete(high - low + 1, "
            "start=low); or use a Box of float32 and let step() round."
        )
    size = int(np.prod(leaf.shape))
    if size == 0:
        return "which holds no number: there is nothing to learn. Give it at least one."
    if len(leaf.shape) != 1:
        return f"of shape {leaf.shape}. Use a Box of shape ({size},), and let step() reshape the action."
    return None
