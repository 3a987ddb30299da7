"""Shared by tests that start real runs."""

from __future__ import annotations

import pytest
from running import Reference, train, trial_of, write_config


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    config = write_config(tmp_path_factory.mktemp("undisturbed") / "run.yaml")
    train(config)
    return Reference(trial_of(config))
