"""The index after whatever may happen to a storage."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from support.experiments import FakeRun, many
from support.random_runs import RandomRuns

from raytrain.server.history import scanner as scanner_module
from raytrain.server.history.database import History
from raytrain.server.history.run_index import id_of
from raytrain.server.history.scanner import Scanner
from raytrain.server.history.tables import checkpoints, runs, trials
from raytrain.storage import DirectoryLock, Location

LONG_AFTER = 4e9  # Every file has settled, so stamps count.


@pytest.fixture
def scanner(history: History, storage: Path) -> Scanner:
    return scanner_of(history, storage)


def scanner_of(history: History, *storages: Path) -> Scanner:
    return Scanner(history, [str(storage) for storage in storages], clock=lambda: LONG_AFTER)


def row_of(history: History, run: FakeRun) -> dict[str, Any]:
    row = history.run(id_of(str(run.place), run.run_id))
    assert row is not None
    return row


def index(history: History) -> dict[str, list[dict[str, Any]]]:
    """All that is known of the runs on storage, except when it was learned."""
    with history.reading() as connection:
        here = runs.c.gone_at.is_(None)
        kept = connection.execute(select(runs).where(here).order_by(runs.c.id)).mappings().all()
        below = [
            connection.execute(
                select(table).join(runs).where(here).order_by(*table.primary_key.columns)
            )
            for table in (trials, checkpoints)
        ]
        found = {name: rows.mappings().all() for name, rows in zip("tc", below, strict=True)}
    plain = [{key: row[key] for key in row if key != "change"} for row in kept]
    return {"runs": plain, **{name: [dict(row) for row in rows] for name, rows in found.items()}}


# -- one run ---------------------------------------------------------------------------------------


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


def test_the_config_comes_back_with_its_infinity(
    storage: Path, history: History, scanner: Scanner
) -> None:
    run = FakeRun(storage, "cartpole", training={"vf_clip_param": float("inf")}).start()
    scanner.scan()
    config = json.loads((run.place / "experiment.json").read_text())["config"]
    assert config["training"]["vf_clip_param"] == float("inf")
    assert row_of(history, run)["config"] == config


def test_a_run_that_trains_is_running_as_long_as_its_lock_is_held(
    storage: Path, history: History, scanner: Scanner
) -> None:
    run = FakeRun(storage, "cartpole").start().train(4)
    scanner.scan()
    with run.running():
        assert len(scanner.scan().changed) == 1
        row = row_of(history, run)
        assert row["state"] == "running" and "process" in row["writer"]
        assert scanner.scan().changed == []
        run.train(2)
        assert len(scanner.scan().changed) == 1
    assert len(scanner.scan().changed) == 1
    assert (row_of(history, run)["state"], row_of(history, run)["writer"]) == ("stopped", None)
    # A trial's process may outlive its driver.
    with DirectoryLock(Location.of(run.trials[0].place)):
        scanner.scan()
        (trial,) = history.trials(id_of(str(run.place), run.run_id))
        assert trial["state"] == "running"
    scanner.scan()
    (trial,) = history.trials(id_of(str(run.place), run.run_id))
    assert trial["state"] == "stopped"


def test_what_did_not_change_is_not_read(
    storage: Path, history: History, scanner: Scanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(storage, 16)
    assert len(scanner.scan().changed) == 16
    last, _ = history.changes(0)
    monkeypatch.setattr(scanner_module, "view", None)
    assert scanner.scan().changed == []
    assert history.changes(last) == (last, [])


def test_what_changed_a_moment_ago_is_read_again(storage: Path, history: History) -> None:
    """It may change once more without another time of change."""
    run = FakeRun(storage, "cartpole").start().train(2)
    file = run.place / "experiment.json"
    now = file.stat().st_mtime
    scanner = Scanner(history, [str(storage)], clock=lambda: now)
    scanner.scan()
    before = file.stat()
    file.write_bytes(file.read_bytes().replace(b'"iterations": 20', b'"iterations": 40'))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(scanner.scan().changed) == 1
    assert row_of(history, run)["config"]["stop"]["iterations"] == 40


def test_listeners_learn_of_each_change_once(
    storage: Path, history: History, scanner: Scanner
) -> None:
    first, second = (FakeRun(storage, name).start() for name in ("a", "b"))
    scanner.scan()
    last, changed = history.changes(0)
    assert set(changed) == {id_of(str(run.place), run.run_id) for run in (first, second)}
    second.train(1)
    scanner.scan()
    newer, changed = history.changes(last)
    assert newer > last
    assert changed == [id_of(str(second.place), second.run_id)]
    assert history.changes(newer) == (newer, [])


# -- what is gone, and what cannot be read ---------------------------------------------------------


def test_a_deleted_run_is_kept_as_gone(storage: Path, history: History, scanner: Scanner) -> None:
    run = FakeRun(storage, "cartpole").start().train(20)
    scanner.scan()
    (kept,) = index(history)["runs"]
    before = history.run(kept["id"])
    run.delete()
    assert scanner.scan().changed == [kept["id"]]
    assert before is not None
    assert history.run(kept["id"]) == {**before, "gone_at": "2096-10-02T07:06:40+00:00"}
    assert len(history.checkpoints(kept["id"])) == 5
    (trial,) = history.kept_curves(kept["id"])["trials"].values()
    scores = [run.trials[0].score(i) for i in range(1, 21)]
    assert [point[3] for point in trial["series"]["checkpoint/score"]] == scores
    assert scanner.scan().changed == []


def test_a_run_that_comes_back_is_not_gone(
    storage: Path, tmp_path: Path, history: History, scanner: Scanner
) -> None:
    run = FakeRun(storage, "cartpole").start().train(20)
    scanner.scan()
    before = index(history)
    run.place.rename(tmp_path / "aside")
    scanner.scan()
    assert index(history)["runs"] == []
    (tmp_path / "aside").rename(run.place)
    assert len(scanner.scan().changed) == 1
    assert index(history) == before


def test_a_run_that_begins_anew_is_another_run(
    storage: Path, history: History, scanner: Scanner
) -> None:
    old = FakeRun(storage, "cartpole").start().train(20)
    scanner.scan()
    new = old.begin_anew()
    scanner.scan()
    assert row_of(history, old)["gone_at"] is not None
    assert row_of(history, new)["gone_at"] is None
    assert history.run_at(str(new.place)) == row_of(history, new)
    assert history.run_at(str(storage)) is None
    assert sorted(row["path"] for row in index(history)["runs"]) == sorted(
        str(path) for path in storage.iterdir()
    )


def test_a_storage_that_is_away_takes_no_run_with_it(
    storage: Path, tmp_path: Path, history: History
) -> None:
    other = tmp_path / "other"
    FakeRun(storage, "cartpole").start()
    FakeRun(other, "pendulum").start()
    told: list[str] = []
    both = Scanner(history, [str(storage), str(other)], clock=lambda: LONG_AFTER, tell=told.append)
    both.scan()
    before = index(history)
    other.rename(tmp_path / "unmounted")
    report = both.scan()
    (problem,) = report.problems
    assert f"There is no directory {other} yet, or it is not mounted" in problem
    assert report.changed == [] and index(history) == before
    both.scan()
    assert told == [problem]


@pytest.mark.parametrize("damage", ["{", '{"format": 99}', "[]"])
def test_an_experiment_that_cannot_be_read_is_a_problem_and_stays_as_it_was(
    storage: Path, history: History, scanner: Scanner, damage: str
) -> None:
    broken = FakeRun(storage, "broken").start().train(4)
    whole = FakeRun(storage, "whole").start().train(4)
    scanner.scan()
    before = index(history)
    (broken.place / "experiment.json").write_text(damage)
    whole.train(2)
    for _ in range(2):
        report = scanner.scan()
        (problem,) = report.problems
        assert str(broken.place) in problem
    after = index(history)
    changed = id_of(str(whole.place), whole.run_id)
    assert [row for row in after["runs"] if row["id"] != changed] == [
        row for row in before["runs"] if row["id"] != changed
    ]
    broken.write_experiment_file()
    assert scanner.scan().problems == []


def test_a_directory_that_this_user_may_not_read_hides_no_other(
    storage: Path, history: History, scanner: Scanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """root may read all of them, so the system's answer is made up."""
    secret, plain = (FakeRun(storage, name).start().train(2) for name in ("secret", "plain"))
    scanner.scan()
    before = row_of(history, secret)
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).rstrip("/") == str(secret.place):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    plain.train(2)
    report = scanner.scan()
    assert report.changed == [id_of(str(plain.place), plain.run_id)]
    (problem,) = report.problems
    assert str(secret.place) in problem and "Permission denied" in problem
    assert row_of(history, secret) == before


def test_a_problem_names_the_place(storage: Path, scanner: Scanner) -> None:
    run = FakeRun(storage, "cartpole").start()
    file = run.place / "experiment.json"
    file.write_text(file.read_text().replace('"name": "cartpole"', '"name": "../x"'))
    (problem,) = scanner.scan().problems
    assert problem.startswith(f"{run.place}: ") and "directory's name" in problem


def test_a_name_that_is_no_text_is_a_problem(
    storage: Path, history: History, scanner: Scanner
) -> None:
    run = FakeRun(storage, "cartpole").start()
    shutil.copytree(run.place, storage / "caf\udce9")
    (problem,) = scanner.scan().problems
    assert "caf\\udce9 has a name that is not UTF-8" in problem
    assert len(index(history)["runs"]) == 1


def test_hostile_values_come_back_as_they_are(
    storage: Path, history: History, scanner: Scanner
) -> None:
    run = FakeRun(storage, "cartpole").start().train(4)
    run.fail("\x1b[2J\0 \ud800 <b>")
    document = json.loads((run.place / "experiment.json").read_text())
    document["config"]["environment"]["env_config"] = {"x": "\0\ud800", "n": 10**299}
    (run.place / "experiment.json").write_text(json.dumps(document))
    manifest = run.trials[0].place / "best" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"iteration": 4', '"iteration": ' + "9" * 40))
    name = "<script>alert(1)<\\script>\x1b '; DROP TABLE runs; --"
    run.place = run.place.rename(storage / name)
    assert scanner.scan().problems == []
    row = row_of(history, run)
    assert (row["name"], row["path"]) == (name, str(storage / name))
    assert row["last_error"] == "\x1b[2J\\x00 \\ud800 <b>".replace("\x1b", "\\x1b")
    assert row["config"] == document["config"]
    (best,) = history.checkpoints(row["id"], kind="best")
    assert best["iteration"] == 2**63 - 1


# -- rebuilding -----------------------------------------------------------------------------------


@pytest.fixture
def happening(storage: Path, request: pytest.FixtureRequest) -> Iterator[RandomRuns]:
    with RandomRuns(storage, request.param) as made:
        yield made


@pytest.mark.parametrize(
    "happening",
    [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))],
    indirect=True,
)
def test_the_index_is_what_a_rebuild_makes_of_storage(
    happening: RandomRuns, new_database: Callable[[], str], tmp_path: Path
) -> None:
    url = new_database()
    scanners = [scanner_of(History.open(url), happening.storage) for _ in range(2)]
    for step in range(120):
        happening.step()
        if happening.random.random() < 0.4:
            happening.random.choice(scanners).scan()
        if step % 40 == 39:
            happening.mend()
            assert scanners[0].scan().problems == []
            history, anew = History.open(url), History.open(new_database())
            scanner_of(anew, happening.storage).scan()
            expected = index(anew)
            assert index(history) == expected
            assert {row["path"] for row in expected["runs"]} == {
                str(place) for place in happening.storage.iterdir()
            }
            assert scanner_of(history, happening.storage).scan(thorough=True).changed == []
            history.close()
            anew.close()


@pytest.mark.parametrize("happening", [5], indirect=True)
def test_scanners_on_one_database_do_each_other_no_harm(
    happening: RandomRuns, new_database: Callable[[], str]
) -> None:
    url, ended = new_database(), threading.Event()
    failed: list[BaseException] = []

    def scan() -> None:
        own = scanner_of(History.open(url), happening.storage)
        try:
            while not ended.is_set():
                own.scan()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=scan) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(80):
        happening.step()
    ended.set()
    for thread in threads:
        thread.join()
    happening.mend()
    assert failed == []
    history, anew = History.open(url), History.open(new_database())
    for each in (history, anew):
        assert scanner_of(each, happening.storage).scan().problems == []
    assert index(history) == index(anew)


@pytest.mark.parametrize("path", ["best", "checkpoint_000004", "stages/easy"])
def test_a_checkpoint_that_lost_a_file_is_seen(
    storage: Path, history: History, scanner: Scanner, path: str
) -> None:
    run = FakeRun(storage, "cartpole").start().train(4).end_stage("easy", "hard")
    scanner.scan()
    (run.trials[0].place / path / "policy.json").unlink()
    (changed,) = scanner.scan().changed
    problems = {each["path"]: each["problem"] for each in history.checkpoints(changed)}
    assert problems.pop(path) == "policy.json: missing file"
    assert set(problems.values()) == {None}


@pytest.mark.parametrize("call", [1, 3])
def test_a_scanner_that_is_killed_while_it_writes_leaves_whole_runs(
    storage: Path, new_database: Callable[[], str], call: int
) -> None:
    many(storage, 4)
    url = new_database()
    program = (
        "import os, signal, sys\n"
        "from raytrain.server.history import run_index\n"
        "from raytrain.server.history.database import History\n"
        "from raytrain.server.history.scanner import Scanner\n"
        "calls = iter(range(1, int(sys.argv[3])))\n"
        "write = run_index.count_change\n"
        "def write_and_die(connection, ids):\n"
        "    write(connection, ids)\n"
        "    if next(calls, None) is None:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "run_index.count_change = write_and_die\n"
        "Scanner(History.open(sys.argv[1]), [sys.argv[2]], clock=lambda: 4e9).scan()\n"
    )
    command = [sys.executable, "-c", program, url, str(storage), str(call)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    history, anew = History.open(url), History.open(new_database())
    assert len(index(history)["runs"]) == call - 1
    assert history.changes(0)[0] == call - 1
    for each in (history, anew):
        scanner_of(each, storage).scan()
    assert index(history) == index(anew)


def test_files_that_were_damaged_inside_a_checkpoint_are_seen_by_a_thorough_scan(
    storage: Path, history: History, scanner: Scanner
) -> None:
    run = FakeRun(storage, "cartpole").start().train(20)
    scanner.scan()
    (run.trials[0].place / "best" / "resume" / "state.json").write_bytes(b"")
    assert scanner.scan().changed == []
    assert len(scanner.scan(thorough=True).changed) == 1
    (best,) = history.checkpoints(row_of(history, run)["id"], kind="best")
    assert best["good"] is False
    assert best["problem"] == "resume/state.json: 0 bytes, manifest says 2"
