"""One array for each observation, whatever the environment's observation space: what networks see.

    Box of floats (D,) or (H, W, C)      as it is
    Box of uint8 (H, W, C)               as it is; the network scales it
    Box (H, W, C) of other dtypes        float32, the same shape
    everything else                      one float32 vector, as of RLlib's FlattenObservations:
        Discrete, MultiDiscrete          one-hot, from `start` on; MultiDiscrete in C order
        Box, MultiBinary                 their numbers, in C order, not scaled
        Dict, Tuple                      their parts in the order of `tree.flatten`: keys sorted

A vector that contains images (parts with three axes) has a `FlatBox` as its space, which tells the
network where they are. RLlib's own connector has no value for a `start` or for a MultiDiscrete of
several axes; for everything else the vector is RLlib's to the bit.

MeanStdFilter normalizes the numbers of Boxes; what is one-hot or binary stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import tree
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector.utils import batch_space, iterate

from raytrain.errors import BadInput
from raytrain.policy.arithmetic import Array, base_struct, flat_vector

Kind = Literal["as it is", "float", "flat"]
_MADE_ONCE = 1024


class NoEncoding(BadInput):
    """A kind of space of which no array can be made, such as Text; the message names its place."""


class ObservationOutside(BadInput):
    """A Discrete or MultiDiscrete number that is not in its space has no one-hot vector."""


class FlatBox(Box):
    """The vectors (D,) of a nested space `of` that contains images. `normalized`: by a filter."""

    def __init__(self, of: gym.Space[Any], *, normalized: bool = False) -> None:
        super().__init__(-np.inf, np.inf, (flat_size(of),), np.float32)
        self.of = of
        self.normalized = normalized

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, FlatBox)
            and (self.of, self.normalized) == (other.of, other.normalized)
            and super().__eq__(other)
        )

    __hash__ = None  # type: ignore[assignment]


class Part:
    """A leaf of a nested space, and where its numbers are in the vector."""

    def __init__(self, path: tuple[Any, ...], space: gym.Space[Any], first: int) -> None:
        self.path, self.space = path, space
        self.size = _leaf_size(path, space)
        self.columns = slice(first, first + self.size)


def parts_of(space: gym.Space[Any]) -> list[Part]:
    """The leaves of a space in the order of the vector. Raises NoEncoding."""
    parts: list[Part] = []
    for path, leaf in tree.flatten_with_path(base_struct(space)):
        parts.append(Part(path, leaf, parts[-1].columns.stop if parts else 0))
    return parts


def flat_size(space: gym.Space[Any]) -> int:
    """The length of the vector. Raises NoEncoding."""
    return sum(part.size for part in parts_of(space))


def is_image(space: gym.Space[Any]) -> bool:
    """Whether the network has convolutions for it."""
    return isinstance(space, Box) and len(space.shape) == 3


def _leaf_size(path: tuple[Any, ...], space: gym.Space[Any]) -> int:
    if isinstance(space, Discrete):
        return int(space.n)
    if isinstance(space, MultiDiscrete):
        return int(space.nvec.sum())
    if isinstance(space, Box | MultiBinary):
        return int(np.prod(space.shape))
    where = "".join(f"[{key!r}]" for key in path)
    raise NoEncoding(f"{where or 'it'} is {space}")


def _kind(space: gym.Space[Any], *, normalize: bool) -> Kind:
    if not isinstance(space, Box) or len(space.shape) not in (1, 3):
        return "flat"
    if space.dtype in (np.float32, np.float64):
        return "as it is"
    if len(space.shape) == 1:
        return "flat"
    return "as it is" if space.dtype == np.uint8 and not normalize else "float"


class ObservationEncoding:
    """From observations of `original` to arrays of `space`, the module's before a filter.

    `flat`: always vectors, as FlattenObservations makes them. Raises NoEncoding.
    """

    def __init__(self, original: gym.Space[Any], kind: Kind = "flat") -> None:
        self.original = original
        self.kind = kind
        self.parts = parts_of(original)
        self.space = self._encoded_space()
        self._struct = base_struct(original)
        self._adders = [(part.path, _adder(part.space)) for part in self.parts]

    @classmethod
    def of(cls, original: gym.Space[Any], *, normalize: bool = False) -> ObservationEncoding:
        """By the table above. `normalize`: a filter follows, which needs floats."""
        return cls(original, _kind(original, normalize=normalize))

    def _encoded_space(self) -> Box:
        if self.kind == "as it is":
            assert isinstance(self.original, Box)
            return self.original
        if self.kind == "float":
            return Box(-np.inf, np.inf, self.original.shape, np.float32)
        if any(is_image(part.space) for part in self.parts):
            return FlatBox(self.original)
        return Box(-np.inf, np.inf, (flat_size(self.original),), np.float32)

    def normalized_columns(self) -> list[int] | None:
        """What a filter normalizes, as columns of the vector; None: every number."""
        if self.kind != "flat":
            return None
        kept = [part for part in self.parts if isinstance(part.space, Box)]
        if len(kept) == len(self.parts):
            return None
        return [column for part in kept for column in range(*part.columns.indices(2**62))]

    def one(self, observation: Any) -> Array:
        """The array of one observation."""
        if self.kind == "flat":
            return flat_vector(observation, self._struct)
        array = np.asarray(observation)
        return array if self.kind == "as it is" else array.astype(np.float32)

    def stack(self, observations: Sequence[Any], into: Array) -> None:
        """Write the arrays of N observations, each as `step` returns it, `into` [N, ...], which is
        contiguous.

        Values are cast to the dtype of their space first, as by a vector environment. Raises
        TypeError, ValueError or LookupError if an observation does not fit the space, and
        ObservationOutside.
        """
        if self.kind == "as it is":
            np.stack(observations, axis=0, out=into)
            return
        pieces: list[Array] = []
        for observation in observations:
            for path, add in self._adders:
                value = observation
                for key in path:
                    value = value[key]
                add(value, pieces)
        np.concatenate(pieces, out=into.reshape(-1), casting="same_kind")

    def batch(self, observations: Any, into: Array) -> None:
        """The same for N observations in the arrays that a vector environment returns."""
        if self.kind == "as it is":
            into[...] = observations
        else:
            self.stack(list(iterate(batch_space(self.original, len(into)), observations)), into)


Adder = Callable[[Any, list[Array]], None]
"""Appends a value of a leaf to the pieces of a vector, each of one axis."""


def _adder(space: gym.Space[Any]) -> Adder:
    if isinstance(space, Discrete):
        one_hot = _one_hot(int(space.start), int(space.n))
        return lambda value, pieces: pieces.append(one_hot(value))
    assert space.shape is not None and space.dtype is not None
    shape, dtype = space.shape, space.dtype
    each: list[Callable[[Any], Array]] = []
    if isinstance(space, MultiDiscrete):
        limits = zip(np.ravel(space.start).tolist(), np.ravel(space.nvec).tolist(), strict=True)
        each = [_one_hot(*limit) for limit in limits]

    def add(value: Any, pieces: list[Array]) -> None:
        array = np.asarray(value)
        if array.shape != shape:
            raise ValueError(f"the shape is {array.shape}, not {shape}")
        if array.dtype != dtype:
            array = array.astype(dtype, casting="same_kind")
        if len(shape) != 1:
            array = array.reshape(-1)
        if each:
            pieces += [
                one_hot(number) for one_hot, number in zip(each, array.tolist(), strict=True)
            ]
        else:
            pieces.append(array)

    return add


def _one_hot(start: int, size: int) -> Callable[[Any], Array]:
    """From a number to its one-hot vector. The vectors are made once where they are short."""
    made = list(np.eye(size, dtype=np.float32)) if size <= _MADE_ONCE else None

    def one_hot(number: Any) -> Array:
        place = index(number) - start
        if not 0 <= place < size:
            raise ObservationOutside(
                f"The environment returned {number} in an observation where its space allows "
                f"{start} to {start + size - 1}, so there is no one-hot vector for it. Correct the "
                "environment or its observation space."
            )
        if made is not None:
            return made[place]
        vector = np.zeros(size, np.float32)
        vector[place] = 1.0
        return vector

    return one_hot
