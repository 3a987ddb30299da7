"""From the policy's actions to the environment's: one rule for training, evaluation and exports.

The policy acts in a simpler space than the environment (`policy_space`), and each leaf has a
mapping to the environment's (`LeafMapping`):

    environment's leaf          the policy chooses     and what it chose becomes
    Discrete                    Discrete               the index of the choice, plus `start`
    MultiDiscrete, any shape    MultiDiscrete (A,)     the same, in the space's shape
    MultiBinary, any shape      MultiDiscrete of 2s    0 or 1 each, in the space's shape
    Box of floats, any shape    Box (A,)               scaled from [-1, 1] to its bounds (with
                                                       `normalize_actions`, if every bound is
                                                       finite), clipped to its finite bounds, in the
                                                       space's shape
    Box of integers             MultiDiscrete (A,)     the index of the choice, plus `low`: if no
                                                       number has more than `MOST_CHOICES` values
                                Box (A,)               as a Box of floats, rounded: otherwise
    Tuple, Dict                 the same of these

With `normalize_actions` and `clip_actions` both off, the actions of a Box of floats are unchanged,
and those of a Box of integers only rounded. For spaces that RLlib knows these are the rules of its
NormalizeAndClipActions, with two differences: RLlib ignores `start`, and it clips nothing if
`normalize_actions` is on and a bound is infinite. Some environments express an infinite bound by
one beyond `UNBOUNDED`, such as the largest float32: nothing is scaled to it.

The learner sees the policy's own actions: indices from 0, and unscaled numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import tree
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from raytrain.policy.arithmetic import base_struct

Array = np.ndarray[Any, Any]

UNBOUNDED = 1e20
"""A bound of this magnitude or beyond counts as infinite."""
_UNBOUNDED_WHOLE = 2**31 - 1
"""The same for a Box of integers."""

MOST_CHOICES = 32
"""A Box of integers with at most so many values for each number is chosen from; in a larger one the
policy draws a number, which is rounded."""

_EXACT = 2.0**53
"""Up to here float64 holds every integer."""


def policy_space(space: gym.Space[Any]) -> gym.Space[Any]:
    """The space in which the policy of an environment with this action space acts. It is the same
    object if nothing changes."""
    if isinstance(space, Tuple):
        inner = [policy_space(part) for part in space.spaces]
        same = all(ours is theirs for ours, theirs in zip(inner, space.spaces, strict=True))
        return space if same else Tuple(inner)
    if isinstance(space, Dict):
        # Pairs: of a plain dict Gymnasium would sort the keys.
        pairs = [(key, policy_space(part)) for key, part in space.spaces.items()]
        return space if all(part is space.spaces[key] for key, part in pairs) else Dict(pairs)
    return _policy_leaf(space)


def _policy_leaf(leaf: gym.Space[Any]) -> gym.Space[Any]:
    if isinstance(leaf, MultiBinary):
        return MultiDiscrete(np.full(math.prod(leaf.shape), 2))
    if isinstance(leaf, MultiDiscrete) and leaf.nvec.ndim != 1:
        return MultiDiscrete(leaf.nvec.reshape(-1))
    if not isinstance(leaf, Box) or 0 in leaf.shape:
        return leaf
    if _is_whole(leaf):
        if chosen_from(leaf):
            sizes = leaf.high.astype(np.int64) - leaf.low.astype(np.int64) + 1
            return MultiDiscrete(sizes.reshape(-1))
        low, high = (bound.astype(np.float32).reshape(-1) for bound in _bounds(leaf))
        return Box(low, high)
    if len(leaf.shape) == 1:
        return leaf
    return Box(leaf.low.reshape(-1), leaf.high.reshape(-1), dtype=leaf.dtype.type)


def chosen_from(leaf: Box) -> bool:
    """Whether a Box is one of integers with at most `MOST_CHOICES` values for each number."""
    if not _is_whole(leaf) or not leaf.is_bounded():
        return False
    sizes = leaf.high.astype(np.float64) - leaf.low.astype(np.float64) + 1
    return bool(np.all(sizes <= MOST_CHOICES))


def _is_whole(leaf: Box) -> bool:
    return leaf.dtype.kind in "iu"


@dataclass(frozen=True)
class LeafMapping:
    """The mapping of the actions of one leaf of an action space, in this order."""

    shift: Array | None = None
    """Added: () or (A,), in the dtype of the space."""
    scale: tuple[Array, Array] | None = None
    """Low and high, (A,), the images of -1 and 1."""
    clip: tuple[Array, Array] | None = None
    """Low and high, (A,); infinite where there is no bound."""
    rounded: bool = False
    """To the nearest whole number."""
    dtype: np.dtype[Any] | None = None
    """What the result is cast to."""
    shape: tuple[int, ...] | None = None
    """What (A,) becomes."""

    @classmethod
    def of(cls, leaf: gym.Space[Any], *, normalize: bool, clip: bool) -> LeafMapping:
        if isinstance(leaf, Discrete | MultiDiscrete):
            start = np.asarray(leaf.start, leaf.dtype).reshape(leaf.shape and -1)
            shape = leaf.shape if len(leaf.shape) > 1 else None
            if start.any():
                return cls(shift=start, shape=shape)
            fits = np.can_cast(np.int32, leaf.dtype)
            return cls(dtype=None if fits else np.dtype(leaf.dtype), shape=shape)
        if isinstance(leaf, MultiBinary):
            return cls(dtype=np.dtype(leaf.dtype), shape=leaf.shape)
        if not isinstance(leaf, Box):
            return cls()
        shape = None if len(leaf.shape) == 1 else leaf.shape
        if chosen_from(leaf):
            return cls(shift=leaf.low.reshape(-1), shape=shape)
        return cls._of_numbers(leaf, shape, normalize=normalize, clip=clip)

    @classmethod
    def _of_numbers(
        cls, leaf: Box, shape: tuple[int, ...] | None, *, normalize: bool, clip: bool
    ) -> LeafMapping:
        whole = _is_whole(leaf)
        low, high = (bound.reshape(-1) for bound in _bounds(leaf))
        closed = bool(np.all(np.abs(np.stack([low, high]).astype(np.float64)) < UNBOUNDED))
        limits = None
        if (normalize or clip) and bool(np.isfinite([low, high]).any()):
            limits = low, high
        if whole:
            # A number beyond the dtype's range would be cast to any other.
            least, most = _limits(leaf.dtype)
            low_, high_ = limits or (np.full_like(low, -np.inf), np.full_like(high, np.inf))
            limits = np.maximum(low_, least), np.minimum(high_, most)
        narrow = leaf.dtype.kind == "f" and leaf.dtype.itemsize < 4
        return cls(
            scale=(low, high) if normalize and closed else None,
            clip=limits,
            rounded=whole,
            dtype=leaf.dtype if narrow or whole else None,
            shape=shape,
        )

    def __call__(self, actions: Any) -> Any:
        """The environment's actions for one action or a batch of them."""
        if self.shift is not None:
            actions = np.asarray(actions + self.shift, self.shift.dtype)[()]
        if self.scale is not None:
            actions = scaled(actions, *self.scale)
        if self.clip is not None:
            actions = np.clip(actions, *self.clip)
        if self.rounded:
            actions = np.rint(actions)
        if self.dtype is not None:
            actions = np.asarray(actions, self.dtype)[()]
        if self.shape is None:
            return actions
        return actions.reshape((*actions.shape[:-1], *self.shape))


def scaled(actions: Any, low: Any, high: Any) -> Any:
    """Actions from [-1, 1] to [low, high]: for arrays and tensors."""
    return low + (actions + 1.0) * (high - low) / 2.0


class ActionMapping:
    """The mapping of all leaves of an action space. `leaves`: nested as the space."""

    def __init__(self, space: gym.Space[Any], *, normalize: bool, clip: bool) -> None:
        struct = base_struct(space)
        self.leaves = tree.map_structure(
            lambda leaf: LeafMapping.of(leaf, normalize=normalize, clip=clip), struct
        )
        self._struct = struct
        self._is_array = [isinstance(leaf, Box) for leaf in tree.flatten(struct)]
        self._rows_are_members = isinstance(self.leaves, LeafMapping) and space.shape != ()
        self._rows_are_members |= isinstance(space, Discrete)

    def __call__(self, actions: Any) -> Any:
        """The environment's actions for one action or a batch of them, nested as the space."""
        if isinstance(self.leaves, LeafMapping):
            return self.leaves(actions)
        return tree.map_structure(lambda action, leaf: leaf(action), actions, self.leaves)

    def split(self, batch: Any) -> Any:
        """Each action of a batch of the environment's actions: a sequence of members of the
        space."""
        if self._rows_are_members:
            return batch
        columns = [
            # A member of a Box without axes is an array, and one of a Discrete a number.
            [leaf[i, ...] for i in range(len(leaf))] if is_array else leaf
            for leaf, is_array in zip(tree.flatten(batch), self._is_array, strict=True)
        ]
        return [tree.unflatten_as(self._struct, row) for row in zip(*columns, strict=True)]


def bounds_taken_for_none(leaf: gym.Space[Any]) -> Array:
    """The finite bounds of a Box that count as infinite, (B,); empty for every other leaf."""
    if not isinstance(leaf, Box) or not np.issubdtype(leaf.dtype, np.floating):
        return np.empty(0)
    bounds = np.concatenate([leaf.low.reshape(-1), leaf.high.reshape(-1)]).astype(np.float64)
    return np.asarray(bounds[np.isfinite(bounds) & (np.abs(bounds) >= UNBOUNDED)])


def _bounds(leaf: Box) -> tuple[Array, Array]:
    """Low and high; of a Box of integers as float64, infinite where there is no bound."""
    if not _is_whole(leaf):
        return leaf.low, leaf.high
    low, high = leaf.low.astype(np.float64), leaf.high.astype(np.float64)
    below = leaf.bounded_below & (np.abs(low) < _UNBOUNDED_WHOLE)
    above = leaf.bounded_above & (np.abs(high) < _UNBOUNDED_WHOLE)
    return np.where(below, low, -np.inf), np.where(above, high, np.inf)


def _limits(dtype: np.dtype[Any]) -> tuple[float, float]:
    """The least and the greatest integer of a dtype that float64 holds exactly."""
    limits = np.iinfo(dtype)
    return max(float(limits.min), -_EXACT), min(float(limits.max), _EXACT)
