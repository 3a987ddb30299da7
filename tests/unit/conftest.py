"""No Ray here: what starts one belongs into `tests/ray` or `tests/runs`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress

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
    assert not _children() & _OF_RAY, "a unit test has started a Ray"


def _children() -> set[str]:
    """The names of this process's descendants that have not ended meanwhile."""
    names = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            names.add(process.name())
    return names
