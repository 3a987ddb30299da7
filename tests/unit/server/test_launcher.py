"""Runs are started, stopped, continued and forked: real processes and signals; what they write is
made by `fake_training`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from support import fake_training
from support.serving import Answer, Site, serving

from raytrain.server import launcher
from raytrain.server.settings import Limits
from raytrain.storage import DirectoryLock, Location

CONFIG = {"environment": {"env": "CartPole-v1"}, "stop": {"iterations": 8}}


@pytest.fixture(autouse=True)
def fake_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(launcher, "PROGRAM", fake_training.PROGRAM)
    yield
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        # Other tests have such processes at the same time.
        if fake_training.__file__ in line and str(tmp_path) in " ".join(line):
            process.kill()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with serving(tmp_path) as site:
        yield site


def started(site: Site, name: str = "cartpole", **body: Any) -> Answer:
    return site.post("/api/runs", {"config": {**CONFIG, "name": name}, **body})


def lines(site: Site, name: str) -> list[str]:
    file = site.results / name
    return file.read_text().splitlines() if file.exists() else []


def until(condition: Callable[[], Any], timeout: float = 120) -> Any:
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def trained(site: Site, name: str = "cartpole") -> None:
    """Wait until the run has a checkpoint."""
    until(lambda: list((site.results / name).glob("trial_*/checkpoint_000004/manifest.json")))


def state(site: Site, run: str) -> str:
    site.scan()
    return str(site.get(f"/api/runs/{run}").document["run"]["state"])


# -- starting --------------------------------------------------------------------------------------


def test_a_run_starts_once(site: Site) -> None:
    first = started(site)
    assert first.status == 201, first.body
    found = first.document
    assert found["run"]["state"] == "running"
    assert found["command"][:2] == ["raytrain", "train"]
    assert Path(found["log"]).is_relative_to(site.data)
    process = psutil.Process(found["pid"])
    assert os.getsid(process.pid) == process.pid  # No signal to the server's group reaches it.
    again = started(site)
    assert again.status == 200
    assert again.document["run"]["id"] == found["run"]["id"]
    assert again.document["pid"] == found["pid"]
    assert len(lines(site, "starts")) == 1


def test_two_servers_and_many_requests_start_it_once(site: Site, tmp_path: Path) -> None:
    with serving(tmp_path) as other, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: started((site, other)[i % 2]), range(8)))
    assert sorted(answer.status for answer in answers) == [200] * 7 + [201]
    assert len(lines(site, "starts")) == 1
    log = next(answer for answer in answers if answer.status == 201).document["log"]
    assert "error" not in Path(log).read_text()
    # Nobody even tried: there is one log.
    assert len(list(site.data.glob("logs/*/*.log"))) == 1


def test_a_run_that_was_started_elsewhere_is_not_started(tmp_path: Path) -> None:
    with serving(tmp_path, limits=Limits(start_wait_s=0.5)) as site:
        with DirectoryLock(Location.of(site.results / "cartpole")):
            answer = started(site)
        assert answer.status == 200
        assert answer.document["run"] is None  # It has written nothing yet.
        assert not lines(site, "starts")


def test_a_start_that_was_not_recorded_is_known_by_its_lock(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is killed right after it started the process."""

    def killed(*arguments: object) -> None:
        raise RuntimeError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(launcher, "_write", killed)
        assert started(site).status == 500
    with ThreadPoolExecutor(4) as pool:
        assert {answer.status for answer in pool.map(lambda _: started(site), range(4))} == {200}
    until(lambda: lines(site, "starts"))
    assert len(lines(site, "starts")) == 1


def test_the_config_may_be_text_a_mapping_or_a_file(site: Site) -> None:
    text = yaml.safe_dump(CONFIG)
    assert started(site, "one").status == 201
    assert site.post("/api/runs", {"config": text, "name": "two"}).status == 201
    (site.configs / "three.yaml").write_text(text)
    assert site.post("/api/runs", {"config_path": "three.yaml"}).status == 201
    names = {row["name"] for row in site.get("/api/runs").document["runs"]}
    assert names == {"one", "two", "three"}
    assert (site.configs / "two.yaml").read_text() == text
    # Never over another text.
    assert started(site, "three").status == 200
    assert (site.configs / "three.yaml").read_text() == text
    assert json.loads(json.dumps(yaml.safe_load((site.configs / "three.1.yaml").read_text()))) == {
        **CONFIG,
        "name": "three",
    }


def test_a_config_that_is_wrong_has_lines_and_starts_nothing(site: Site) -> None:
    text = (
        "name: wrong\nenvironment:\n  env: CartPole-v1\ntraining:\n  lrr: 0.1\nstop: {time_s: 1}\n"
    )
    answer = site.post("/api/runs", {"config": text})
    assert answer.status == 422
    assert answer.document["errors"] == [
        {"line": 5, "key": "training.lrr", "message": "0.1: unknown key (did you mean 'lr'?)"}
    ]
    answer = site.post(
        "/api/runs", {"config": {**CONFIG, "name": "a"}, "set": ["stop.iterations=0"]}
    )
    assert answer.document["errors"][0]["line"] is None
    assert answer.document["errors"][0]["key"] == "stop.iterations"
    for body in ({}, {"config": "{}", "config_path": "a"}, {"config": CONFIG}):
        assert site.post("/api/runs", body).status == 422
    assert not list(site.configs.iterdir())
    assert not list(site.data.glob("logs/*"))


def test_what_the_run_itself_refuses_has_lines_too(site: Site) -> None:
    config = {"name": "missing", "environment": {"env": "missing:make"}, "stop": {"iterations": 1}}
    answer = site.post("/api/runs", {"config": config})
    assert answer.status == 422
    assert answer.document["errors"] == [
        {"line": 2, "key": "environment.env", "message": '"missing:make": no module'}
    ]


def test_a_finished_run_is_found_finished(site: Site) -> None:
    (site.results / "cartpole.go").touch()
    run = started(site).document["run"]["id"]
    until(lambda: state(site, run) == "finished")
    answer = started(site)
    assert answer.status == 200
    assert answer.document["run"]["state"] == "finished"


def test_a_run_gets_no_token(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYTRAIN_SERVER_TOKEN", "a-secret-of-the-server")
    process = psutil.Process(started(site).document["pid"])
    assert "RAYTRAIN_SERVER_TOKEN" not in process.environ()


# -- stopping --------------------------------------------------------------------------------------


def test_stop_answers_with_what_was_saved(site: Site) -> None:
    run = started(site).document["run"]["id"]
    trained(site)
    answer = site.post(f"/api/runs/{run}/stop")
    assert answer.status == 200, answer.body
    assert answer.document["state"] == "interrupted"
    assert answer.document["saved"] == [
        {
            "trial": "trial_00000",
            "checkpoint": "checkpoint_000004",
            "kind": "interrupted",
            "iteration": 4,
            "timesteps": 16000,
        }
    ]
    again = site.post(f"/api/runs/{run}/stop")
    assert again.status == 409
    assert "not being trained" in again.document["detail"]


def test_stopping_twice_is_one_signal(site: Site, tmp_path: Path) -> None:
    """A second signal would end the run without saving."""
    run = started(site).document["run"]["id"]
    trained(site)
    with serving(tmp_path) as other, ThreadPoolExecutor(6) as pool:
        other.scan()
        asked = [pool.submit((site, other)[i % 2].post, f"/api/runs/{run}/stop") for i in range(6)]
        answers = [each.result() for each in asked]
    assert lines(site, "signals") == ["cartpole"]
    assert {answer.status for answer in answers} <= {200, 409}
    assert state(site, run) == "interrupted"


def test_a_run_that_was_started_in_a_shell_is_stopped(site: Site) -> None:
    file = site.configs / "cartpole.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    options = ["--name", "cartpole", "--storage-path", str(site.results)]
    child = subprocess.Popen([*fake_training.PROGRAM, "train", str(file), *options])
    trained(site)
    assert site.post(f"/api/runs/{site.run_of('cartpole')}/stop").status == 200
    assert child.wait(60) == 143


def test_a_run_on_another_machine_is_not_stopped(site: Site) -> None:
    run = started(site).document["run"]["id"]
    trained(site)
    site.post(f"/api/runs/{run}/stop")
    record = {"pid": os.getpid(), "host": "other 1", "boot": "x", "started": "2026-01-01"}
    with DirectoryLock(Location.of(site.results / "cartpole")):
        (site.results / "cartpole" / ".raytrain.lock").write_text(json.dumps(record))
        answer = site.post(f"/api/runs/{run}/stop")
    assert answer.status == 409
    assert "on other 1" in answer.document["detail"]


def test_a_lock_that_names_another_process_stops_nothing(site: Site) -> None:
    """Whoever may write to the storage may write any pid into it."""
    run = started(site).document["run"]["id"]
    trained(site)
    site.post(f"/api/runs/{run}/stop")
    lock = DirectoryLock(Location.of(site.results / "cartpole"))
    innocent = subprocess.Popen(["sleep", "600"])
    try:
        with lock:
            file = site.results / "cartpole" / ".raytrain.lock"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"pid": innocent.pid}))
            answer = site.post(f"/api/runs/{run}/stop")
        assert answer.status == 409
        assert "nothing was stopped" in answer.document["detail"]
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


# -- continuing ------------------------------------------------------------------------------------


def test_resume_and_fork(site: Site) -> None:
    run = started(site).document["run"]["id"]
    trained(site)
    assert site.post(f"/api/runs/{run}/resume").status == 200  # It runs already.
    site.post(f"/api/runs/{run}/stop")
    wrong = site.post(f"/api/runs/{run}/resume", {"set": ["trainin.lr=1"]})
    assert wrong.status == 422
    assert wrong.document["errors"][0]["key"] == "trainin"
    assert site.post(f"/api/runs/{run}/resume", {"set": ["name=b"]}).status == 422
    (site.results / "cartpole.go").touch()
    answer = site.post(f"/api/runs/{run}/resume", {"set": ["stop.iterations=8"]})
    assert answer.status in (200, 201)
    assert answer.document["command"][1:] == [
        "resume",
        str(site.results / "cartpole"),
        "--set",
        "stop.iterations=8",
    ]
    until(lambda: state(site, run) == "finished")
    assert len(lines(site, "starts")) == 2
    fork = site.post(f"/api/runs/{run}/fork", {"checkpoint": "best", "name": "other"})
    assert fork.status == 201, fork.body
    assert fork.document["run"]["name"] == "other"
    assert fork.document["run"]["parent"]["experiment"] == "cartpole"
    for name in ("../up", "a/b", ""):
        assert site.post(f"/api/runs/{run}/fork", {"name": name}).status == 422


def test_the_starts_of_a_run_are_kept(site: Site) -> None:
    run = started(site).document["run"]["id"]
    trained(site)
    site.post(f"/api/runs/{run}/stop")
    site.post(f"/api/runs/{run}/resume")
    launches = site.get(f"/api/runs/{run}").document["launches"]
    assert [each["command"][1] for each in launches] == ["resume", "train"]
    assert all(each["pid"] and each["host"] and each["log"] for each in launches)


def test_the_newest_logs_of_a_run_are_kept(site: Site) -> None:
    directory = site.app.state.settings.launch_directory(Location.of(site.results / "cartpole"))
    directory.mkdir(parents=True)
    for number in range(30):
        (directory / f"20260101-0000{number:02d}-000000.log").touch()
    log = Path(started(site).document["log"])
    kept = sorted(directory.glob("*.log"))
    assert len(kept) == 20
    assert kept[-1] == log
    assert kept[0].name == "20260101-000011-000000.log"


def test_the_log_is_found_without_the_database(site: Site, tmp_path: Path) -> None:
    run = started(site).document["run"]["id"]
    trained(site)
    with serving(tmp_path, database=f"sqlite:///{tmp_path / 'other.db'}") as other:
        other.scan()
        text = other.get(f"/api/runs/{run}/log?follow=0&tail=2").body.decode()
    assert text == ': raytrain\n\ndata: "iteration 3"\n\ndata: "iteration 4"\n\n'


def test_children_are_not_left_as_zombies(site: Site) -> None:
    found = started(site).document
    trained(site)
    site.post(f"/api/runs/{found['run']['id']}/stop")
    until(lambda: not psutil.pid_exists(found["pid"]))


def test_a_signal_to_the_group_of_the_server_is_not_the_runs(site: Site) -> None:
    pid = started(site).document["pid"]
    assert os.getpgid(pid) not in (os.getpgid(0), 0)
    assert signal.SIGINT  # A terminal sends it to the group in its foreground.
