"""A policy as one Torch module from raw observations to actions, as TorchScript and as ONNX.

    inputs    one for each leaf of the observation space: (N, ...) in the leaf's dtype; and if
              actions are masked by a mask in the info, `action_mask`: (N, K) bool
    outputs   one for each leaf of the action space: (N, ...), ready for the environment

The actions are the likeliest ones. The filter, one-hot encoding, unsquashing and clipping are part
of the module, and N may change between calls. Leaves have the order of `tree.flatten` and the names
`observation` and `action`, or, in nested spaces, `observation.KEY...` and `action.KEY...`.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tree
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from torch import nn

from raytrain.errors import require
from raytrain.policy.action_masks import MaskLayout, mask_key, masked, unmasked_space
from raytrain.policy.arithmetic import base_struct, filter_divisor, normalize
from raytrain.policy.distributions import ActionDistribution
from raytrain.policy.env_actions import LeafMapping, policy_space, scaled
from raytrain.policy.format import FlattenStep, FloatStep, MeanStdStep, PolicyParts
from raytrain.policy.network import build_network
from raytrain.policy.spaces import PolicyFormatError

TORCHSCRIPT_FILE = "policy.pt"
ONNX_FILE = "policy.onnx"
ONNX_TOLERANCE = 1e-5
_OPSET = 18


class ActingModule(nn.Module):
    """See the module's docstring. `parts.network` must be given."""

    def __init__(self, parts: PolicyParts) -> None:
        super().__init__()
        assert parts.network is not None
        self.network = build_network(parts.network, parts.module_state)
        self._distribution = ActionDistribution(policy_space(parts.action_space))
        self._steps = nn.ModuleList(_steps(parts))
        self._mask_inputs = _mask_inputs(parts)
        action_leaves = tree.flatten(base_struct(parts.action_space))
        self._ends = nn.ModuleList([_End(leaf, parts) for leaf in action_leaves])

    def forward(self, *observations: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x: Any = [part for i, part in enumerate(observations) if i not in self._mask_inputs]
        for step in self._steps:
            x = step(x)
        x = x[0] if isinstance(x, list) else x
        outputs = self.network(x.float() if x.dtype == torch.float64 else x)
        if self._mask_inputs:
            masks = [observations[i].flatten(1) for i in self._mask_inputs]
            outputs = masked(outputs, torch.cat(masks, dim=1) != 0)
        actions = self._distribution.leaves(outputs, deterministic=True)
        return tuple(end(action) for end, action in zip(self._ends, actions, strict=True))


def _mask_inputs(parts: PolicyParts) -> list[int]:
    """Which of the inputs are action masks."""
    if parts.action_mask is None:
        return []
    paths = [path for path, _ in tree.flatten_with_path(base_struct(parts.observation_space))]
    key = mask_key(parts)
    if key is None:
        return [len(paths)]
    return [index for index, path in enumerate(paths) if path[0] == key]


def all_input_names(parts: PolicyParts) -> list[str]:
    """The names of the inputs."""
    names = input_names(parts.observation_space, "observation")
    in_info = parts.action_mask is not None and mask_key(parts) is None
    return [*names, "action_mask"] if in_info else names


def input_names(space: gym.Space[Any], stem: str) -> list[str]:
    """`stem`, or a name for each leaf of a nested space."""
    struct = base_struct(space)
    paths = [path for path, _ in tree.flatten_with_path(struct)]
    return [".".join([stem, *map(str, path)]) for path in paths]


def write_torchscript(parts: PolicyParts, path: Path) -> None:
    """Write the traced policy, which `torch.jit.load` loads without raytrain."""
    with _quiet(), torch.no_grad():
        traced = torch.jit.trace(ActingModule(parts), tuple(observations(parts, 2)), strict=False)
        traced.save(str(path))


def write_onnx(parts: PolicyParts, path: Path) -> float:
    """Write the policy for onnxruntime; returns the largest difference from Torch in 64
    observations.

    Raises MissingExtra; PolicyFormatError if the difference is larger than `ONNX_TOLERANCE`.
    """
    require("export", "onnx", "onnxscript", "onnxruntime", what="An ONNX export")
    module = ActingModule(parts)
    dynamic = torch.export.Dim("batch")
    with _quiet(), torch.no_grad():
        example = tuple(observations(parts, 3))
        program = torch.onnx.export(
            module,
            example,
            input_names=all_input_names(parts),
            output_names=input_names(parts.action_space, "action"),
            dynamic_shapes={"observations": tuple({0: dynamic} for _ in example)},
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
        program.save(str(path), external_data=False)
    difference = _onnx_difference(module, parts, path)
    if not difference <= ONNX_TOLERANCE:
        raise PolicyFormatError(
            f"the ONNX policy differs from Torch by {difference:g}, more than {ONNX_TOLERANCE:g}, "
            "so it was not kept. Use TorchScript, or the policy itself."
        )
    return difference


def observations(parts: PolicyParts, size: int) -> list[torch.Tensor]:
    """Random inputs, a batch for each; every call returns the same. Masks allow what they allow by
    chance, and one choice of each number."""
    leaves: list[gym.Space[Any]] = tree.flatten(base_struct(parts.observation_space))
    batches = []
    for i, leaf in enumerate(leaves):
        leaf.seed(i)
        batches.append(torch.from_numpy(np.stack([np.asarray(leaf.sample()) for _ in range(size)])))
    masked_inputs = _mask_inputs(parts)
    if masked_inputs:
        masks = _random_masks(MaskLayout(parts.action_space), size)
        columns = [leaf.shape or () for leaf in leaves] + [masks.shape[1:]]
        for index in masked_inputs:
            own, masks = np.split(masks, [math.prod(columns[index])], axis=1)
            batch = torch.from_numpy(own.reshape(size, *columns[index]))
            if index < len(batches):
                batches[index] = batch.to(batches[index].dtype)
            else:
                batches.append(batch)
    return batches


def _random_masks(layout: MaskLayout, size: int) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(0)
    masks = random.random((size, layout.entries)) < 0.5
    first = np.cumsum([0, *layout.sizes[:-1]])
    for row in masks:
        row[first + random.integers(layout.sizes)] = True
    return masks


def _onnx_difference(module: ActingModule, parts: PolicyParts, path: Path) -> float:
    import onnxruntime

    batches = observations(parts, 64)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {
        entry.name: batch.numpy()
        for entry, batch in zip(session.get_inputs(), batches, strict=True)
    }
    with torch.no_grad():
        expected = module(*batches)
    return max(
        float(np.max(np.abs(ours.numpy().astype(np.float64) - theirs)))
        for ours, theirs in zip(expected, session.run(None, feeds), strict=True)
    )


def _steps(parts: PolicyParts) -> list[nn.Module]:
    steps: list[nn.Module] = []
    space: gym.Space[Any] = unmasked_space(parts)
    for step in parts.preprocessing:
        if isinstance(step, FlattenStep):
            if step.keys_to_remove:
                raise PolicyFormatError(
                    "FlattenObservations removes keys, which ONNX and TorchScript exports cannot "
                    "repeat. Remove them in a wrapper of the environment instead."
                )
            steps.append(_Flatten(tree.flatten(base_struct(space))))
            space = Box(-np.inf, np.inf, shape=(1,))
        elif isinstance(step, FloatStep):
            steps.append(_Float())
        else:
            steps.append(_MeanStd(step))
    return steps


class _Flatten(nn.Module):
    def __init__(self, leaves: Sequence[gym.Space[Any]]) -> None:
        super().__init__()
        self._leaves = leaves

    def forward(self, parts: list[torch.Tensor]) -> torch.Tensor:
        columns: list[torch.Tensor] = []
        for part, leaf in zip(parts, self._leaves, strict=True):
            if isinstance(leaf, Discrete):
                columns.append(_one_hot(part, int(leaf.start), int(leaf.n)))
                continue
            numbers = part.reshape(part.shape[0], int(np.prod(leaf.shape)))
            if isinstance(leaf, MultiDiscrete):
                sizes = zip(
                    np.ravel(leaf.start).tolist(), np.ravel(leaf.nvec).tolist(), strict=True
                )
                columns += [_one_hot(numbers[:, i], *each) for i, each in enumerate(sizes)]
            else:
                columns.append(numbers.float())
        return torch.cat(columns, dim=-1)


def _one_hot(number: torch.Tensor, start: int, size: int) -> torch.Tensor:
    return (number.unsqueeze(-1) == torch.arange(start, start + size)).float()


class _Float(nn.Module):
    def forward(self, x: Any) -> torch.Tensor:
        value: torch.Tensor = x[0] if isinstance(x, list) else x
        return value.float()


class _MeanStd(nn.Module):
    def __init__(self, step: MeanStdStep) -> None:
        super().__init__()
        divisor = filter_divisor(step.sum_sq_diff, step.count)
        self.register_buffer("mean", torch.from_numpy(step.mean) if step.center else None)
        self.register_buffer("divisor", torch.from_numpy(divisor) if step.scale else None)
        self._clip = step.clip
        columns = None if step.columns is None else torch.tensor(step.columns)
        self.register_buffer("columns", columns)

    def forward(self, x: Any) -> torch.Tensor:
        value: torch.Tensor = x[0] if isinstance(x, list) else x
        if self.columns is None:
            return self._normalized(value)
        changed = self._normalized(value.index_select(1, self.columns))
        return value.index_copy(1, self.columns, changed)

    def _normalized(self, value: torch.Tensor) -> torch.Tensor:
        # In float64 as NumPy, which takes that of a mean without axes too.
        wide = value if self.mean is None else value.double()
        normalized: torch.Tensor = normalize(wide, self.mean, self.divisor, self._clip)
        return normalized.to(value.dtype)


class _End(nn.Module):
    """From the distribution's mode to the environment's action: `LeafMapping` in Torch."""

    def __init__(self, leaf: gym.Space[Any], parts: PolicyParts) -> None:
        super().__init__()
        self._mapping = mapping = LeafMapping.of(
            leaf, normalize=parts.normalize_actions, clip=parts.clip_actions
        )
        if mapping.shift is not None:
            self.register_buffer("shift", torch.from_numpy(np.asarray(mapping.shift)))
        for name, bounds in (("scale", mapping.scale), ("clip", mapping.clip)):
            for side, bound in zip(("low", "high"), bounds or (), strict=False):
                self.register_buffer(f"{name}_{side}", torch.from_numpy(bound))

    def forward(self, action: Any) -> Any:
        mapping = self._mapping
        if mapping.shift is not None:
            action = (action + self.shift).to(self.shift.dtype)
        if mapping.scale is not None:
            action = scaled(action, self.scale_low, self.scale_high)
        if mapping.clip is not None:
            action = torch.minimum(torch.maximum(action, self.clip_low), self.clip_high)
        if mapping.rounded:
            action = torch.round(action)
        if mapping.dtype is not None:
            # Torch has NumPy's names for dtypes.
            action = action.to(getattr(torch, mapping.dtype.name))
        return action if mapping.shape is None else action.reshape(-1, *mapping.shape)


@contextmanager
def _quiet() -> Any:
    """Suppress warnings and output of Torch's exporters, which the user cannot act upon."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
