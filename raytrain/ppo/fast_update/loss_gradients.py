"""PPO's loss, differentiated by hand: what the network's outputs should change by.

For a minibatch of n rows RLlib's PPO minimizes the mean of

    - min(A r, A clip(r, 1 - e, 1 + e))  +  c_v min((v - R)^2, v_max)  -  c_s H  +  c_kl KL(old | new)

with r = exp(logp - logp_old) (Schulman et al. 2017, https://arxiv.org/abs/1707.06347, equation 7).
The first term's derivative by logp is -A r where r is not clipped and 0 where it is; each action head
turns it into derivatives by its outputs, together with those of H and KL.

Everything is a column a row: an array (n,), or (K, n) with one line for each output. The arithmetic is in
`kernels`, a loop for each distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

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

    @property
    def coefficients(self) -> tuple[float, float, float, float]:
        """Those that the compiled loops take, in their order."""
        return self.vf_clip_param, self.vf_loss_coeff, self.entropy_coeff, self.kl_coeff


class ActionHead(Protocol):
    """An action distribution: which columns of the batch it needs, and the loss's derivatives."""

    def columns(self, batch: ArrayColumns) -> list[Array]:
        """Lines (N,) that stand behind `advantage_columns` in a minibatch."""

    def differentiate(
        self, outputs: Array, values: Array, columns: Array, d_outputs: Array, d_values: Array
    ) -> None:
        """Write the loss's derivatives by the network's outputs, (K, n), and values, (n,)."""

    def use(self, settings: LossSettings) -> None:
        """The coefficients from now on."""


def advantage_columns(batch: ArrayColumns, settings: LossSettings) -> list[Array]:
    """The first lines of a minibatch, (N,) each: old logp, advantages, their caps, value targets."""
    advantages, targets = batch[Postprocessing.ADVANTAGES], batch[Postprocessing.VALUE_TARGETS]
    # A r is clipped where it exceeds A times the bound on A's side.
    bound = np.where(advantages > 0, 1 + settings.clip_param, 1 - settings.clip_param)
    return [batch[Columns.ACTION_LOGP], advantages, advantages * bound.astype(np.float32), targets]


class CategoricalHead:
    """A categorical distribution over A actions; the outputs are logits."""

    def __init__(self, actions: int) -> None:
        # Importing Numba takes half a second, and only who updates needs it.
        from raytrain.ppo.fast_update import kernels

        self._kernel: Callable[..., None] = kernels.categorical()
        self._actions = actions

    def columns(self, batch: ArrayColumns) -> list[Array]:
        actions, logits = batch[Columns.ACTIONS], batch[Columns.ACTION_DIST_INPUTS].T
        one_hot = (np.arange(self._actions)[:, None] == actions[None]).astype(np.float32)
        old = np.exp(logits - logits.max(axis=0))
        return [*one_hot, *(old / old.sum(axis=0))]

    def use(self, settings: LossSettings) -> None:
        self._coefficients = settings.coefficients

    def differentiate(
        self, outputs: Array, values: Array, columns: Array, d_outputs: Array, d_values: Array
    ) -> None:
        self._kernel(outputs, values, columns, d_outputs, d_values, *self._coefficients)


class GaussianHead:
    """A diagonal Gaussian over A action dimensions; the outputs are means and log-stds, (2A, n).

    With a free log-std the outputs are the means alone, and `free` holds the parameter and its
    gradient, (A, 1) each.
    """

    def __init__(self, *, log_std_clip: float | None, free: tuple[Array, Array] | None) -> None:
        from raytrain.ppo.fast_update import kernels

        self._kernel: Callable[..., None] = kernels.gaussian()
        none = np.empty((0, 1), np.float32)
        self._free = (none, none) if free is None else free
        self._clip = float("inf") if log_std_clip is None else log_std_clip

    def columns(self, batch: ArrayColumns) -> list[Array]:
        return [*batch[Columns.ACTIONS].T, *batch[Columns.ACTION_DIST_INPUTS].T]

    def use(self, settings: LossSettings) -> None:
        self._coefficients = self._clip, *settings.coefficients

    def differentiate(
        self, outputs: Array, values: Array, columns: Array, d_outputs: Array, d_values: Array
    ) -> None:
        self._kernel(
            outputs, values, columns, d_outputs, d_values, *self._free, *self._coefficients
        )
