"""Shared by tests that start real runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.running import rows, train, trial_of, write_config


class Reference:
    """An undisturbed run: what every disturbed one must be equal to."""

    def __init__(self, trial: Path) -> None:
        self.trial = trial
        self.rows: list[dict[str, Any]] = rows(trial)

    def digests(self) -> list[str]:
        return [row["weights_sha256"] for row in self.rows]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    config = write_config(tmp_path_factory.mktemp("undisturbed") / "run.yaml")
    train(config)
    return Reference(trial_of(config))
