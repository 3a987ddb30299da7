"""Verifying, pruning and the like as tasks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import fake_training
from support.experiments import FakeRun
from support.serving import Site, serving

from raytrain.server import launcher
from raytrain.server import tasks as module
from raytrain.server.history.tables import tasks as table
from raytrain.server.settings import Limits
from raytrain.server.tasks import Tasks, Work


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    FakeRun(tmp_path / "results", "cartpole", stop=20).start().train(12)
    with serving(tmp_path, limits=Limits(tasks=1, waiting_tasks=1)) as site:
        yield site


def ended(site: Site, task: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while (now := site.get(f"/api/tasks/{task['id']}").document)["ended_at"] is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return dict(now)


def test_a_verdict_is_kept_with_its_date(site: Site) -> None:
    run = site.run_of("cartpole")
    answer = site.post(f"/api/runs/{run}/verify")
    assert answer.status == 202
    task = ended(site, answer.document["task"])
    assert task["state"] == "done"
    assert task["done"] == task["total"] == len(task["result"]["checkpoints"])
    assert task["result"]["good"]
    trial = site.results / "cartpole" / "trial_00000"
    (trial / "best" / "policy.safetensors").write_bytes(b"x" * 64)
    task = ended(site, site.post(f"/api/runs/{run}/verify").document["task"])
    assert not task["result"]["good"]
    one = ended(site, site.post(f"/api/runs/{run}/verify", {"checkpoint": "best"}).document["task"])
    assert [row["good"] for row in one["result"]["checkpoints"]] == [False]
    verdicts = site.get(f"/api/runs/{run}").document["verdicts"]
    assert [each["good"] for each in verdicts] == [False, False, True]
    assert [each["target"] for each in verdicts][1:] == [str(site.results / "cartpole")] * 2
    assert all(each["kind"] == "verify" and each["made_at"] for each in verdicts)


def test_tasks_and_starts_are_kept_in_any_database(
    tmp_path: Path, new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "PROGRAM", fake_training.PROGRAM)
    with serving(tmp_path, database=new_database()) as site:
        (site.results / "cartpole.go").touch()
        config = {"environment": {"env": "CartPole-v1"}, "stop": {"iterations": 8}}
        run = site.post("/api/runs", {"config": {**config, "name": "cartpole"}})
        assert run.status == 201, run.body
        run_id = run.document["run"]["id"]
        task = ended(site, site.post(f"/api/runs/{run_id}/verify").document["task"])
        assert task["state"] == "done", task
        found = site.get(f"/api/runs/{run_id}").document
        assert len(found["verdicts"]) == len(found["launches"]) == 1
        assert site.get("/metrics").status == site.get("/healthz").status == 200


def test_a_prune_says_first_what_it_would_do(site: Site) -> None:
    run = site.run_of("cartpole")
    plan = site.post(f"/api/runs/{run}/prune", {"keep": 1})
    assert plan.status == 200
    assert not plan.document["deleted"]
    paths = [site.results / "cartpole" / each["path"] for each in plan.document["delete"]]
    assert len(paths) == 2 and all(path.exists() for path in paths)
    answer = site.post(f"/api/runs/{run}/prune", {"keep": 1, "yes": True})
    assert answer.status == 202
    task = ended(site, answer.document["task"])
    assert task["result"]["deleted"]
    assert not any(path.exists() for path in paths)
    assert site.post(f"/api/runs/{run}/prune", {"keep": 0}).status == 422


def test_a_task_that_fails_says_why(site: Site) -> None:
    run = site.run_of("cartpole")
    task = ended(site, site.post(f"/api/runs/{run}/audit", {"from": 1, "to": 2}).document["task"])
    assert task["state"] == "failed"
    assert "checkpoint" in task["message"]
    assert "Traceback" not in task["message"]


def test_there_is_one_task_of_a_kind_for_a_run_and_not_too_many(site: Site) -> None:
    tasks: Tasks = site.app.state.server.tasks
    go = threading.Event()

    def wait(work: Work) -> None:
        assert go.wait(60)

    try:
        first = tasks.start("verify", "a", wait)
        assert tasks.start("verify", "a", wait)["id"] == first["id"]
        tasks.start("audit", "a", wait)
        run = site.run_of("cartpole")
        answer = site.post(f"/api/runs/{run}/verify")
        assert answer.status == 503
        assert "waiting" in answer.document["detail"]
    finally:
        go.set()


def test_a_task_is_canceled(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: Tasks = site.app.state.server.tasks
    begun = threading.Event()
    child: list[psutil.Process] = []
    others = psutil.Process().children()  # Such as a database's server.
    monkeypatch.setattr(module, "PROGRAM", ("sh", "-c", "sleep 600", "#"))

    def items(work: Work) -> None:
        for _ in work.track(iter(int, 1)):
            begun.set()

    def command(work: Work) -> None:
        begun.set()
        work.command("x")

    for do in (items, command):
        begun.clear()
        task = tasks.start("verify", "a", do)
        assert begun.wait(60)
        if do is command:
            until = time.monotonic() + 60
            while not any(each.nice() == 10 for each in child) and time.monotonic() < until:
                child = [each for each in psutil.Process().children() if each not in others]
                time.sleep(0.01)
            assert [each.nice() for each in child] == [10]
        assert site.post(f"/api/tasks/{task['id']}", method="DELETE").status == 200
        found = ended(site, task)
        assert (found["state"], found["message"]) == ("failed", "canceled")
    assert not [each for each in child if each.is_running()]


def test_a_task_of_a_server_that_was_killed_has_failed(tmp_path: Path) -> None:
    with serving(tmp_path) as site:
        history = site.app.state.history
        row = {"id": "a" * 32, "kind": "audit", "run": "b" * 16, "state": "running", "done": 0}
        with history.writing() as connection:
            dead = f"{module._me().split()[0]} 4194000 0.00"
            for number, server in enumerate(("elsewhere 1 0.00", module._me(), dead)):
                values = row | {"id": str(number), "server": server, "started_at": "2026-01-01"}
                connection.execute(table.insert().values(values))
        Tasks(history, Limits()).close()
        found = {each["id"]: each["state"] for each in site.get("/api/tasks").document["tasks"]}
        assert found == {"0": "running", "1": "running", "2": "failed"}
