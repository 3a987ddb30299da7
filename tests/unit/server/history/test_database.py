"""Opening databases: new ones, those of other versions, many processes at once, and none."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text

from raytrain.errors import BadInput
from raytrain.server.history.database import DatabaseError, History
from raytrain.server.history.queries import count_change
from raytrain.server.history.tables import VERSION_TABLE, metadata


def test_the_migrations_make_the_tables(history: History) -> None:
    with history.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []


def test_a_database_is_opened_again_as_it_was(new_database: Callable[[], str]) -> None:
    url = new_database()
    first = History.open(url)
    first.record_verdict("a" * 16, "verify", "best", True, document={"n": 1}, made_at="now")
    first.close()
    (verdict,) = History.open(url).verdicts("a" * 16)
    assert (verdict["kind"], verdict["good"], verdict["document"]) == ("verify", True, {"n": 1})


def _open(url: str, ready: object) -> None:
    ready.wait()  # type: ignore[attr-defined]
    History.open(url).close()


def test_many_processes_may_open_a_new_database_at_once(new_database: Callable[[], str]) -> None:
    url, context = new_database(), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ready = context.Barrier(6)
    processes = [context.Process(target=_open, args=(url, ready)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0] * 6
    assert History.open(url).changes(0) == (0, [])


def test_a_kill_while_the_tables_are_made_leaves_none(new_database: Callable[[], str]) -> None:
    url = new_database()
    program = (
        "import os, signal, sys\n"
        "from alembic import op\n"
        "from raytrain.server.history.database import History\n"
        "op.bulk_insert = lambda *given: os.kill(os.getpid(), signal.SIGKILL)\n"
        "History.open(sys.argv[1])\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, url], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert History.open(url).changes(0) == (0, [])


def test_other_programs_tables_stay_as_they_are(new_database: Callable[[], str]) -> None:
    url = new_database()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num TEXT)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('theirs')"))
    History.open(url).close()
    with engine.begin() as connection:
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
    assert found == ["theirs"]
    engine.dispose()


def test_a_database_of_a_newer_raytrain_is_refused(new_database: Callable[[], str]) -> None:
    url = new_database()
    opened = History.open(url)
    with opened.writing() as connection:
        connection.execute(text("UPDATE raytrain_version SET version_num = '9999'"))
    with pytest.raises(BadInput, match=r"newer raytrain .*'9999'\). Update raytrain"):
        History.open(url)


def test_writers_wait_for_each_other_and_lose_nothing(new_database: Callable[[], str]) -> None:
    url = new_database()
    seen: list[int] = []

    def count() -> None:
        own = History.open(url)
        for _ in range(20):
            with own.writing() as connection:
                seen.append(count_change(connection, []))
        own.close()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(1, 81))
    assert History.open(url).changes(0) == (80, [])


def test_what_a_body_that_raises_has_written_is_undone(history: History) -> None:
    with pytest.raises(ZeroDivisionError), history.writing() as connection:
        count_change(connection, [])
        raise ZeroDivisionError
    assert history.changes(0) == (0, [])


@pytest.mark.parametrize(
    "url",
    ["", "history.db", "sqlite://", "sqlite:///:memory:", "mysql://host/x", "postgresql://h/x"],
)
def test_an_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(BadInput, match=r"--database.*sqlite:////home/me/history.db"):
        History.open(url)


def test_a_database_that_is_not_there_is_named_without_its_password() -> None:
    with pytest.raises(DatabaseError) as error:
        History.open("postgresql+psycopg://me:hunter2@127.0.0.1:1/x?connect_timeout=2")
    assert "postgresql+psycopg://me:***@127.0.0.1:1/x" in str(error.value)
    assert "hunter2" not in str(error.value)


def test_a_file_that_is_no_database_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    file.write_text("my notes " * 100)
    with pytest.raises(DatabaseError, match="file is not a database"):
        History.open(f"sqlite:///{file}")
    assert file.read_text() == "my notes " * 100


def test_a_directory_is_made_for_the_file(tmp_path: Path) -> None:
    History.open(f"sqlite:///{tmp_path}/data/raytrain/history.db").close()
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot be made"):
        History.open(f"sqlite:///{tmp_path}/file/history.db")
