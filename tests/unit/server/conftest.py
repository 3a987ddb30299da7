"""Databases for the tests of the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import postgresql

from raytrain.server.history.database import History


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[postgresql.Server]:
    if postgresql.binaries() is None:
        pytest.skip("no PostgreSQL is installed (its initdb and postgres)")
    with postgresql.server() as started:
        yield started


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """The URL of another empty database at each call."""
    if request.param == "sqlite":
        numbers = iter(range(1000))
        return lambda: f"sqlite:///{tmp_path}/history-{next(numbers)}.db"
    started: postgresql.Server = request.getfixturevalue("postgresql_server")
    return started.new_database


@pytest.fixture
def history(new_database: Callable[[], str]) -> Iterator[History]:
    opened = History.open(new_database())
    yield opened
    opened.close()


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    place = tmp_path / "results"
    place.mkdir()
    return place
