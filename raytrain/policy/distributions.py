"""From the network's outputs to actions: RLlib's distributions for the usual action spaces.

    Discrete        logits (N, n)                 -> (N,)
    MultiDiscrete   logits (N, sum of nvec)       -> (N, len(nvec))
    Box             means and log stds (N, 2 d)   -> (N, d)
    Tuple, Dict     the columns of the leaves behind each other, in the order of `tree.flatten`

The same operations in the same order as in RLlib, so the same bits and the same random draws.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tree
from torch.distributions import Categorical, Normal

from raytrain.policy.spaces import PolicyFormatError


class ActionDistribution:
    """Mode and samples for one action space. `struct` is its leaves as `base_struct` nests them."""

    def __init__(self, struct: Any) -> None:
        self._struct = struct
        self._leaves: list[gym.Space[Any]] = tree.flatten(struct)
        self._columns = [_columns(leaf) for leaf in self._leaves]

    @property
    def columns(self) -> int:
        """How many columns the network has to have."""
        return sum(self._columns)

    def actions(self, inputs: torch.Tensor, *, deterministic: bool) -> Any:
        """The nested actions for (N, columns) network outputs, before they are unsquashed."""
        return tree.unflatten_as(self._struct, self.leaves(inputs, deterministic=deterministic))

    def leaves(self, inputs: torch.Tensor, *, deterministic: bool) -> list[torch.Tensor]:
        """The same without the nesting."""
        parts = torch.split(inputs, self._columns, dim=-1)
        one = _mode if deterministic else _sample
        return [one(part, leaf) for part, leaf in zip(parts, self._leaves, strict=True)]


def _columns(leaf: gym.Space[Any]) -> int:
    if isinstance(leaf, gym.spaces.Discrete):
        return int(leaf.n)
    if isinstance(leaf, gym.spaces.MultiDiscrete):
        return int(np.sum(leaf.nvec))
    if isinstance(leaf, gym.spaces.Box):
        return 2 * int(np.prod(leaf.shape))
    raise PolicyFormatError(f"there is no action distribution for {leaf}")


def _mode(part: torch.Tensor, leaf: gym.Space[Any]) -> torch.Tensor:
    if isinstance(leaf, gym.spaces.Discrete):
        return torch.argmax(part, dim=-1)
    if isinstance(leaf, gym.spaces.MultiDiscrete):
        return torch.stack([torch.argmax(each, dim=-1) for each in _components(part, leaf)], dim=-1)
    return torch.chunk(part, 2, dim=-1)[0]


def _sample(part: torch.Tensor, leaf: gym.Space[Any]) -> torch.Tensor:
    if isinstance(leaf, gym.spaces.Discrete):
        return _draw(part)
    if isinstance(leaf, gym.spaces.MultiDiscrete):
        return torch.stack([_draw(each) for each in _components(part, leaf)], dim=-1)
    mean, log_std = torch.chunk(part, 2, dim=-1)
    drawn: torch.Tensor = Normal(mean, log_std.exp(), validate_args=False).sample()
    return drawn


def _draw(logits: torch.Tensor) -> torch.Tensor:
    drawn: torch.Tensor = Categorical(logits=logits, validate_args=False).sample()
    return drawn


def _components(part: torch.Tensor, leaf: gym.spaces.MultiDiscrete) -> tuple[torch.Tensor, ...]:
    parts: tuple[torch.Tensor, ...] = torch.split(part, [int(n) for n in leaf.nvec], dim=-1)
    return parts
