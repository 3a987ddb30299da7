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

from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import tree
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from raytrain.errors import BadInput
from raytrain.policy.arithmetic import Array, base_struct, flat_vector

Kind = Literal["as it is", "float", "flat"]


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

    @property
    def one_hot(self) -> bool:
        return isinstance(self.space, Discrete | MultiDiscrete)


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
        self._one_hot = _OneHot([part for part in self.parts if part.one_hot])
        self._memory: list[Array] = []  # Of the last N observations, a batch for each part.

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
        """Write the arrays of N observations, each as `step` returns it, `into` [N, ...].

        Values are cast to the dtype of their space, as a vector environment does. Raises TypeError
        or ValueError if an observation does not fit the space, ObservationOutside.
        """
        if self.kind == "as it is":
            np.stack(observations, axis=0, out=into)
            return
        if not self._memory or len(self._memory[0]) != len(observations):
            self._memory = [
                np.zeros((len(observations), *(part.space.shape or ())), part.space.dtype)
                for part in self.parts
            ]
        for part, batch in zip(self.parts, self._memory, strict=True):
            values: Any = observations
            for key in part.path:
                values = [value[key] for value in values]
            np.stack(values, axis=0, out=batch)
        self._write(self._memory, into)

    def batch(self, observations: Any, into: Array) -> None:
        """The same for N observations in the arrays that a vector environment returns."""
        if self.kind == "as it is":
            into[...] = observations
            return
        batches = []
        for part in self.parts:
            value = observations
            for key in part.path:
                value = value[key]
            batches.append(value)
        self._write(batches, into)

    def _write(self, batches: list[Array], into: Array) -> None:
        if self.kind == "float":
            into[...] = batches[0]
            return
        hot = []
        for part, batch in zip(self.parts, batches, strict=True):
            if part.one_hot:
                hot.append(batch.reshape(len(batch), -1))
                into[:, part.columns] = 0.0
            else:
                into[:, part.columns] = batch.reshape(len(batch), -1)
        if hot:
            self._one_hot.write(hot[0] if len(hot) == 1 else np.concatenate(hot, axis=1), into)


class _OneHot:
    """Where the ones go, for the K numbers of all Discrete and MultiDiscrete parts."""

    def __init__(self, parts: list[Part]) -> None:
        sizes: list[Array] = []
        starts: list[Array] = []
        firsts: list[Array] = []
        for part in parts:
            space: Any = part.space
            own = np.ravel(space.n if isinstance(space, Discrete) else space.nvec).astype(np.int64)
            sizes.append(own)
            starts.append(np.ravel(space.start).astype(np.int64))
            firsts.append(part.columns.start + np.cumsum(own) - own)
        self._parts = parts
        self._sizes, self._starts, self._firsts = (
            np.concatenate(each) if each else np.zeros(0, np.int64)
            for each in (sizes, starts, firsts)
        )
        self._unsigned = self._sizes.astype(np.uint64)

    def write(self, numbers: Array, into: Array) -> None:
        """A one for each of the `numbers` [N, K]."""
        index = numbers.astype(np.int64)
        index -= self._starts
        if (index.view(np.uint64) >= self._unsigned).any():  # Negative ones are large then.
            self._refuse(index)
        index += self._firsts
        into[np.arange(len(index))[:, None], index] = 1.0

    def _refuse(self, index: Array) -> None:
        row, k = np.argwhere((index < 0) | (index >= self._sizes))[0].tolist()
        number, low = index[row, k] + self._starts[k], self._starts[k]
        raise ObservationOutside(
            f"Environment {row} returned {number} in an observation where its space allows {low} "
            f"to {low + self._sizes[k] - 1}, and has no one-hot vector. Correct the environment or "
            "its observation space."
        )
