"""Encoded observations are those of RLlib's FlattenObservations, one at a time and many at once."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    MultiDiscrete,
    Sequence,
    Space,
    Text,
    Tuple,
)
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from ray.rllib.utils.numpy import flatten_inputs_to_1d_tensor
from ray.rllib.utils.spaces.space_utils import get_base_struct_from_space

from raytrain.policy.observations import (
    FlatBox,
    NoEncoding,
    ObservationEncoding,
    ObservationOutside,
    parts_of,
)
from raytrain.policy.spaces import decode_space, encode_space

N = 5
IMAGE = Box(0, 255, (4, 6, 3), np.uint8)
NESTED = Dict(
    [  # Not in the order of the keys, which is that of the vector.
        ("speed", Box(-9.0, 9.0, (2, 2), np.float64)),
        ("at", Tuple((Discrete(3), MultiDiscrete([2, 4])))),
        ("lamps", MultiBinary((2, 3))),
        ("age", Box(0, 200, (), np.int32)),
        ("inner", Dict({"half": Box(-1.0, 1.0, (3,), np.float16), "eye": IMAGE})),
    ]
)
AS_RLLIB: dict[str, Space[Any]] = {
    "discrete": Discrete(4),
    "multidiscrete": MultiDiscrete([3, 1, 4]),
    "multibinary": MultiBinary(4),
    "multibinary of two axes": MultiBinary((2, 2)),
    "scalar": Box(-1.0, 1.0, (), np.float32),
    "wide scalar": Box(-1.0, 1.0, (), np.float64),
    "matrix": Box(-1.0, 1.0, (3, 2), np.float32),
    "four axes": Box(0, 255, (2, 3, 2, 2), np.uint8),
    "integers": Box(-5, 5, (3,), np.int64),
    "bytes": Box(0, 255, (9,), np.uint8),
    "half": Box(-1.0, 1.0, (3,), np.float16),
    "flags": Box(0, 1, (3,), np.bool_),
    "dict": Dict(b=Discrete(2), a=Box(-1.0, 1.0, (2,))),
    "tuple": Tuple((Box(-1.0, 1.0, (2,)), Discrete(2))),
    "nested": NESTED,
}


def observations(space: Space[Any], count: int = N) -> list[Any]:
    space = copy.deepcopy(space)
    space.seed(3)
    return [space.sample() for _ in range(count)]


def by_rllib(space: Space[Any], returned: list[Any]) -> np.ndarray[Any, Any]:
    """Through a vector environment's arrays, then one by one."""
    arrays = concatenate(space, returned, create_empty_array(space, len(returned)))
    struct = get_base_struct_from_space(space)
    flat = [
        flatten_inputs_to_1d_tensor(item, struct, batch_axis=False)
        for item in iterate(batch_space(space, len(returned)), arrays)
    ]
    return np.stack(flat)


def in_every_way(encoding: ObservationEncoding, returned: list[Any]) -> list[Any]:
    space, count = encoding.original, len(returned)
    arrays = concatenate(space, returned, create_empty_array(space, count))
    shape, dtype = encoding.space.shape, encoding.space.dtype
    ways = [np.full((count, *shape), 7, dtype) for _ in range(2)]
    encoding.stack(returned, ways[0])
    encoding.batch(arrays, ways[1])
    return [
        *ways,
        np.stack(
            [encoding.one(item) for item in iterate(batch_space(space, len(returned)), arrays)]
        ),
    ]


def same(one: Any, other: Any) -> bool:
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


@pytest.mark.parametrize("kind", AS_RLLIB)
def test_vectors_are_those_of_flatten_observations(kind: str) -> None:
    space = AS_RLLIB[kind]
    encoding = ObservationEncoding.of(space)
    assert encoding.kind == "flat"
    for returned in (observations(space), observations(space, 2)):
        expected = by_rllib(space, returned)
        for found in in_every_way(encoding, returned):
            assert same(found, expected)
        assert encoding.space.contains(expected[0])


def test_values_go_through_the_dtype_of_the_space_as_in_a_vector_environment() -> None:
    space = Box(-1.0, 1.0, (2, 1), np.float16)
    returned = [np.full((2, 1), 1 / 3), np.full((2, 1), 0.1)]
    expected = by_rllib(space, returned)
    assert expected[0, 0] != np.float32(1 / 3)
    for found in in_every_way(ObservationEncoding.of(space), returned):
        assert same(found, expected)


def test_one_hot_numbers_begin_at_the_start_of_their_space() -> None:
    space = Tuple((Discrete(3, start=-1), MultiDiscrete([[2, 3], [1, 2]], start=[[5, 0], [9, -7]])))
    expected = np.array([[0, 1, 0, 0, 1, 0, 0, 1, 1, 1, 0]], np.float32)
    returned = [(0, np.array([[6, 2], [9, -7]]))]
    for found in in_every_way(ObservationEncoding.of(space), returned):
        assert same(found, expected)


@pytest.mark.parametrize(
    ("space", "normalize", "kind", "dtype"),
    [
        (Box(-1.0, 1.0, (3,), np.float32), False, "as it is", np.float32),
        (Box(-1.0, 1.0, (3,), np.float64), True, "as it is", np.float64),
        (Box(0.0, 1.0, (7, 9, 3), np.float32), True, "as it is", np.float32),
        (IMAGE, False, "as it is", np.uint8),
        (IMAGE, True, "float", np.float32),
        (Box(0, 9, (7, 9, 3), np.int64), False, "float", np.float32),
    ],
)
def test_vectors_of_floats_and_images_keep_their_form(
    space: Box, normalize: bool, kind: str, dtype: Any
) -> None:
    encoding = ObservationEncoding.of(space, normalize=normalize)
    assert (encoding.kind, encoding.space.shape) == (kind, space.shape)
    assert encoding.space.dtype == dtype
    returned = observations(space)
    for found in in_every_way(encoding, returned):
        assert same(found, np.stack(returned).astype(dtype))


@pytest.mark.parametrize("number", [-1, 4, 10**9])
def test_a_number_outside_of_its_space_has_no_vector(number: int) -> None:
    space = Dict(cell=Discrete(4), other=Discrete(2, start=3))
    into = np.zeros((2, 6), np.float32)
    returned = [{"cell": 3, "other": 4}, {"cell": number, "other": 3}]
    with pytest.raises(ObservationOutside, match=f"returned {number} .* 0 to 3"):
        ObservationEncoding.of(space).stack(returned, into)


@pytest.mark.parametrize(
    ("space", "where"),
    [
        (Text(4), "it is Text"),
        (Dict(a=Tuple((Discrete(2), Sequence(Discrete(3))))), r"\['a'\]\[1\] is Sequence"),
        (Graph(Box(-1.0, 1.0, (2,)), None), "it is Graph"),
    ],
)
def test_other_spaces_have_no_vector(space: Space[Any], where: str) -> None:
    with pytest.raises(NoEncoding, match=where):
        ObservationEncoding.of(space)


def test_only_the_numbers_of_boxes_are_normalized() -> None:
    columns = ObservationEncoding.of(NESTED, normalize=True).normalized_columns()
    parts = {part.path: part for part in parts_of(NESTED)}
    boxes = [("age",), ("inner", "eye"), ("inner", "half"), ("speed",)]
    expected = [
        i for path in boxes for i in range(parts[path].columns.start, parts[path].columns.stop)
    ]
    assert columns == expected
    assert ObservationEncoding.of(Discrete(3), normalize=True).normalized_columns() == []
    assert ObservationEncoding.of(Box(0, 9, (3,), np.int64)).normalized_columns() is None


def test_the_space_of_a_vector_with_images_says_where_they_are() -> None:
    space = ObservationEncoding.of(NESTED).space
    assert isinstance(space, FlatBox)
    assert space == pickle.loads(pickle.dumps(space)) == copy.deepcopy(space)
    assert space != FlatBox(Dict(eye=IMAGE)) and space != FlatBox(NESTED, normalized=True)
    assert type(ObservationEncoding.of(Dict(a=Discrete(2))).space) is Box


def test_the_space_of_a_vector_with_images_comes_back_from_json() -> None:
    for space in (FlatBox(NESTED), FlatBox(NESTED, normalized=True)):
        assert decode_space(json.loads(json.dumps(encode_space(space)))) == space
