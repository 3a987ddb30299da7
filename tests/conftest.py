"""Shared by tests that start real runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from running import Reference, train, trial_of, write_config
from small_disk import mounted


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    config = write_config(tmp_path_factory.mktemp("undisturbed") / "run.yaml")
    train(config)
    return Reference(trial_of(config))


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.shutdown()  # RLlib may have started one of its own accord, for the file before.
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of 256 KiB, or of the size that the test's parameter says."""
    with mounted(tmp_path / "disk", getattr(request, "param", "256k")) as place:
        yield place
