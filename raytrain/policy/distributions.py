"""From the network's outputs to actions: RLlib's distributions for the usual action spaces.

    Discrete        logits (N, n)                 -> (N,)
    MultiDiscrete   logits (N, sum of nvec)       -> (N, len(nvec))
    Box             means and log-stds (N, 2 d)   -> (N, d)
    Tuple, Dict     the columns of the leaves behind each other, in the order of `tree.flatten`

Samples have the bits of RLlib's own, and draw the same random numbers, without the objects that
RLlib makes for them. The sampler of training uses the functions alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tree

from raytrain.errors import RaytrainError
from raytrain.policy.arithmetic import base_struct
from raytrain.policy.spaces import PolicyFormatError

_LOG_SQRT_2PI = math.log(math.sqrt(2 * math.pi))


def sample_categorical(
    logits: torch.Tensor, allowed: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Actions (N,) int64 for logits (N, n), and their log-probabilities (N,): NaN where a logit is
    NaN or plus infinity. By the exponential trick of `torch.multinomial`: the largest p / q with
    q ~ Exp(1). `allowed`: (N, n) bool; the logits of the others must be masked already.
    """
    # logsumexp in the operations it consists of, without its detours: about a third of the time.
    # (It takes infinite maxima for 0; here they become NaN, which callers report.)
    largest = logits.amax(-1, True)
    normalised = logits - (logits - largest).exp_().sum(-1, True).log_().add_(largest)
    race = torch.softmax(normalised, -1)
    race.div_(torch.empty_like(race).exponential_())
    if allowed is not None:
        # Torch may draw q = 0, though hardly ever: 0 / 0 would win.
        race.masked_fill_(~allowed, -1.0)
    actions = race.argmax(-1, True)
    return actions.squeeze(-1), normalised.gather(-1, actions).squeeze(-1)


def sample_categoricals(
    logits: torch.Tensor, sizes: Sequence[int], allowed: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for several choices: actions (N, len(sizes)) for logits (N, sum of sizes)."""
    parts = torch.split(logits, list(sizes), dim=-1)
    masks = [None] * len(parts) if allowed is None else torch.split(allowed, list(sizes), dim=-1)
    drawn = [sample_categorical(part, mask) for part, mask in zip(parts, masks, strict=True)]
    actions = torch.stack([choice for choice, _ in drawn], dim=-1)
    return actions, torch.sum(torch.stack([logp for _, logp in drawn]), dim=0)


def sample_gaussian(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Actions (N, d) for means and log-stds (N, 2 d), and their log-densities (N,), in the
    operations of `torch.distributions.Normal`."""
    mean, log_std = inputs.chunk(2, dim=-1)
    std = log_std.exp()
    actions = torch.normal(mean, std)
    logp = (actions - mean).pow_(2).neg_().div_(std.pow(2).mul_(2))
    return actions, logp.sub_(std.log_()).sub_(_LOG_SQRT_2PI).sum(-1)


class ActionDistribution:
    """Modes and samples for one action space (see `env_actions.policy_space`)."""

    def __init__(self, space: gym.Space[Any]) -> None:
        self._struct = base_struct(space)
        self._leaves: list[gym.Space[Any]] = tree.flatten(self._struct)
        self._columns = [input_columns(leaf) for leaf in self._leaves]

    def actions(self, inputs: torch.Tensor, *, deterministic: bool) -> Any:
        """The nested actions for (N, columns) network outputs, before they are unsquashed.

        Raises RaytrainError if a discrete action is to be sampled from logits that are NaN.
        """
        return tree.unflatten_as(self._struct, self.leaves(inputs, deterministic=deterministic))

    def leaves(self, inputs: torch.Tensor, *, deterministic: bool) -> list[torch.Tensor]:
        """The same without the nesting."""
        if deterministic:
            parts = torch.split(inputs, self._columns, dim=-1)
            return [_mode(part, leaf) for part, leaf in zip(parts, self._leaves, strict=True)]
        actions = []
        for action, logp, leaf in self._sampled(inputs):
            if not isinstance(leaf, gym.spaces.Box) and logp.isnan().any():
                raise RaytrainError(
                    "The network's output is NaN or infinite: no action can be sampled."
                )
            actions.append(action)
        return actions

    def sample(self, inputs: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Nested actions for (N, columns), and their log-probabilities (N,), as those of the single
        samples above."""
        actions, logps, _ = zip(*self._sampled(inputs), strict=True)
        return tree.unflatten_as(self._struct, list(actions)), sum(logps[1:], logps[0])

    def mode(self, inputs: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """The same for the likeliest actions, with 0 for log-probabilities, as in RLlib."""
        return self.actions(inputs, deterministic=True), inputs.new_zeros(len(inputs))

    def _sampled(
        self, inputs: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, gym.Space[Any]]]:
        parts = torch.split(inputs, self._columns, dim=-1)
        for part, leaf in zip(parts, self._leaves, strict=True):
            yield *_sample(part, leaf), leaf


def input_columns(leaf: gym.Space[Any]) -> int:
    """How many inputs the distribution of a leaf has."""
    if isinstance(leaf, gym.spaces.Discrete):
        return int(leaf.n)
    if isinstance(leaf, gym.spaces.MultiDiscrete):
        return int(np.sum(leaf.nvec))
    if isinstance(leaf, gym.spaces.Box):
        return 2 * int(np.prod(leaf.shape))
    raise PolicyFormatError(f"there is no action distribution for {leaf}")


def _mode(part: torch.Tensor, leaf: gym.Space[Any]) -> torch.Tensor:
    if isinstance(leaf, gym.spaces.Box):
        return torch.chunk(part, 2, dim=-1)[0]
    if isinstance(leaf, gym.spaces.Discrete):
        return torch.argmax(part, dim=-1)
    components = torch.split(part, leaf.nvec.tolist(), dim=-1)
    return torch.stack([torch.argmax(logits, dim=-1) for logits in components], dim=-1)


def _sample(part: torch.Tensor, leaf: gym.Space[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(leaf, gym.spaces.Box):
        return sample_gaussian(part)
    if isinstance(leaf, gym.spaces.Discrete):
        return sample_categorical(part)
    return sample_categoricals(part, leaf.nvec.tolist())
