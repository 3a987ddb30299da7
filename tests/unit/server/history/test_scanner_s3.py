"""A storage on an object store is read as one on a disk."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from support.experiments import FakeRun, many
from support.record_files import append_episodes

from raytrain.records import EpisodeHistory, read_episodes
from raytrain.server.history import scanner as scanner_module
from raytrain.server.history.database import History
from raytrain.server.history.queries import RunQuery
from raytrain.server.history.scanner import Scanner
from raytrain.server.records.curves import curves
from raytrain.server.records.episodes import episodes
from raytrain.server.records.timeline import timeline
from raytrain.storage import DirectoryLock, Location

OTHERWISE = {"id", "storage", "path", "resume", "writer"}
"""What differs between a disk and a store."""


@pytest.fixture
def store(s3: int) -> Location:
    return Location.of(f"s3://bucket/{uuid.uuid4().hex}/results")


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History.open(f"sqlite:///{tmp_path}/history.db")


def scanner_of(history: History, storage: object) -> Scanner:
    return Scanner(history, [str(storage)], clock=lambda: 4e9)


def upload(run: FakeRun, store: Location) -> None:
    place = store / run.name
    place.delete_tree()
    Location.of(run.place).copy_tree(place)


def rows(history: History, storage: object) -> dict[str, dict[str, Any]]:
    """By name, without what tells the place."""
    found = history.runs(RunQuery(q=str(storage), sort="name")).runs
    return {
        run["name"]: {
            **{key: value for key, value in run.items() if key not in OTHERWISE},
            "trials": history.trials(run["id"]),
            "checkpoints": [
                {key: value for key, value in each.items() if key != "full_path"}
                for each in history.checkpoints(run["id"])
            ],
        }
        for run in found
    }


def test_the_index_is_that_of_a_disk(
    tmp_path: Path, store: Location, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = tmp_path / "results"
    runs = many(storage, 8)
    for run in runs:
        upload(run, store)
    on_disk, on_store = scanner_of(history, storage), scanner_of(history, store)
    on_disk.scan()
    report = on_store.scan()
    assert (len(report.changed), report.problems) == (8, [])
    assert rows(history, store) == rows(history, storage)
    with monkeypatch.context() as patched:
        patched.setattr(scanner_module, "view", None)
        assert on_store.scan().changed == []
    runs[1].start().train(3)
    upload(runs[1], store)
    runs[2].delete()
    (store / runs[2].name).delete_tree()
    on_disk.scan()
    assert len(on_store.scan().changed) == 2
    assert rows(history, store) == rows(history, storage)
    assert history.runs(RunQuery(q=str(store), state="gone")).total == 1
    assert on_store.scan(thorough=True).changed == []


def test_a_run_is_running_as_long_as_its_lease_is_held(
    tmp_path: Path, store: Location, history: History
) -> None:
    run = FakeRun(tmp_path / "results", "cartpole").start().train(4)
    upload(run, store)
    scanner = scanner_of(history, store)
    (changed,) = scanner.scan().changed

    def state() -> Any:
        row = history.run(changed)
        return None if row is None else row["state"]

    assert state() == "stopped"
    with DirectoryLock(store / run.name):
        assert (scanner.scan().changed, state()) == ([changed], "running")
        assert scanner.scan().changed == []
    assert (scanner.scan().changed, state()) == ([changed], "stopped")


def test_the_records_are_those_of_a_disk(tmp_path: Path, store: Location) -> None:
    run = FakeRun(tmp_path / "results", "cartpole", stop=30).start().train(5).kill().start()
    run.train(4).lose("preemption").train(9)
    written = EpisodeHistory(run.trials[0].place)
    for iteration in range(1, 10):
        append_episodes(written, iteration)
    written.flush(9)
    upload(run, store)
    here, there = Location.of(run.place), store / run.name

    def both(place: Location) -> list[Any]:
        trial = place / "trial_00000"
        options: Any = {"score": "episode_return_mean"}
        first = curves(place, ["trial_00000"], **options)
        again = curves(place, ["trial_00000"], since=first["cursor"], **options)
        return [first, again, timeline(trial), episodes(trial), read_episodes(trial).to_pylist()]

    on_disk, on_store = both(here), both(there)
    times = [each.pop("cursor") for found in (on_disk, on_store) for each in found[:2]]
    assert len(times) == 4
    assert on_store == on_disk


def test_a_bucket_that_is_not_there_is_a_problem(history: History, s3: int) -> None:
    report = scanner_of(history, "s3://no-such-bucket/results").scan()
    assert report.changed == []
    (problem,) = report.problems
    assert "no-such-bucket" in problem
