"""Which spaces can be trained on, checked before Ray starts, and what to do about the others.

observations   Box, Discrete, MultiDiscrete,           see `policy.observations`
               MultiBinary; Tuple and Dict of these
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
from raytrain.policy.observations import ObservationEncoding, parts_of

Say = Callable[[str], None]

_REMEDIES = {
    "Text": "leave the text out (of a Dict with gymnasium.wrappers.FilterObservation), or return "
    "the numbers that it stands for",
    "Sequence": "return a Box of the greatest length, with the rest filled up, and a MultiBinary "
    "that says which entries are there",
    "Graph": "return the nodes in a Box and the edges in another, as for the largest graph",
    "OneOf": "return a Dict of all the spaces, and a Discrete that says which one holds",
}
_MOST_INPUTS = 2**24
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


def require_observations(space: Any, config: ExperimentConfig, say: Say) -> None:
    """Raise ConfigError unless the config's network can take observations of `space`; say if a
    filter would do nothing. What a network, or a catalog, of the user's own can take, and what
    connectors make, is tried later."""
    own = config.rl_module
    if own.module_class or own.catalog_class or config.env_runners.env_to_module_connector:
        return
    problem = observation_problem(space)
    if problem is not None:
        raise ConfigError(Problem(problem, field="environment.env", value=config.environment.env))
    filtered = config.env_runners.observation_filter == "MeanStdFilter"
    if filtered and ObservationEncoding.of(space, normalize=True).normalized_columns() == []:
        say(
            "env_runners.observation_filter: MeanStdFilter normalizes the numbers of Boxes, and "
            f"observations of {_short(space)} have none: it does nothing."
        )


def observation_problem(space: gym.Space[Any]) -> str | None:
    """Why no network can be built for observations of `space`, and the remedy; None if one can."""
    for where, leaf in _leaves_of(space, "its observation space"):
        problem = _observation_problem(leaf)
        if problem is not None:
            return f"{where} is {_short(leaf)}, {problem}"
    for key in _keys_of(space):
        if not isinstance(key, str):
            return (
                f"its observation space has the key {key!r}, and parts of a Dict are put in the "
                "order of their names: use strings as keys"
            )
    return None


def _keys_of(space: gym.Space[Any]) -> Iterator[Any]:
    if isinstance(space, Dict):
        yield from space.spaces
    if isinstance(space, Dict | Tuple):
        for part in space.spaces.values() if isinstance(space, Dict) else space.spaces:
            yield from _keys_of(part)


def _observation_problem(leaf: gym.Space[Any]) -> str | None:
    if isinstance(leaf, Dict | Tuple):
        return "which holds nothing. Return at least one number"
    if isinstance(leaf, Discrete | MultiDiscrete | MultiBinary | Box):
        size = sum(part.size for part in parts_of(leaf))
        if size == 0:
            return "which holds no numbers. Return at least one"
        if size > _MOST_INPUTS:
            return (
                f"for which the network would need {size:,} inputs; the limit is {_MOST_INPUTS:,}. "
                "Return the number in a Box, or split it into digits with MultiDiscrete"
            )
        return None
    remedy = _REMEDIES.get(type(leaf).__name__, "return an array of one size in its place")
    return f"and the network takes numbers of a fixed count: {remedy}"


def _short(space: gym.Space[Any]) -> str:
    text = str(space)
    return text if len(text) <= 80 else f"{text[:77]}..."


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
