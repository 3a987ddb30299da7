"""What RLlib's connectors do around the module, in NumPy, dtypes included, without RLlib.

    base_struct, stack, unstack    spaces and batches of nested observations and actions
    flat_vector                    FlattenObservations: float32, Discrete and MultiDiscrete one-hot
                                   (from `start` on, of any shape)
    normalize, filter_divisor      MeanStdFilter
    as_array, as_tensor            TensorToNumpy and NumpyToTensor: no 64 bits

Struct: nested dicts and tuples, as `tree` (dm-tree) knows them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import tree
from gymnasium.spaces import Dict, Discrete, MultiDiscrete, Tuple

if TYPE_CHECKING:  # The driver's checks of spaces do without it.
    import torch

Array = np.ndarray[Any, Any]
_SMALL_NUMBER = 1e-6  # RLlib adds it to a standard deviation before it divides by it.


def base_struct(space: gym.Space[Any]) -> Any:
    """Tuple and Dict spaces as tuples and dicts of their leaf spaces."""
    if isinstance(space, Tuple):
        return tuple(base_struct(inner) for inner in space.spaces)
    if isinstance(space, Dict):
        return {key: base_struct(inner) for key, inner in space.spaces.items()}
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
        return _one_hot(int(value) - int(space.start), int(space.n))
    if isinstance(space, MultiDiscrete):
        numbers = np.ravel(np.asarray(value) - space.start)
        sizes = np.ravel(space.nvec)
        return np.concatenate([_one_hot(v, n) for v, n in zip(numbers, sizes, strict=True)])
    return np.reshape(np.asarray(value), [-1]).astype(np.float32)


def _one_hot(index: int, size: int) -> Array:
    vector = np.zeros(size, np.float32)
    vector[index] = 1.0
    return vector


def normalize(x: Any, mean: Any, divisor: Any, clip: float | None) -> Any:
    """(x - mean) / divisor, clipped to +- `clip`, as in MeanStdFilter: for arrays and tensors.
    Steps whose argument is None are left out."""
    if mean is not None:
        x = x - mean
    if divisor is not None:
        x = x / divisor
    return x.clip(-clip, clip) if clip else x


def filter_divisor(sum_sq_diff: Array, count: Any) -> Array:
    """What MeanStdFilter divides by, float32: the standard deviation of the `count` observations
    whose squared differences from their mean sum up to `sum_sq_diff`, and a small number."""
    variance = np.where(count > 1, sum_sq_diff / np.maximum(count - 1, 1), 0.0).astype(np.float32)
    return np.asarray(np.sqrt(np.maximum(0, variance)) + _SMALL_NUMBER)


def as_array(value: Any) -> Any:
    """A tensor or an array as an array; floats become float32 and int64 becomes int32."""
    array = value.detach().cpu().numpy() if hasattr(value, "detach") else value
    if not isinstance(array, np.ndarray):
        return array
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    return array.astype(np.int32) if array.dtype == np.int64 else array


def as_tensor(array: Array) -> torch.Tensor:
    """The tensor that a module sees: float64 becomes float32."""
    import torch

    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float64 else array)
