"""The minibatch loop of a PPO update on a GPU, with one launch for each minibatch.

A minibatch of a small network is some 150 kernels of a few microseconds each, and a CPU needs
longer to launch them than the GPU to run them. A CUDA graph holds them all, captured once and
replayed for every minibatch. The kernels and their order are the same, so the weights are the same,
bit for bit.

A graph reads the memory that it was captured with: the batch's columns are copied into
buffers that stay, and what changes between updates (learning rate, coefficients of entropy
and KL) is in tensors. Clip ranges are constants of a graph: one that follows a schedule costs a
capture in each update. With a limit of the KL divergence there is no graph, since each minibatch
decides whether the next one follows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from raytrain.ppo.fast_update.flat_adam import FlatAdam
from raytrain.ppo.fast_update.gradient_step import GradientStep
from raytrain.ppo.fast_update.loss import Loss
from raytrain.ppo.fast_update.loss_gradients import LossSettings
from raytrain.ppo.fast_update.minibatch_loop import (
    AutogradSteps,
    KlLimit,
    LossToLog,
    TensorColumns,
)
from raytrain.ppo.fast_update.train_batch import Array

_WARM_UPS = 3
"""Steps before a capture, in which libraries initialize themselves: a graph must not hold that."""

_KNOWN = ("torch.nn.", "ray.rllib.", "raytrain.policy.")

logger = logging.getLogger(__name__)


def can_be_captured(module: torch.nn.Module) -> bool:
    """Whether all parts of a module are RLlib's, PyTorch's or raytrain's. Others may decide in
    Python what to compute, and a graph would repeat the first decision forever."""
    return all(type(part).__module__.startswith(_KNOWN) for part in module.modules())


class GraphedSteps(AutogradSteps):
    """`AutogradSteps` for one learner on a CUDA device."""

    def __init__(
        self,
        adam: FlatAdam,
        gradient_step: GradientStep,
        loss: Callable[[TensorColumns, LossSettings], Loss],
        kl_limit: KlLimit,
        module: torch.nn.Module,
    ) -> None:
        super().__init__(adam, gradient_step, loss, kl_limit)
        self._module, self._device = module, adam.weights.device
        self._held: TensorColumns = {}
        self._coefficients = torch.zeros(2, dtype=torch.float32, device=self._device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._captured: Any = None
        """What the graph was captured for; if this changes, another is captured."""
        self._refused = False

    def begin(self, columns: TensorColumns, settings: LossSettings) -> None:
        super().begin(self._keep(columns), self._with_tensors(settings))

    def run(self, rows: Array, loss: LossToLog | None = None) -> int:
        """With `loss`, or with a limit of the KL divergence, nothing is captured."""
        if loss is not None or self._refused or not len(rows) or self._constants.kl_limit:
            return super().run(rows, loss)
        clipping, adam = self._gradient_step.clipping, self._adam.constants
        wanted = (rows.shape[1], self._constants, clipping, adam)
        if self._graph is None or wanted != self._captured:
            self._graph, self._captured = self._capture(rows.shape[1]), wanted
        if self._graph is None:
            return super().run(rows)
        for index in torch.from_numpy(rows).to(self._device):
            self._index.copy_(index)
            self._graph.replay()
        return len(rows)

    def _keep(self, columns: TensorColumns) -> TensorColumns:
        """The columns in buffers that stay where they are, and may be longer."""
        rows = len(next(iter(columns.values())))
        fit = columns.keys() == self._held.keys() and all(
            _fits(column, self._held[name]) for name, column in columns.items()
        )
        if not fit:
            self._graph = None
            # The number of bootstrap rows differs between batches.
            self._held = {
                name: column.new_zeros((rows + rows // 8, *column.shape[1:]))
                for name, column in columns.items()
            }
        for name, column in columns.items():
            self._held[name][:rows].copy_(column)
        return self._held

    def _with_tensors(self, settings: LossSettings) -> LossSettings:
        """Coefficients as tensors; one of 0 stays a number, so that its term is not computed."""
        entropy, kl = settings.entropy_coeff, settings.kl_coeff
        self._constants = replace(
            settings, entropy_coeff=float(bool(entropy)), kl_coeff=float(bool(kl))
        )
        self._coefficients.copy_(torch.tensor([entropy, kl]))
        tensors: Any = self._coefficients
        return replace(
            settings,
            entropy_coeff=tensors[0] if entropy else 0.0,
            kl_coeff=tensors[1] if kl else 0.0,
        )

    def _capture(self, size: int) -> torch.cuda.CUDAGraph | None:
        self._index = torch.zeros(size, dtype=torch.int64, device=self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            with self._unchanged():
                stream = torch.cuda.Stream(self._device)
                stream.wait_stream(torch.cuda.current_stream(self._device))
                with torch.cuda.stream(stream):
                    for _ in range(_WARM_UPS):
                        self._step(self._index)
                torch.cuda.current_stream(self._device).wait_stream(stream)
            with torch.cuda.graph(graph):
                self._step(self._index)
        except RuntimeError as error:
            logger.warning(
                "Learner updates without a CUDA graph, which is slower; capturing failed: %s",
                error,
            )
            self._refused = True
            return None
        return graph

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Undo what the body computes."""
        changed = (*self._adam.tensors, *self._module.buffers())
        saved = [tensor.clone() for tensor in changed]
        with torch.random.fork_rng([self._device]):
            yield
        for tensor, value in zip(changed, saved, strict=True):
            tensor.copy_(value)


def _fits(column: torch.Tensor, held: torch.Tensor) -> bool:
    same = column.dtype == held.dtype and column.shape[1:] == held.shape[1:]
    return same and len(column) <= len(held)
