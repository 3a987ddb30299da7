"""Adam over one flat buffer, behind the `torch.optim.Adam` that RLlib knows and saves.

Parameters, gradients and both moments are in four flat tensors, in one order:

    weights   | p0 ......... | p1 .. | p2 ....... |      module parameters are views into it
    gradient  | ............ | ..... | .......... |      written by whatever computes gradients
    moments   | ............ | ..... | .......... |  x2  views into them are the optimizer's state

so one kernel steps them all, and one call reduces them over learners. The optimizer keeps its usual
state dict, which RLlib saves and loads. `begin()` binds the views again where loading has replaced
tensors of the optimizer; `end()` writes the step count, which is not a view.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from raytrain.errors import RaytrainError

_MOMENTS = ("exp_avg", "exp_avg_sq")


class FlatAdam:
    """Steps the parameters of `optimizer`, an Adam with RLlib's settings (see `why_not`)."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[torch.nn.Parameter],
        *,
        compiled: bool = False,
    ) -> None:
        """`parameters`: all of the optimizer's, in their order in the buffers. `compiled`: step
        with a loop compiled by Numba, on a CPU."""
        self._optimizer = optimizer
        self.parameters = list(parameters)
        self._sizes = [parameter.numel() for parameter in self.parameters]
        first = self.parameters[0]
        self.weights = torch.empty(sum(self._sizes), dtype=first.dtype, device=first.device)
        self.gradient = torch.zeros_like(self.weights)
        self._moments = {name: torch.zeros_like(self.weights) for name in _MOMENTS}
        self._step = torch.zeros((), dtype=torch.float32, device=first.device)
        # A tensor on a GPU, so that a captured graph steps with the present rate.
        self._lr = None if first.device.type == "cpu" else torch.zeros_like(self._step)
        self._loop: Any = None
        if compiled:
            # Importing Numba takes half a second, and only an update needs it.
            from raytrain.ppo.fast_update import kernels

            self._loop = kernels.adam
            flat = (self.weights, self.gradient, *self._moments.values())
            self._arrays = tuple(tensor.numpy() for tensor in flat)
        self._group: dict[str, Any] = {}
        self._bind_weights()

    @staticmethod
    def why_not(optimizer: Any) -> str:
        """Why this optimizer cannot be stepped flat; empty if it can."""
        if type(optimizer) is not torch.optim.Adam:
            return f"the optimizer is a {type(optimizer).__name__}"
        if len(optimizer.param_groups) != 1:
            return f"the optimizer has {len(optimizer.param_groups)} parameter groups"
        group = optimizer.param_groups[0]
        for name in ("amsgrad", "maximize", "capturable", "differentiable"):
            if group[name]:
                return f"the optimizer has {name}={group[name]}"
        if any(parameter.dtype != torch.float32 for parameter in group["params"]):
            return "not all parameters are float32"
        if len({parameter.device for parameter in group["params"]}) != 1:
            return "the parameters are on several devices"
        return ""

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """A flat buffer as tensors of the parameters' shapes, sharing its memory."""
        return [
            part.view(parameter.shape)
            for part, parameter in zip(flat.split(self._sizes), self.parameters, strict=True)
        ]

    def begin(self) -> None:
        """Call before an update: binds again what has been replaced since the last one."""
        self._group = self._optimizer.param_groups[0]
        self._bind_weights()
        state = self._optimizer.state
        steps = {float(state[p]["step"]) if p in state else 0.0 for p in self.parameters}
        if len(steps) != 1:
            raise RaytrainError(
                "The optimizer's state has different step counts for its parameters: "
                f"{sorted(steps)}. It is not the state of one training run. Use an older "
                "checkpoint."
            )
        self._steps = int(next(iter(steps)))
        if self._lr is not None:
            self._lr.fill_(float(self._group["lr"]))
        self._step.fill_(steps.pop())
        for name, flat in self._moments.items():
            for parameter, view in zip(self.parameters, self.views(flat), strict=True):
                held = state.setdefault(parameter, {}).get(name)
                if held is None:
                    view.zero_()
                elif held.data_ptr() != view.data_ptr():
                    view.copy_(held)
                state[parameter][name] = view

    def step(self, scale: float = 1.0) -> None:
        """One step along `scale` times `gradient`, which it may change."""
        decay = self._group["weight_decay"]
        if self._loop is not None:
            if decay:
                self.gradient.mul_(scale).add_(self.weights, alpha=decay)
                scale = 1.0
            self._steps += 1
            beta1, beta2 = self._group["betas"]
            size = float(self._group["lr"]) / (1.0 - beta1**self._steps)
            root = math.sqrt(1.0 - beta2**self._steps)
            self._loop(*self._arrays, scale, size, root, beta1, beta2, self._group["eps"])
            return
        if scale != 1.0:
            self.gradient.mul_(scale)
        self._step += 1
        # The kernel of `torch.optim.Adam(fused=True)`, whose Python code takes longer than the
        # kernel at the sizes of a policy.
        torch._fused_adam_(
            [self.weights],
            [self.gradient],
            [self._moments["exp_avg"]],
            [self._moments["exp_avg_sq"]],
            [],
            [self._step],
            lr=float(self._group["lr"]) if self._lr is None else self._lr,
            beta1=self._group["betas"][0],
            beta2=self._group["betas"][1],
            weight_decay=decay,
            eps=self._group["eps"],
            amsgrad=False,
            maximize=False,
        )

    @property
    def constants(self) -> tuple[float, ...]:
        """What a step reads that is not in a tensor."""
        return self._group["eps"], self._group["weight_decay"], *self._group["betas"]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Everything that a step reads or writes."""
        return self.weights, self.gradient, *self._moments.values(), self._step

    def end(self) -> None:
        """Call after an update."""
        if self._loop is not None:
            self._step.fill_(self._steps)
        for parameter in self.parameters:
            # On the CPU, where Adam keeps step counts by default.
            self._optimizer.state[parameter]["step"] = self._step.cpu().clone()

    def _bind_weights(self) -> None:
        with torch.no_grad():
            for parameter, view in zip(self.parameters, self.views(self.weights), strict=True):
                if parameter.data_ptr() != view.data_ptr():
                    view.copy_(parameter)
                    parameter.data = view
