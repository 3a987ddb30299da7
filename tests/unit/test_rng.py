"""Global random generators as values: seeded, captured, installed, swapped."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from raytrain.errors import RaytrainError
from raytrain.rng import RngStreams, hash_seed, preserved


@pytest.fixture(autouse=True)
def own_streams_back() -> Iterator[Any]:
    with preserved():
        yield


def draws() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.random(), np.random.randn(),
            torch.rand(1).item(), torch.randn(1).item()]  # fmt: skip


def test_seeded_streams_follow_from_their_entropy_alone() -> None:
    RngStreams.seeded(3, 1).install()
    first = draws()
    draws()
    RngStreams.seeded(3, 1).install()
    assert draws() == first
    assert len(set(first)) == len(first)
    assert RngStreams.seeded(3, 1) == RngStreams.seeded(3, 1)
    assert RngStreams.seeded(3, 1) != RngStreams.seeded(3, 2)
    assert RngStreams.seeded(3, 1) != RngStreams.seeded(1, 3)


def test_state_survives_json_with_half_used_gaussians() -> None:
    RngStreams.seeded(1).install()
    draws()  # an odd number of normals: both generators hold the second of a pair
    saved = json.loads(json.dumps(RngStreams.capture().to_state()))
    expected = draws() + draws()
    draws()
    restored = RngStreams.from_state(saved)
    assert restored.to_state() == saved
    restored.install()
    assert draws() + draws() == expected


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (random.random, "random"),
        (np.random.randn, "numpy"),
        (lambda: torch.rand(1), "torch"),
    ],
)
def test_one_draw_makes_exactly_one_generator_differ(draw: Any, name: str) -> None:
    np.random.randn()
    before = RngStreams.capture()
    assert before == RngStreams.capture()
    draw()
    assert before.differing(RngStreams.capture()) == (name,)
    assert before != RngStreams.capture()


def test_active_streams_advance_and_the_process_does_not_notice() -> None:
    streams, straight = RngStreams.seeded(7), RngStreams.seeded(7)
    straight.install()
    expected = draws() + draws()
    RngStreams.seeded(9).install()
    process = draws() + draws()

    RngStreams.seeded(9).install()
    with streams.active():
        found = draws()
    own = draws()
    with streams.active():
        found += draws()
    own += draws()
    assert found == expected
    assert own == process


def test_nothing_is_lost_when_the_body_raises() -> None:
    streams, twin = RngStreams.seeded(7), RngStreams.seeded(7)
    before = RngStreams.capture()
    with pytest.raises(KeyError), streams.active():
        draws()
        raise KeyError
    assert before == RngStreams.capture()
    with twin.active():
        draws()
    assert streams == twin


def test_entering_twice_is_refused_and_a_copy_advances_alone() -> None:
    streams = RngStreams.seeded(7)
    twin = RngStreams.from_state(streams.to_state())
    with streams.active():
        with pytest.raises(RuntimeError, match="already active"), streams.active():
            pass
        draws()
    assert twin == RngStreams.seeded(7) != streams


def test_a_state_that_cannot_be_installed_leaves_the_process_alone() -> None:
    broken = RngStreams.seeded(7)
    broken._torch_cpu = torch.zeros(3, dtype=torch.uint8)
    before = RngStreams.capture()
    with pytest.raises(RuntimeError), broken.active():
        raise AssertionError("the body must not run")
    assert before == RngStreams.capture()


def test_a_damaged_state_is_named() -> None:
    state = RngStreams.seeded(7).to_state()
    state["numpy"]["key"] = state["numpy"]["key"][:400]
    with pytest.raises(RaytrainError, match="random generators is damaged"):
        RngStreams.from_state(state)


@pytest.mark.gpu
def test_cuda_generators_belong_to_the_streams() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.cuda.init()
    streams, twin = RngStreams.seeded(7), RngStreams.seeded(7)
    torch.rand(1, device="cuda")
    with streams.active():
        first = [torch.rand(1, device="cuda").item() for _ in range(2)]
    torch.rand(1, device="cuda")
    with twin.active():
        second = [torch.rand(1, device="cuda").item()]
    resumed = RngStreams.from_state(json.loads(json.dumps(twin.to_state())))
    with resumed.active():
        second.append(torch.rand(1, device="cuda").item())
    assert first == second


def test_a_runs_hash_seed_follows_from_its_seed_for_ever() -> None:
    assert [hash_seed(seed) for seed in (0, 1, 2**31)] == [311174327, 2250695492, 3636379277]
    assert all(0 <= hash_seed(seed) < 2**32 for seed in range(100))
