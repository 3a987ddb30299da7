"""PPO's loss, differentiated by hand by the network's outputs.

For a minibatch of n rows RLlib's PPO minimizes the mean of

    - min(A r, A clip(r, 1 - e, 1 + e)) + c_v min((v - R)^2, v_max) - c_s H + c_kl KL(old | new)

with r = exp(logp - logp_old) (Schulman et al. 2017, https://arxiv.org/abs/1707.06347, equation 7).
With `clip_range_vf`, v is clipped to plus and minus that around its value before the update.
The first term's derivative by logp is -A r where r is not clipped and 0 where it is; from it and
from H and KL each action head computes the derivatives by its outputs.

An array has a column for each row of the minibatch: (n,), or (K, n) with a line for each output.
The arithmetic is in `kernels`, a loop for each distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing

from raytrain.ppo.fast_update.train_batch import Array

ArrayColumns = dict[str, Array]
"""The columns of a train batch, advantages included, by RLlib's names."""


@dataclass(frozen=True)
class LossSettings:
    """The coefficients that hold for one update."""

    clip_param: float
    vf_clip_param: float
    vf_loss_coeff: float
    entropy_coeff: float
    kl_coeff: float
    """0 without a KL loss."""
    clip_range_vf: float | None = None
    """The value's distance from that at the beginning of the update (Stable-Baselines3)."""
    in_minibatches: bool = False
    """Whether advantages are standardized in each minibatch."""
    kl_limit: float | None = None
    """The update ends before a minibatch with a larger approximate KL divergence."""

    @property
    def coefficients(self) -> tuple[float, float, float, float]:
        """Those that the compiled loops take, in their order."""
        return self.vf_clip_param, self.vf_loss_coeff, self.entropy_coeff, self.kl_coeff


@dataclass(frozen=True)
class ActionHead:
    """An action distribution: the loop that writes the loss's derivatives, and what it needs."""

    kernel: Callable[..., None]
    log_ratio: Callable[..., None]
    """The loop that writes logp - logp_old, (n,)."""
    lines: Callable[[ArrayColumns], list[Array]]
    """Of a batch: lines (N,) that stand behind `advantage_columns` in a minibatch."""
    arguments: tuple[Any, ...] = ()
    """What the loop takes before the coefficients."""


def advantage_columns(batch: ArrayColumns, settings: LossSettings) -> list[Array]:
    """The first lines of a minibatch (N,): old logp, advantages, their caps, value targets."""
    advantages, targets = batch[Postprocessing.ADVANTAGES], batch[Postprocessing.VALUE_TARGETS]
    # A r is clipped where it exceeds A times the bound on A's side.
    bound = np.where(advantages > 0, 1 + settings.clip_param, 1 - settings.clip_param)
    return [batch[Columns.ACTION_LOGP], advantages, advantages * bound.astype(np.float32), targets]


def categorical_head(actions: int) -> ActionHead:
    """A categorical distribution over `actions` actions; the outputs are logits."""
    # Importing Numba takes half a second, and only an update needs it.
    from raytrain.ppo.fast_update import kernels

    def lines(batch: ArrayColumns) -> list[Array]:
        chosen, logits = batch[Columns.ACTIONS], batch[Columns.ACTION_DIST_INPUTS].T
        one_hot = (np.arange(actions)[:, None] == chosen[None]).astype(np.float32)
        old = np.exp(logits - logits.max(axis=0))
        return [*one_hot, *(old / old.sum(axis=0))]

    return ActionHead(kernels.categorical(), kernels.categorical_log_ratio(), lines)


def gaussian_head(log_std_clip: float, free: tuple[Array, Array] | None) -> ActionHead:
    """A diagonal Gaussian over A action dimensions; the outputs are means and log-stds, (2A, n).

    With a free log-std the outputs are the means alone, and `free` holds the parameter and its
    gradient, (A, 1) each.
    """
    from raytrain.ppo.fast_update import kernels

    def lines(batch: ArrayColumns) -> list[Array]:
        return [*batch[Columns.ACTIONS].T, *batch[Columns.ACTION_DIST_INPUTS].T]

    none = np.empty((0, 1), np.float32)
    arguments = (*(free or (none, none)), log_std_clip)
    return ActionHead(kernels.gaussian(), kernels.gaussian_log_ratio(), lines, arguments)
