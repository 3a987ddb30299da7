"""What RLlib's connectors do around the module, in NumPy, dtypes included, without RLlib.

    base_struct, stack, unstack      spaces and batches of nested observations and actions
    flat_vector                      FlattenObservations: float32, Discrete and MultiDiscrete one-hot
    frozen_filter                    MeanStdFilter without an update
    as_numpy                         TensorToNumpy: no 64 bits

Struct: nested dicts and tuples, as `tree` (dm-tree) knows them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tree
from gymnasium.spaces import Dict, Discrete, MultiDiscrete, Tuple

Array = np.ndarray[Any, Any]
SMALL_NUMBER = 1e-6
"""What RLlib adds to a standard deviation before it divides by it."""


def base_struct(space: gym.Space[Any]) -> Any:
    """Tuple and Dict spaces as tuples and dicts of their leaf spaces."""
    if isinstance(space, Tuple):
        return tuple(base_struct(each) for each in space.spaces)
    if isinstance(space, Dict):
        return {key: base_struct(each) for key, each in space.spaces.items()}
    return space


def stack(items: list[Any]) -> Any:
    """A list of structs as a struct of arrays with a batch axis in front."""
    return tree.map_structure(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *items)


def unstack(struct: Any) -> list[Any]:
    """The reverse of `stack`."""
    leaves = tree.flatten(struct)
    return [tree.unflatten_as(struct, [leaf[i] for leaf in leaves]) for i in range(len(leaves[0]))]


def flat_vector(observation: Any, struct: Any) -> Array:
    """One float32 vector of an observation, its leaves in the order of `tree.flatten`."""
    parts = [
        _flat_leaf(value, space)
        for value, space in zip(tree.flatten(observation), tree.flatten(struct), strict=True)
    ]
    return np.concatenate(parts, axis=-1)


def _flat_leaf(value: Any, space: gym.Space[Any]) -> Array:
    if isinstance(space, Discrete):
        return _one_hot(value, int(space.n))
    if isinstance(space, MultiDiscrete):
        return np.concatenate([_one_hot(v, int(n)) for v, n in zip(value, space.nvec, strict=True)])
    return np.reshape(np.asarray(value), [-1]).astype(np.float32)


def _one_hot(index: Any, size: int) -> Array:
    vector = np.zeros(size, np.float32)
    vector[index] = 1.0
    return vector


def frozen_filter(
    *, count: int, mean: Array, sum_sq_diff: Array, center: bool, scale: bool, clip: float | None
) -> Callable[[Any], Array]:
    """(x - mean) / std, clipped, in the dtype of x; `std` is that of the sample, in float32."""
    shift, divisor = filter_terms(count, mean, sum_sq_diff)

    def apply(observation: Any) -> Array:
        value = np.asarray(observation)
        dtype = value.dtype
        if center:
            value = value - shift
        if scale:
            value = value / divisor
        if clip:
            value = np.clip(value, -clip, clip)
        return value.astype(dtype)

    return apply


def filter_terms(count: int, mean: Array, sum_sq_diff: Array) -> tuple[Array, Array]:
    """What is subtracted (float64), and what is divided by (float32)."""
    if count <= 1:
        variance = np.zeros_like(mean).astype(np.float32)
    else:
        variance = (sum_sq_diff / (float(count) - 1)).astype(np.float32)
    return mean, np.sqrt(np.maximum(0, variance)) + SMALL_NUMBER


def as_numpy(struct: Any) -> Any:
    """Tensors as arrays; float64 becomes float32 and int64 becomes int32."""

    def one(leaf: Any) -> Any:
        array = leaf.detach().cpu().numpy() if isinstance(leaf, torch.Tensor) else leaf
        if not isinstance(array, np.ndarray):
            return array
        if np.issubdtype(array.dtype, np.floating):
            return array.astype(np.float32)
        return array.astype(np.int32) if array.dtype == np.int64 else array

    return tree.map_structure(one, struct)


def as_tensor(array: Array) -> torch.Tensor:
    """The tensor that a module sees: float64 becomes float32."""
    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float64 else array)
