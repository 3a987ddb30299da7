"""A fingerprint of arithmetic: a hash of what a process computes from fixed inputs.

Two processes with the same fingerprint round alike in what was computed: the libraries' functions
here, and the run's own kernels, which `rollout.rehearsal` and `ppo.rehearsal` add. Inputs come from
PCG64, an integer generator, and are the same everywhere.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np

FORMAT = 1
"""Of what is computed; fingerprints of different formats cannot be compared."""

_OF_ANY: tuple[np.ufunc, ...] = (np.exp, np.expm1, np.tanh, np.sinh, np.sin, np.cos, np.tan)
_OF_POSITIVE: tuple[np.ufunc, ...] = (np.log, np.log1p, np.log2, np.log10, np.sqrt, np.arctan)

Array: TypeAlias = np.ndarray[Any, Any]


class Fingerprint:
    """Hashes arrays, tensors and numbers, their types and shapes included."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, *values: Any) -> None:
        """Numbers, arrays or tensors of any device."""
        for value in values:
            array = np.ascontiguousarray(
                value.detach().cpu() if hasattr(value, "detach") else value
            )
            self._hash.update(f"{array.dtype.str}{array.shape}".encode())
            self._hash.update(array.tobytes())

    def text(self, shapes: str = "") -> str:
        """`1:` and 32 hex digits; or `1-SHAPES:`, if the run's own kernels are in it."""
        head = "-".join(filter(None, [str(FORMAT), shapes]))
        return f"{head}:{self._hash.hexdigest()[:32]}"


class FixedNumbers:
    """The same numbers on every machine, of a seed."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def uniform(self, shape: Iterable[int], bound: float = 1.0) -> Array:
        """float32 between plus and minus `bound`."""
        # Integers, scaled exactly: no function of a library takes part.
        whole = self._generator.integers(-(2**23), 2**23, size=tuple(shape), dtype=np.int32)
        return (whole / np.float64(2**23) * bound).astype(np.float32)

    def integers(self, below: int, shape: Iterable[int]) -> Array:
        """int64 from 0."""
        return self._generator.integers(0, below, size=tuple(shape))


def holds_the_network(fingerprint: str) -> bool:
    """Whether the run's own kernels are in it."""
    return "-" in fingerprint.partition(":")[0]


def comparable(one: str, other: str) -> bool:
    """Whether the two fingerprints are of one format, and of kernels of the same shapes."""
    return one.partition(":")[0] == other.partition(":")[0]


def add_libraries(fingerprint: Fingerprint) -> None:
    """Add the functions of libraries that environments and connectors use: NumPy, the C library
    and, if it is imported, Torch."""
    numbers = FixedNumbers()
    single = numbers.uniform((1027,), 4.0)  # No multiple of a vector's length.
    double = single.astype(np.float64)
    for values in (single, double):
        positive = np.abs(values) + values.dtype.type(0.1)
        for function in _OF_ANY:
            fingerprint.add(function(values))
        for function in _OF_POSITIVE:
            fingerprint.add(function(positive))
        fingerprint.add(positive**0.3, np.arctan2(values, positive))
        fingerprint.add(values.sum(), values.mean(), values.std())
        one = values[:1024].reshape(32, 32)
        fingerprint.add(one @ one, one @ values[:32], values @ values)
    few = [float(value) for value in double[:64]]
    for name in ("exp", "expm1", "sin", "cos", "tan", "sinh", "tanh", "atan"):
        fingerprint.add(np.array([getattr(math, name)(value) for value in few]))
    for name in ("log", "log1p", "log2", "log10", "gamma"):
        fingerprint.add(np.array([getattr(math, name)(abs(value) + 0.1) for value in few]))
    fingerprint.add(np.array([abs(value) ** 0.3 for value in few]))
    wide = numbers.uniform((67, 131))
    fingerprint.add(wide @ wide.T, np.linalg.norm(wide), wide.astype(np.float64) @ wide.T)
    generator = np.random.default_rng(0)
    fingerprint.add(generator.normal(size=129), generator.exponential(size=129))
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return
    tensor, matrix = torch.from_numpy(single), torch.from_numpy(wide)
    fingerprint.add(tensor.exp(), tensor.tanh(), tensor.sigmoid(), (tensor.abs() + 1).log())
    fingerprint.add(tensor.sum(), matrix @ matrix.T, matrix.softmax(-1), matrix.log_softmax(-1))
