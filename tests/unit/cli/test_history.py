"""raytrain history rebuild."""

from __future__ import annotations

from pathlib import Path

from support.commands import here
from support.experiments import FakeRun, many

from raytrain.server.history.database import History
from raytrain.server.history.queries import RunQuery


def test_a_deleted_database_is_made_again(tmp_path: Path) -> None:
    storage, data = tmp_path / "results", tmp_path / "data"
    many(storage, 8)
    done = here("history", "rebuild", storage, "--data-dir", data)
    assert (done.code, done.out) == (0, "8 runs, and 0 that are gone; 8 changed.\n")
    history = History.open(f"sqlite:///{data}/history.db")
    assert history.runs(RunQuery()).total == 8
    # The database knows its storages.
    done = here("history", "rebuild", "--data-dir", data, "--json")
    assert done.document["storages"] == [str(storage)]
    assert done.document["changed"] == done.document["problems"] == []
    assert done.document["states"]["finished"] == 3


def test_what_cannot_be_read_is_named_and_left_out(tmp_path: Path) -> None:
    storage = tmp_path / "results"
    FakeRun(storage, "whole").start()
    broken = FakeRun(storage, "broken").start()
    (broken.place / "experiment.json").write_text("{")
    url = f"sqlite:///{tmp_path}/own.db"
    done = here("history", "rebuild", storage, "--database", url)
    assert (done.code, done.out) == (0, "1 runs, and 0 that are gone; 1 changed.\n")
    assert f"skipped: {broken.place}/experiment.json is damaged" in done.err


def test_without_any_storage_there_is_nothing_to_read(tmp_path: Path) -> None:
    done = here("history", "rebuild", "--data-dir", tmp_path)
    assert done.code == 2
    assert "knows no storage. Name the directories" in done.err


def test_a_database_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    url = "postgresql+psycopg://me:hunter2@127.0.0.1:1/x"
    done = here("history", "rebuild", tmp_path, "--database", url)
    assert done.code == 1
    assert "refused" in done.err and "hunter2" not in done.err
