"""What an environment returned, as digests that are equal only for the same bits.

A frame is (observation, reward, terminated, truncated), each a SHA-256 in hex over type,
dtype, shape and contents, including the values of nested spaces. One exception: a NaN equals
a NaN of any payload. A frame of a script has the states of the process's generators as well: an
environment that seeds one from the system's entropy may show it in no observation for long.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import random
import struct
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

Frame: TypeAlias = tuple[str, ...]
_PARTS = (
    "observation",
    "reward",
    "terminated flag",
    "truncated flag",
    "state of the process's random generators",
)


def frame_of(observation: Any, reward: Any, terminated: Any, truncated: Any) -> Frame:
    return (digest(observation), digest(reward), digest(terminated), digest(truncated))


def generators() -> str:
    """The states of `random` and of NumPy's global generator, as a digest."""
    return hashlib.sha256(pickle.dumps((random.getstate(), np.random.get_state()))).hexdigest()


def difference(one: Frame, other: Frame) -> str:
    """As "observation differs" or "observation and reward differ"; empty if nothing does."""
    pairs = zip(one, other, strict=True)
    parts = [part for part, (a, b) in zip(_PARTS, pairs, strict=False) if a != b]
    if not parts:
        return ""
    return " and ".join(parts) + (" differs" if len(parts) == 1 else " differ")


def digest(value: Any) -> str:
    return hashlib.sha256(b"".join(_pieces(value))).hexdigest()


def _pieces(value: Any) -> Iterator[bytes]:
    yield f"<{type(value).__name__}>".encode()
    if isinstance(value, float) and not isinstance(value, np.generic):
        yield struct.pack("<d", float("nan") if math.isnan(value) else value)
    elif value is None or isinstance(value, (bool, int, str, bytes)):
        yield repr(value).encode()
    elif isinstance(value, dict):
        for key in sorted(value, key=repr):
            yield repr(key).encode()
            yield from _pieces(value[key])
    elif isinstance(value, (tuple, list)):
        yield str(len(value)).encode()
        for item in value:
            yield from _pieces(item)
    elif hasattr(value, "__array__"):
        yield from _array_pieces(np.asarray(value))
    else:
        yield pickle.dumps(value)


def _array_pieces(array: np.ndarray[Any, Any]) -> Iterator[bytes]:
    yield f"{array.dtype.str} {array.shape} ".encode()
    if array.dtype.hasobject:
        for item in array.ravel().tolist():
            yield from _pieces(item)
        return
    if array.dtype.kind in "fc" and np.isnan(array).any():
        array = np.where(np.isnan(array), np.array(np.nan, dtype=array.dtype), array)
    yield np.ascontiguousarray(array).tobytes()
