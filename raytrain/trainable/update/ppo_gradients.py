"""PPO's loss, differentiated by hand: what the network's outputs should change by.

For a minibatch of n rows RLlib's PPO minimizes the mean of

    - min(A r, A clip(r, 1 - e, 1 + e))  +  c_v min((v - R)^2, v_max)  -  c_s H  +  c_kl KL(old | new)

with r = exp(logp - logp_old) (Schulman et al. 2017, https://arxiv.org/abs/1707.06347, equation 7).
The first term's derivative by logp is -A r where r is not clipped and 0 where it is; each action head
turns it into derivatives by its outputs, together with those of H and KL.

Everything is a column a row: an array (n,), or (K, n) with one line for each output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from raytrain.trainable.update.train_batch import Array, TrainBatch


@dataclass(frozen=True)
class LossSettings:
    """The coefficients that hold for one update."""

    clip_param: float
    vf_clip_param: float
    vf_loss_coeff: float
    entropy_coeff: float
    kl_coeff: float
    """0 without a KL loss."""


class ActionHead(Protocol):
    """An action distribution: which columns of the batch it needs, and its derivatives."""

    def columns(self, batch: TrainBatch) -> list[Array]:
        """Lines (N,) that `gradient` gets minibatches of."""

    def logp(self, outputs: Array, columns: Array) -> Array:
        """(n,): log-probability of the actions. Leaves behind what `gradient` needs."""

    def gradient(self, d_logp: Array, settings: LossSettings, d_outputs: Array) -> None:
        """Write the loss's derivatives by the network's outputs, given those by logp."""


def advantage_columns(
    batch: TrainBatch, advantages: Array, targets: Array, settings: LossSettings
) -> list[Array]:
    """The lines that `policy_gradient` and `value_gradient` need: 4 of (N,)."""
    # A r is clipped where it exceeds A times the bound on A's side.
    bound = np.where(advantages > 0, 1 + settings.clip_param, 1 - settings.clip_param)
    return [batch.logp, advantages, advantages * bound.astype(np.float32), targets]


def policy_gradient(logp: Array, old_logp: Array, advantages: Array, caps: Array) -> Array:
    """(n,): derivative of the surrogate loss by logp. Overwrites `logp`."""
    np.subtract(logp, old_logp, out=logp)
    np.exp(logp, out=logp)
    np.multiply(logp, advantages, out=logp)
    kept = np.less_equal(logp, caps)
    np.multiply(logp, kept, out=logp)
    np.multiply(logp, -1.0 / len(logp), out=logp)
    return logp


def value_gradient(values: Array, targets: Array, settings: LossSettings, d_values: Array) -> None:
    """Write the derivative of the value loss by the values, (n,)."""
    np.subtract(values, targets, out=d_values)
    if settings.vf_clip_param != float("inf"):
        kept = np.less_equal(np.multiply(d_values, d_values), settings.vf_clip_param)
        np.multiply(d_values, kept, out=d_values)
    np.multiply(d_values, 2.0 * settings.vf_loss_coeff / len(d_values), out=d_values)


class CategoricalHead:
    """A categorical distribution over A actions; the outputs are logits.

    Columns: A lines of one-hot actions, A lines of the old policy's probabilities.
    """

    def __init__(self, actions: int) -> None:
        self._actions = actions

    def columns(self, batch: TrainBatch) -> list[Array]:
        one_hot = (np.arange(self._actions)[:, None] == batch.actions[None]).astype(np.float32)
        logits = batch.dist_inputs.T
        old = np.exp(logits - logits.max(axis=0))
        return [*one_hot, *(old / old.sum(axis=0))]

    def logp(self, outputs: Array, columns: Array) -> Array:
        self._one_hot, self._old = columns[: self._actions], columns[self._actions :]
        shifted = np.subtract(outputs, np.maximum.reduce(outputs, axis=0))
        self._p = np.exp(shifted)
        total = np.add.reduce(self._p, axis=0)
        np.divide(self._p, total, out=self._p)
        self._shifted, self._log_total = shifted, np.log(total)
        chosen: Array = np.add.reduce(np.multiply(shifted, self._one_hot), axis=0)
        np.subtract(chosen, self._log_total, out=chosen)
        return chosen

    def gradient(self, d_logp: Array, settings: LossSettings, d_outputs: Array) -> None:
        p, n = self._p, len(d_logp)
        if settings.kl_coeff:
            # d KL / d logit = p - p_old, d logp / d logit = one_hot - p
            k = settings.kl_coeff / n
            np.multiply(self._one_hot, d_logp, out=d_outputs)
            np.add(d_outputs, np.multiply(p, np.subtract(k, d_logp)), out=d_outputs)
            np.subtract(d_outputs, np.multiply(self._old, k), out=d_outputs)
        else:
            np.subtract(self._one_hot, p, out=d_outputs)
            np.multiply(d_outputs, d_logp, out=d_outputs)
        if settings.entropy_coeff:
            # d H / d logit = -p (log p + H)
            log_p = np.subtract(self._shifted, self._log_total)
            entropy = -np.add.reduce(np.multiply(p, log_p), axis=0)
            np.add(log_p, entropy, out=log_p)
            np.multiply(log_p, p, out=log_p)
            np.multiply(log_p, settings.entropy_coeff / n, out=log_p)
            np.add(d_outputs, log_p, out=d_outputs)


class GaussianHead:
    """A diagonal Gaussian over A action dimensions; the outputs are means and log-stds, (2A, n).

    Columns: A lines of actions, A of the old means, A of the old log-stds. With a free log-std the
    outputs are the means alone, and `free` holds the parameter and its gradient, (A, 1) each.
    """

    def __init__(
        self, actions: int, *, log_std_clip: float | None, free: tuple[Array, Array] | None = None
    ) -> None:
        self._actions, self._clip, self._free = actions, log_std_clip, free

    def columns(self, batch: TrainBatch) -> list[Array]:
        return [*batch.actions.T, *batch.dist_inputs.T]

    def logp(self, outputs: Array, columns: Array) -> Array:
        a = self._actions
        self._old_mean, self._old_log_std = columns[a : 2 * a], columns[2 * a :]
        self._mean = outputs[:a]
        self._raw = outputs[a:] if self._free is None else self._free[0]
        clip = self._clip
        self._log_std = (
            self._raw if clip is None else np.minimum(np.maximum(self._raw, -clip), clip)
        )
        self._inverse = np.exp(-self._log_std)
        self._z = np.subtract(columns[:a], self._mean)
        np.multiply(self._z, self._inverse, out=self._z)
        self._z2 = np.multiply(self._z, self._z)
        terms = np.multiply(self._z2, -0.5)
        np.subtract(terms, self._log_std, out=terms)
        logp: Array = np.add.reduce(terms, axis=0)
        np.subtract(logp, a * _HALF_LOG_2PI, out=logp)
        return logp

    def gradient(self, d_logp: Array, settings: LossSettings, d_outputs: Array) -> None:
        a, n = self._actions, len(d_logp)
        d_mean = d_outputs[:a]
        np.multiply(self._z, self._inverse, out=d_mean)
        np.multiply(d_mean, d_logp, out=d_mean)
        d_log_std = self._z2 if self._free is not None else d_outputs[a:]
        np.subtract(self._z2, 1.0, out=d_log_std)
        np.multiply(d_log_std, d_logp, out=d_log_std)
        if settings.entropy_coeff:
            np.subtract(d_log_std, settings.entropy_coeff / n, out=d_log_std)
        if settings.kl_coeff:
            # With s = old std / std and m = (old mean - mean) / std:
            # d KL / d mean = -m / std, d KL / d log_std = 1 - s^2 - m^2
            k = settings.kl_coeff / n
            m = np.multiply(np.subtract(self._old_mean, self._mean), self._inverse)
            np.subtract(d_mean, np.multiply(np.multiply(m, self._inverse), k), out=d_mean)
            s2 = np.exp(np.multiply(np.subtract(self._old_log_std, self._log_std), 2.0))
            np.add(s2, np.multiply(m, m), out=s2)
            np.add(d_log_std, np.multiply(np.subtract(1.0, s2), k), out=d_log_std)
        if self._clip is not None:
            np.multiply(d_log_std, np.less_equal(np.abs(self._raw), self._clip), out=d_log_std)
        if self._free is not None:
            np.add.reduce(d_log_std, axis=1, keepdims=True, out=self._free[1])


_HALF_LOG_2PI = 0.5 * float(np.log(2 * np.pi))
