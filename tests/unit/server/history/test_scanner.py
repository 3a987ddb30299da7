"""The index after whatever may happen to a storage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.experiments import FakeRun, many

from raytrain.server.history.database import History
from raytrain.server.history.scanner import Scanner


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    opened = History.open(f"sqlite:///{tmp_path}/history.db")
    yield opened
    opened.close()


@pytest.fixture
def scanner(history: History, storage: Path) -> Scanner:
    # Long after every change, so that stamps count.
    return Scanner(history, [str(storage)], clock=lambda: 4e9)


def test_a_run_is_one_row_over_all_its_attempts(
    storage: Path, history: History, scanner: Scanner
) -> None:
    run = FakeRun(storage, "cartpole").start().train(5).kill().start().train(20)
    (changed,) = scanner.scan().changed
    row = history.run(changed)
    assert row is not None
    assert (row["name"], row["state"], row["progress"]) == ("cartpole", "finished", 1.0)
    assert (row["failures_survived"], row["redone_s"], row["away_s"]) == (1, 2.0, 60.0)
    assert (row["iteration"], row["timesteps"], row["episodes"]) == (20, 80_000, 400)
    scores = [run.trials[0].score(i) for i in range(1, 21)]
    assert row["sparkline"] == scores
    assert row["score"] == {
        "metric": "episode_return_mean",
        "order": "max",
        "best": max(scores[1::2]),
        "last": scores[-1],
    }


def test_what_did_not_change_is_not_read(
    storage: Path, history: History, scanner: Scanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(storage, 16)
    assert len(scanner.scan().changed) == 16
    last, _ = history.changes(0)
    monkeypatch.setattr("raytrain.server.history.scanner.view", None)
    assert scanner.scan().changed == []
    assert history.changes(last) == (last, [])


def test_a_deleted_run_is_kept_as_gone(storage: Path, history: History, scanner: Scanner) -> None:
    run = FakeRun(storage, "cartpole").start().train(20)
    (kept,) = scanner.scan().changed
    before = history.run(kept)
    run.delete()
    assert scanner.scan().changed == [kept]
    after = history.run(kept)
    assert before is not None and after is not None
    assert after == {**before, "gone_at": "2096-10-02T07:06:40+00:00"}
    assert len(history.checkpoints(kept)) == 5
    assert scanner.scan().changed == []
