"""No Ray here: what starts one belongs into `tests/ray` or `tests/runs`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import psutil
import pytest

_OF_RAY = {"raylet", "gcs_server"}


@pytest.fixture(autouse=True)
def no_ray_is_joined() -> Iterator[None]:
    yield
    ray = sys.modules.get("ray")
    assert ray is None or not ray.is_initialized(), "a unit test has started or joined a Ray"


@pytest.fixture(scope="module", autouse=True)
def no_ray_is_started() -> Iterator[None]:
    """In a process of its own."""
    yield
    names = {process.name() for process in psutil.Process().children(recursive=True)}
    assert not names & _OF_RAY, "a unit test has started a Ray"
