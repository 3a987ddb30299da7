"""Gymnasium spaces, arrays and model settings as plain JSON, exact to the bit and without pickle.

Arrays keep their dtype and shape. An array with one value everywhere is written as that value,
any other as the flat list of its values; floats that JSON has no number for are strings:

    {"dtype": "float32", "shape": [84, 84, 4], "fill": 0.0}
    {"dtype": "float32", "shape": [2], "values": [-4.800000190734863, "-inf"]}

Spaces (leaves first):

    {"space": "box", "low": ARRAY, "high": ARRAY}       {"space": "multi_binary", "n": INT or [INT]}
    {"space": "discrete", "n": 4, "start": 0, "dtype": "int64"}
    {"space": "multi_discrete", "nvec": ARRAY, "start": ARRAY, "dtype": "int64"}
    {"space": "tuple", "spaces": [SPACE...]}
    {"space": "dict", "spaces": [[KEY, SPACE]...]}
    {"space": "flat", "of": SPACE, "normalized": BOOL}       (of a module: see `FlatBox`)

Model settings are JSON values, with `{"__tuple__": [...]}` for tuples and `{"__float__": "inf"}`
for the floats without a JSON number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from raytrain.errors import RaytrainError
from raytrain.policy.observations import FlatBox

Json = dict[str, Any]

_NON_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


class PolicyFormatError(RaytrainError):
    """A policy cannot be exported, or the files of an exported one are not usable."""


def encode_array(array: np.ndarray[Any, Any]) -> Json:
    """Raises PolicyFormatError for anything but numbers and booleans."""
    if array.dtype.kind not in "biuf":
        raise PolicyFormatError(
            f"an array of dtype {array.dtype} cannot be stored in policy.json: only numbers can"
        )
    encoded: Json = {"dtype": array.dtype.name, "shape": list(array.shape)}
    first = array.reshape(-1)[:1]
    if array.size and array.tobytes() == first.tobytes() * array.size:
        return {**encoded, "fill": _plain_number(first.item())}
    return {**encoded, "values": [_plain_number(value) for value in array.reshape(-1).tolist()]}


def decode_array(encoded: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """The array of `encode_array`: same dtype, shape and bits, writable."""
    dtype, shape = np.dtype(encoded["dtype"]), tuple(encoded["shape"])
    if "fill" in encoded:
        return np.full(shape, _number(encoded["fill"]), dtype=dtype)
    values = [_number(value) for value in encoded["values"]]
    return np.array(values, dtype=dtype).reshape(shape)


def _plain_number(value: float | int | bool) -> float | int | bool | str:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> float | int | bool:
    return _NON_FINITE[value] if isinstance(value, str) else value


def encode_space(space: gym.Space[Any], where: str = "the space") -> Json:
    """Raises PolicyFormatError, naming `where` the space is, for a kind that has no encoding."""
    if isinstance(space, FlatBox):
        of = encode_space(space.of, where)
        return {"space": "flat", "of": of, "normalized": space.normalized}
    if isinstance(space, Box):
        return {"space": "box", "low": encode_array(space.low), "high": encode_array(space.high)}
    if isinstance(space, Discrete):
        numbers = {"n": int(space.n), "start": int(space.start)}
        return {"space": "discrete", **numbers, "dtype": np.dtype(space.dtype).name}
    if isinstance(space, MultiDiscrete):
        arrays = {"nvec": encode_array(space.nvec), "start": encode_array(space.start)}
        return {"space": "multi_discrete", **arrays, "dtype": np.dtype(space.dtype).name}
    if isinstance(space, MultiBinary):
        shape = list(space.shape)
        return {"space": "multi_binary", "n": shape[0] if len(shape) == 1 else shape}
    if isinstance(space, Tuple):
        spaces = [encode_space(sub, f"{where}[{i}]") for i, sub in enumerate(space.spaces)]
        return {"space": "tuple", "spaces": spaces}
    if isinstance(space, Dict):
        return {"space": "dict", "spaces": _encode_items(space, where)}
    raise PolicyFormatError(
        f"{where} is {space!r}: a policy can be exported for Box, Discrete, MultiDiscrete, "
        "MultiBinary, Dict and Tuple spaces. Wrap the environment so that it uses these."
    )


def _encode_items(space: Dict, where: str) -> list[Any]:
    for key in space.spaces:
        if not isinstance(key, str):
            raise PolicyFormatError(
                f"{where} has the key {key!r}: a policy can be exported for Dict spaces whose keys "
                "are strings"
            )
    # Pairs, not an object: the order of the keys is the order of the flattened observation.
    return [[key, encode_space(sub, f"{where}[{key!r}]")] for key, sub in space.items()]


def decode_space(encoded: Mapping[str, Any]) -> gym.Space[Any]:
    """Raises PolicyFormatError for a kind of space that this version does not know."""
    kind = encoded["space"]
    if kind == "box":
        low, high = decode_array(encoded["low"]), decode_array(encoded["high"])
        return Box(low, high, dtype=low.dtype.type)
    if kind == "flat":
        return FlatBox(decode_space(encoded["of"]), normalized=encoded["normalized"])
    if kind == "discrete":
        dtype = np.dtype(encoded["dtype"]).type
        return Discrete(encoded["n"], start=encoded["start"], dtype=dtype)
    if kind == "multi_discrete":
        nvec, start = decode_array(encoded["nvec"]), decode_array(encoded["start"])
        return MultiDiscrete(nvec, dtype=np.dtype(encoded["dtype"]).type, start=start)
    if kind == "multi_binary":
        return MultiBinary(encoded["n"])
    if kind == "tuple":
        return Tuple([decode_space(sub) for sub in encoded["spaces"]])
    if kind == "dict":  # A list of pairs keeps the order; Gymnasium would sort a plain dict.
        return Dict([(key, decode_space(sub)) for key, sub in encoded["spaces"]])
    raise PolicyFormatError(
        f"policy.json describes a space of kind {kind!r}; known are box, discrete, multi_discrete, "
        "multi_binary, tuple, dict, flat"
    )


def encode_settings(value: Any, where: str) -> Any:
    """Nested settings (model_config, env_config) as JSON. Raises PolicyFormatError for others."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"__float__": str(value)}
    if isinstance(value, (list, tuple)):
        items = [encode_settings(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"__tuple__": items}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key in {"__tuple__", "__float__"}:
                raise PolicyFormatError(f"{where} has the key {key!r}: it must be another string")
        return {key: encode_settings(item, f"{where}.{key}") for key, item in value.items()}
    raise PolicyFormatError(
        f"{where} is {value!r}, which has no plain form: use numbers, strings, lists and mappings"
    )


def decode_settings(value: Any) -> Any:
    """The settings of `encode_settings`, tuples and infinities included."""
    if isinstance(value, list):
        return [decode_settings(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__tuple__"}:
        return tuple(decode_settings(item) for item in value["__tuple__"])
    if value.keys() == {"__float__"}:
        return _NON_FINITE[value["__float__"]]
    return {key: decode_settings(item) for key, item in value.items()}
