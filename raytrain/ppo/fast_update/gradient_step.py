"""From a minibatch's gradient to new weights: reduce over learners, check, clip, step.

The order and the meaning are RLlib's. The gradient is flat, so each of these is one call, where
RLlib makes one for each parameter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from ray.rllib.utils.torch_utils import clip_gradients, compute_global_norm

from raytrain.ppo.fast_update.flat_adam import FlatAdam

_HUGE = 10e8
"""RLlib's value for an infinite norm."""


@dataclass(frozen=True)
class Clipping:
    """RLlib's settings: `by` is value, norm (of each parameter) or global_norm."""

    limit: float | None
    by: str
    log_norm: bool = False

    @property
    def wants_norm(self) -> bool:
        """Whether the global norm is reported as a metric."""
        return self.log_norm or bool(self.limit and self.by == "global_norm")


class GradientStep:
    """Applies `adam.gradient`, once for each minibatch."""

    def __init__(self, adam: FlatAdam, clipping: Clipping, *, learners: int) -> None:
        self._adam, self._learners = adam, learners
        self.clipping = clipping
        self._views = adam.views(adam.gradient)
        self._on_cpu = adam.gradient.device.type == "cpu"
        self._array: Any = adam.gradient.numpy() if self._on_cpu else None
        self.norm: Any = None
        """Global norm of the last gradient before clipping, if it is wanted."""

    def apply(self) -> None:
        """Make a step along the gradient, which is undefined afterwards."""
        gradient, scale = self._adam.gradient, 1.0
        if self._learners > 1:
            # As DistributedDataParallel: the mean over learners.
            gradient /= self._learners
            torch.distributed.all_reduce(gradient)
        if self._on_cpu:
            # Not finite if an element is not (or if the square overflows, which does no harm).
            square = float(self._array.dot(self._array))
            if math.isfinite(square):
                scale = self._clip_on_cpu(math.sqrt(square))
            else:
                self._clip_as_rllib()
        else:
            self._clip_on_device()
        self._adam.step(scale)

    def _clip_on_cpu(self, norm: float) -> float:
        """The factor that clips the gradient as a whole; other clipping is done here."""
        limit, by = self.clipping.limit, self.clipping.by
        self.norm = norm
        if not limit:
            return 1.0
        if by == "global_norm":
            return min(1.0, limit / (norm + 1e-6))
        if by == "value":
            self._adam.gradient.clamp_(-limit, limit)
        else:
            self._clip_each(limit)
        return 1.0

    def _clip_on_device(self) -> None:
        """The same, without waiting for the device."""
        gradient, limit, by = self._adam.gradient, self.clipping.limit, self.clipping.by
        if self.clipping.wants_norm:
            norm = torch.linalg.vector_norm(gradient).nan_to_num(neginf=-_HUGE, posinf=_HUGE)
            self.norm = norm
            if limit and by == "global_norm":
                gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
        if limit and by == "value":
            gradient.clamp_(-limit, limit)
        elif limit and by == "norm":
            self._clip_each(limit)
        # As RLlib; a finite gradient stays as it is.
        gradient.nan_to_num_()

    def _clip_each(self, limit: float) -> None:
        for view in self._views:
            norm = torch.linalg.vector_norm(view).nan_to_num(neginf=-_HUGE, posinf=_HUGE)
            view.mul_((limit / norm).clamp(max=1.0))

    def _clip_as_rllib(self) -> None:
        """A gradient that is not finite: RLlib clips it and then makes it finite."""
        views = dict(enumerate(self._views))
        norm = None
        if self.clipping.limit:
            norm = clip_gradients(
                views, grad_clip=self.clipping.limit, grad_clip_by=self.clipping.by
            )
        self.norm = compute_global_norm(list(views.values())) if norm is None else norm
        for index, view in enumerate(self._views):
            view.copy_(torch.nan_to_num(views[index]))
