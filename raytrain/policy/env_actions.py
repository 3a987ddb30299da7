"""From the policy's actions to the environment's: one rule for training, evaluation and exports.

    Discrete, MultiDiscrete    the index of the choice, plus the space's `start`
    Box                        scaled from [-1, 1] to its bounds (with `normalize_actions`, if every
                               bound is finite), then clipped to its finite bounds
    other leaves               unchanged

With `normalize_actions` and `clip_actions` both off, the actions of a Box are unchanged. These are
the rules of RLlib's NormalizeAndClipActions, with two differences: RLlib ignores `start`, and it
clips nothing if `normalize_actions` is on and a bound is infinite. Some environments express an
infinite bound by one beyond `UNBOUNDED`, such as the largest float32: nothing is scaled to it.

The learner sees the policy's own actions: indices from 0, and unscaled numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import tree
from gymnasium.spaces import Box, Discrete, MultiDiscrete

Array = np.ndarray[Any, Any]

UNBOUNDED = 1e20
"""A bound of this magnitude or beyond counts as infinite."""


@dataclass(frozen=True)
class LeafMapping:
    """The mapping of the actions of one leaf of an action space, in this order."""

    shift: Array | None = None
    """Added: () or (A,), in the dtype of the space."""
    scale: tuple[Array, Array] | None = None
    """Low and high, the images of -1 and 1."""
    clip: tuple[Array, Array] | None = None
    """Low and high; infinite where there is no bound."""
    narrow: np.dtype[Any] | None = None
    """The dtype of a Box of less than 32 bits, to which the policy's float32 is cast."""

    @classmethod
    def of(cls, leaf: gym.Space[Any], *, normalize: bool, clip: bool) -> LeafMapping:
        if isinstance(leaf, Discrete | MultiDiscrete):
            start = np.asarray(leaf.start, leaf.dtype)
            return cls(shift=start if start.any() else None)
        if not isinstance(leaf, Box):
            return cls()
        narrow = leaf.dtype if leaf.dtype.kind == "f" and leaf.dtype.itemsize < 4 else None
        if not (normalize or clip):
            return cls(narrow=narrow)
        bounds = leaf.low, leaf.high
        if normalize and _closed(leaf) and np.issubdtype(leaf.dtype, np.integer):
            return cls(shift=leaf.low)  # As RLlib does.
        return cls(
            scale=bounds if normalize and _closed(leaf) else None,
            clip=bounds if np.isfinite(bounds).any() else None,
            narrow=narrow,
        )

    def __call__(self, actions: Any) -> Any:
        """The environment's actions for one action or a batch of them."""
        if self.shift is not None:
            return np.asarray(actions + self.shift, self.shift.dtype)[()]
        if self.scale is not None:
            actions = scaled(actions, *self.scale)
        if self.clip is not None:
            actions = np.clip(actions, *self.clip)
        return actions if self.narrow is None else np.asarray(actions, self.narrow)


def scaled(actions: Any, low: Any, high: Any) -> Any:
    """Actions from [-1, 1] to [low, high]: for arrays and tensors."""
    return low + (actions + 1.0) * (high - low) / 2.0


def mappings(struct: Any, *, normalize: bool, clip: bool) -> Any:
    """The mapping of each leaf. `struct`: an action space's leaves, nested as the space."""
    return tree.map_structure(
        lambda leaf: LeafMapping.of(leaf, normalize=normalize, clip=clip), struct
    )


def for_environment(actions: Any, of_leaves: Any) -> Any:
    """The environment's actions, nested as the space; `of_leaves` is what `mappings` returned."""
    return tree.map_structure(lambda action, leaf: leaf(action), actions, of_leaves)


def bounds_taken_for_none(leaf: gym.Space[Any]) -> Array:
    """The finite bounds of a Box that count as infinite, (B,); empty for every other leaf."""
    if not isinstance(leaf, Box) or not np.issubdtype(leaf.dtype, np.floating):
        return np.empty(0)
    bounds = np.concatenate([leaf.low.reshape(-1), leaf.high.reshape(-1)]).astype(np.float64)
    return np.asarray(bounds[np.isfinite(bounds) & (np.abs(bounds) >= UNBOUNDED)])


def _closed(leaf: Box) -> bool:
    """Whether every bound is finite."""
    bounds = np.stack([leaf.low, leaf.high]).astype(np.float64)
    return bool(np.all(np.abs(bounds) < UNBOUNDED))
