"""The minibatch loop of a PPO update, in two ways: by hand, and with autograd.

    steps.begin(columns, settings)
    steps.run(rows)              rows of the batch, (M, minibatch_size); as often as wanted
    steps.run(rows, loss)        the same, and `loss` computes each minibatch's loss, and may log it
    steps.end()

`run` returns the number of minibatches with a step: fewer than there are rows if one has a larger
approximate KL divergence than the settings allow. That ends the update, before its step.

`eligibility` says which way serves which module. Both change the module's own parameters and the
state of RLlib's own optimizer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from ray.rllib.core.columns import Columns

from raytrain.policy.action_masks import COLUMN as ACTION_MASKS
from raytrain.policy.action_masks import MASKED
from raytrain.ppo.fast_update.flat_adam import FlatAdam
from raytrain.ppo.fast_update.gradient_step import GradientStep
from raytrain.ppo.fast_update.loss import Loss
from raytrain.ppo.fast_update.loss_gradients import (
    LossSettings,
    advantage_columns,
    categorical_head,
    gaussian_head,
)
from raytrain.ppo.fast_update.mlp_network import Buffers, Matrices, MlpPolicy, Pass
from raytrain.ppo.fast_update.train_batch import Array
from raytrain.ppo.own_training import mean_over_learners, sum_of_approximate_kl

TensorColumns = dict[str, torch.Tensor]
LossToLog = Callable[[TensorColumns], torch.Tensor]


class KlLimit:
    """Compares the approximate KL divergence of each minibatch with a limit."""

    def __init__(self, *, learners: int, device: torch.device) -> None:
        self._learners, self._device = learners, device
        self.present: float | None = None
        """The divergence of the last minibatch; None before the first."""

    def exceeded(self, limit: float, log_ratio: torch.Tensor, rows: int) -> bool:
        """`log_ratio`: logp - logp_old of the minibatch; it may have more entries than `rows`, the
        others 0. All learners must ask, and get the same answer."""
        self.present = mean_over_learners(
            sum_of_approximate_kl(log_ratio), rows, learners=self._learners, device=self._device
        )
        return self.present > limit


_ROWS_AT_ONCE = 4096
"""Rows gathered at once: minibatches are slices of them, which are then in the cache."""


class HandWrittenSteps:
    """Forward and backward pass written out, on arrays made once."""

    def __init__(
        self, network: MlpPolicy, adam: FlatAdam, gradient_step: GradientStep, kl_limit: KlLimit
    ) -> None:
        # Importing Numba takes half a second, and only an update needs it.
        from raytrain.ppo.fast_update import kernels

        self._kernels, self._kl_limit = kernels, kl_limit
        self._network, self._adam, self._gradient_step = network, adam, gradient_step
        self._weights = Matrices(network, adam.weights)
        self._gradient = Matrices(network, adam.gradient)
        self._buffers = Buffers()
        self._passes: dict[int, Pass] = {}
        clip, free = network.log_std_clip, None
        if self._weights.log_std is not None and self._gradient.log_std is not None:
            free = self._weights.log_std, self._gradient.log_std
        self._head = (
            categorical_head(network.policy_head.out_features)
            if clip is None
            else gaussian_head(clip, free)
        )

    def begin(self, columns: TensorColumns, settings: LossSettings) -> None:
        self._adam.begin()
        self._settings = settings
        self._arguments = (*self._head.arguments, *settings.coefficients)
        self._tensors = columns
        arrays = {name: column.numpy() for name, column in columns.items()}
        self._loss_mask, self._obs = arrays[Columns.LOSS_MASK], arrays[Columns.OBS]
        lines = advantage_columns(arrays, settings) + self._head.lines(arrays)
        if settings.clip_range_vf is not None:
            lines.append(arrays[Columns.VF_PREDS])
        self._columns = np.stack(lines).astype(np.float32, copy=False)
        masks = arrays.get(ACTION_MASKS)
        self._forbidden = None if masks is None else np.ascontiguousarray(~masks.T)

    def run(self, rows: Array, loss: LossToLog | None = None) -> int:
        if loss is not None:
            with torch.no_grad():
                for index in torch.from_numpy(rows):
                    loss({name: column[index] for name, column in self._tensors.items()})
        at_once = max(1, _ROWS_AT_ONCE // rows.shape[1])
        # `GradientStep` handles what is not finite, and it shows in the metrics.
        with np.errstate(all="ignore"):
            for first in range(0, len(rows), at_once):
                some = rows[first : first + at_once]
                done = self._run_some(some)
                if done < len(some):
                    return first + done
        return len(rows)

    def end(self) -> None:
        self._adam.end()
        del self._obs, self._tensors, self._columns, self._forbidden

    def _run_some(self, rows: Array) -> int:
        # Bootstrap rows count in a minibatch's size, but not in its loss.
        counts = self._loss_mask[rows]
        index = rows[counts]
        obs, columns = self._obs.take(index, axis=0), self._columns.take(index, axis=1)
        forbidden = None if self._forbidden is None else self._forbidden.take(index, axis=1)
        start, limit = 0, self._settings.kl_limit
        for done, n in enumerate(counts.sum(axis=1).tolist()):
            stop = start + n
            here = obs[start:stop], columns[:, start:stop]
            masked = None if forbidden is None else forbidden[:, start:stop]
            net = self._forward(here[0], masked) if n else None
            if limit is not None and self._kl_limit.exceeded(
                limit, self._log_ratio(net, here[1]), n
            ):
                return done
            if net is not None:
                self._differentiate(net, *here)
            else:
                self._adam.gradient.zero_()
            self._gradient_step.apply()
            start = stop
        return len(rows)

    def _forward(self, obs: Array, forbidden: Array | None) -> Pass:
        """The network's outputs for a minibatch. `forbidden`: actions, (K, n) bool."""
        n = len(obs)
        net = self._passes.get(n)
        if net is None:
            net = Pass(self._network, self._weights, self._gradient, n, self._buffers)
            self._passes[n] = net
        net.forward(obs)
        if forbidden is not None:
            # Their probabilities are 0 then, and so are all derivatives by them.
            np.copyto(net.outputs, MASKED, where=forbidden)
        return net

    def _log_ratio(self, net: Pass | None, columns: Array) -> torch.Tensor:
        """logp - logp_old of a minibatch; empty without one."""
        log_ratio = np.empty(columns.shape[1], np.float32)
        if net is not None:
            self._head.log_ratio(net.outputs, columns, log_ratio, *self._head.arguments)
        return torch.from_numpy(log_ratio)

    def _differentiate(self, net: Pass, obs: Array, columns: Array) -> None:
        """Write the gradient of a minibatch's loss."""
        settings = self._settings
        if settings.in_minibatches:
            clip = settings.clip_param
            self._kernels.standardize()(columns, 1 - clip, 1 + clip)
        self._head.kernel(
            net.outputs, net.values, columns, net.d_outputs, net.d_values, *self._arguments
        )
        if settings.clip_range_vf is not None:
            self._kernels.by_clipped_values()(
                net.values,
                columns,
                net.d_values,
                settings.clip_range_vf,
                settings.vf_clip_param,
                settings.vf_loss_coeff,
            )
        net.backward(obs)


class AutogradSteps:
    """Autograd through the module, without RLlib's work around it."""

    def __init__(
        self,
        adam: FlatAdam,
        gradient_step: GradientStep,
        loss: Callable[[TensorColumns, LossSettings], Loss],
        kl_limit: KlLimit,
    ) -> None:
        self._adam, self._gradient_step, self._loss = adam, gradient_step, loss
        self._kl_limit = kl_limit

    def begin(self, columns: TensorColumns, settings: LossSettings) -> None:
        self._adam.begin()
        self._columns, self._settings = columns, settings

    def run(self, rows: Array, loss: LossToLog | None = None) -> int:
        for done, index in enumerate(torch.from_numpy(rows).to(self._adam.weights.device)):
            if not self._step(index, loss):
                return done
        return len(rows)

    def end(self) -> None:
        self._adam.end()
        del self._columns

    def _step(self, index: torch.Tensor, loss: LossToLog | None = None) -> bool:
        """Whether there was a step."""
        minibatch = {name: column.index_select(0, index) for name, column in self._columns.items()}
        limit = self._settings.kl_limit
        if limit is not None:
            if loss is not None:
                with torch.no_grad():
                    loss(minibatch)
            total, log_ratio = self._loss(minibatch, self._settings)
            rows = int(minibatch[Columns.LOSS_MASK].sum())
            if self._kl_limit.exceeded(limit, log_ratio, rows):
                return False
        elif loss is None:
            total = self._loss(minibatch, self._settings).mean
        else:
            total = loss(minibatch)
        # Not `backward`: it would go through the hooks of DistributedDataParallel.
        gradients = torch.autograd.grad(total, self._adam.parameters, allow_unused=True)
        flat = [
            (torch.zeros_like(parameter) if gradient is None else gradient).reshape(-1)
            for parameter, gradient in zip(self._adam.parameters, gradients, strict=True)
        ]
        torch.cat(flat, out=self._adam.gradient)
        self._gradient_step.apply()
        return True
