"""Shared by tests that start real runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray
from running import Reference, train, trial_of, write_config


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    config = write_config(tmp_path_factory.mktemp("undisturbed") / "run.yaml")
    train(config)
    return Reference(trial_of(config))


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
