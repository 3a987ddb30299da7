"""The digest of a module's weights, which is the identity of a policy.

It depends on names, dtypes, shapes and bits alone, not on how a library writes its files. For every
parameter and buffer, in the order of the sorted names, SHA-256 is fed with

    name in UTF-8     "\\n"
    dtype's name      "\\n"      float32, bfloat16, int64, bool, ...
    shape             "\\n"      decimal numbers joined by commas; nothing for a scalar
    raw bytes                   little-endian, row-major
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


def weights_sha256(state: Mapping[str, torch.Tensor | np.ndarray[Any, Any]]) -> str:
    """Hexadecimal digest of a module's parameters and buffers (`state_dict()`), on any device.

    Raises `TypeError` for a value that is neither a tensor nor an array of numbers.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        dtype, shape, array = _raw(name, state[name])
        digest.update(f"{name}\n{dtype}\n{','.join(map(str, shape))}\n".encode())
        little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
        digest.update(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _raw(name: str, value: Any) -> tuple[str, tuple[int, ...], np.ndarray[Any, Any]]:
    """The dtype's name, the shape, and an array with the same bits."""
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise TypeError(f"weight {name!r} is an array of Python objects; it has no digest")
        return array.dtype.name, array.shape, array
    import torch

    if not isinstance(value, torch.Tensor):
        raise TypeError(f"weight {name!r} is a {type(value).__name__}, not a tensor or an array")
    dtype = str(value.dtype).removeprefix("torch.")
    tensor = value.detach().cpu().contiguous()
    if value.dtype == torch.bfloat16:  # NumPy has no such type: the same bits, as integers
        tensor = tensor.view(torch.int16)
    elif dtype.startswith("float8"):
        tensor = tensor.view(torch.uint8)
    return dtype, tuple(value.shape), tensor.numpy()
