"""The minibatch loop of a PPO update, in two ways: by hand, and with autograd.

    steps.begin(columns, settings)
    steps.run(rows)              rows of the batch, (M, minibatch_size); as often as wanted
    steps.run(rows, loss)        the same, and `loss` computes each minibatch's loss, and may log it
    steps.end()

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
from raytrain.ppo.fast_update.loss_gradients import (
    LossSettings,
    advantage_columns,
    categorical_head,
    gaussian_head,
)
from raytrain.ppo.fast_update.mlp_network import Buffers, Matrices, MlpPolicy, Pass
from raytrain.ppo.fast_update.train_batch import Array

TensorColumns = dict[str, torch.Tensor]
Loss = Callable[[TensorColumns], torch.Tensor]

_ROWS_AT_ONCE = 4096
"""Rows gathered at once: minibatches are slices of them, which are then in the cache."""


class HandWrittenSteps:
    """Forward and backward pass written out, on arrays made once."""

    def __init__(self, network: MlpPolicy, adam: FlatAdam, gradient_step: GradientStep) -> None:
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
        self._arguments = (*self._head.arguments, *settings.coefficients)
        self._tensors = columns
        arrays = {name: column.numpy() for name, column in columns.items()}
        self._loss_mask, self._obs = arrays[Columns.LOSS_MASK], arrays[Columns.OBS]
        lines = advantage_columns(arrays, settings) + self._head.lines(arrays)
        self._columns = np.stack(lines).astype(np.float32, copy=False)
        masks = arrays.get(ACTION_MASKS)
        self._forbidden = None if masks is None else np.ascontiguousarray(~masks.T)

    def run(self, rows: Array, loss: Loss | None = None) -> None:
        if loss is not None:
            with torch.no_grad():
                for index in torch.from_numpy(rows):
                    loss({name: column[index] for name, column in self._tensors.items()})
        at_once = max(1, _ROWS_AT_ONCE // rows.shape[1])
        # `GradientStep` handles what is not finite, and it shows in the metrics.
        with np.errstate(all="ignore"):
            for first in range(0, len(rows), at_once):
                self._run_some(rows[first : first + at_once])

    def end(self) -> None:
        self._adam.end()
        del self._obs, self._tensors, self._columns, self._forbidden

    def _run_some(self, rows: Array) -> None:
        # Bootstrap rows count in a minibatch's size, but not in its loss.
        counts = self._loss_mask[rows]
        index = rows[counts]
        obs, columns = self._obs.take(index, axis=0), self._columns.take(index, axis=1)
        forbidden = None if self._forbidden is None else self._forbidden.take(index, axis=1)
        start = 0
        for n in counts.sum(axis=1).tolist():
            stop = start + n
            if n:
                masked = None if forbidden is None else forbidden[:, start:stop]
                self._differentiate(obs[start:stop], columns[:, start:stop], masked)
            else:
                self._adam.gradient.zero_()
            self._gradient_step.apply()
            start = stop

    def _differentiate(self, obs: Array, columns: Array, forbidden: Array | None) -> None:
        """Write the gradient of a minibatch's loss. `forbidden`: actions, (K, n) bool."""
        n = len(obs)
        net = self._passes.get(n)
        if net is None:
            net = Pass(self._network, self._weights, self._gradient, n, self._buffers)
            self._passes[n] = net
        net.forward(obs)
        if forbidden is not None:
            # Their probabilities are 0 then, and so are all derivatives by them.
            np.copyto(net.outputs, MASKED, where=forbidden)
        self._head.kernel(
            net.outputs, net.values, columns, net.d_outputs, net.d_values, *self._arguments
        )
        net.backward(obs)


class AutogradSteps:
    """Autograd through the module, without RLlib's work around it."""

    def __init__(
        self,
        adam: FlatAdam,
        gradient_step: GradientStep,
        loss: Callable[[TensorColumns, LossSettings], torch.Tensor],
    ) -> None:
        self._adam, self._gradient_step, self._loss = adam, gradient_step, loss

    def begin(self, columns: TensorColumns, settings: LossSettings) -> None:
        self._adam.begin()
        self._columns, self._settings = columns, settings

    def run(self, rows: Array, loss: Loss | None = None) -> None:
        for index in torch.from_numpy(rows).to(self._adam.weights.device):
            self._step(index, loss)

    def end(self) -> None:
        self._adam.end()
        del self._columns

    def _step(self, index: torch.Tensor, loss: Loss | None = None) -> None:
        minibatch = {name: column.index_select(0, index) for name, column in self._columns.items()}
        total = self._loss(minibatch, self._settings) if loss is None else loss(minibatch)
        # Not `backward`: it would go through the hooks of DistributedDataParallel.
        gradients = torch.autograd.grad(total, self._adam.parameters, allow_unused=True)
        flat = [
            (torch.zeros_like(parameter) if gradient is None else gradient).reshape(-1)
            for parameter, gradient in zip(self._adam.parameters, gradients, strict=True)
        ]
        torch.cat(flat, out=self._adam.gradient)
        self._gradient_step.apply()
