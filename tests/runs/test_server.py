"""Whole runs through `raytrain serve`: real training, real HTTP, real signals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from support.commands import here
from support.running import TINY, Holds, Reference, Run, rows, train, write_config

import raytrain


class Served:
    """`raytrain serve` on a directory, which may be killed and started again."""

    def __init__(self, place: Path, *arguments: str) -> None:
        self._place = place
        self._arguments = arguments
        (place / "results").mkdir(exist_ok=True)
        self.start()

    def start(self) -> None:
        place = self._place
        command = [sys.executable, "-m", "raytrain", "serve", str(place / "results"), "--port", "0"]
        command += ["--data-dir", str(place / "data"), "--config-dir", str(place)]
        with (place / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self._arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        url = self.process.stdout.readline().strip()
        assert url, (place / "serve.log").read_text()
        self.client = raytrain.Client(url)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.kill()
    # A run that a failed test has left.
    mark = str(tmp_path)
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if mark in " ".join(line) and "train" in " ".join(line[:4]):
            for child in [*process.children(recursive=True), process]:
                child.kill()


def until(condition: Callable[[], Any], timeout: float = 600) -> Any:
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return value


@pytest.mark.slow
def test_started_stopped_resumed_and_finished_it_is_the_undisturbed_run(
    served: Served, tmp_path: Path, undisturbed: Reference
) -> None:
    """Its environment waits where it is stopped, so it cannot be over before."""
    client = served.client
    holds = Holds(tmp_path, 3)
    run = client.start({**TINY, **holds.sections})
    trial = tmp_path / "results" / "run" / "trial_00000"
    until(lambda: len(rows(trial)) == 3)
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(client.stop, run["id"])
        until(lambda: any("saving 1 running" in line for line in client.log(run["id"])))
        holds.release()
        stopped = stopping.result()
    assert stopped["state"] == "interrupted"
    (saved,) = stopped["saved"]
    assert (saved["kind"], saved["checkpoint"]) == ("interrupted", "checkpoint_000004")
    # The server is killed, and its database deleted: the next one finds all.
    served.kill()
    for file in (tmp_path / "data").glob("history.db*"):
        file.unlink()
    served.start()
    client = served.client
    assert until(client.runs)[0]["id"] == run["id"]
    assert client.resume(run["id"])["state"] == "running"
    served.kill()
    served.start()
    client = served.client
    assert client.wait(run["id"], timeout_s=600)["state"] == "finished"
    assert [row["weights_sha256"] for row in rows(trial)] == undisturbed.digests()
    # A task that trains again says the same.
    audit = client.done(client.audit(run["id"]), timeout_s=600)
    assert audit["result"]["equal"]
    assert client.run(run["id"])["verdicts"][0]["good"]
    # A fork of it, with more to do; evaluated and exported.
    child = client.fork(run["id"], "child", "final", set=["stop.iterations=13"])
    assert client.wait(child["id"], timeout_s=600)["state"] == "finished"
    played = client.done(client.evaluate(child["id"], "final", episodes=2), timeout_s=600)
    assert played["result"]["episodes"] == 2
    exported = client.done(client.export(child["id"], "final"), timeout_s=600)["result"]
    assert Path(exported["path"]).is_relative_to(tmp_path / "data" / "exports")
    assert raytrain.load_policy(exported["path"]) is not None
    assert client.run(child["id"])["model_card"].startswith("# ")


@pytest.mark.slow
def test_a_run_goes_on_whatever_becomes_of_the_server(served: Served, tmp_path: Path) -> None:
    """SIGKILL, then SIGTERM to the server's group, then Ctrl-C, while a run trains."""
    import os

    holds = Holds(tmp_path, 2, 3, 4)
    config = write_config(tmp_path / "held.yaml", **holds.sections, name="held")
    run = served.client.start(str(config))
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        os.killpg(served.process.pid, number)
        served.process.wait(60)
        holds.release()
        served.start()
        assert served.client.run(run["id"])["run"]["state"] == "running"
        assert served.client.start(str(config))["id"] == run["id"]
    done = served.client.wait(run["id"], timeout_s=600)
    assert done["state"] == "finished"
    assert done["failures_survived"] == 0
    assert len(list((tmp_path / "data").glob("logs/*/*.log"))) == 1


@pytest.mark.slow
def test_resume_with_set_and_fork_from_the_directory_alone(tmp_path: Path) -> None:
    config = write_config(
        tmp_path / "run.yaml",
        env_runners={"num_env_runners": 0},
        training={"train_batch_size_per_learner": 256, "num_epochs": 1},
        stop={"iterations": 2},
    )
    train(config)
    place = tmp_path / "results" / "run"
    config.unlink()
    more = Run("resume", str(place), "--set", "stop.iterations=3", log=tmp_path / "more.log")
    assert more.wait() == 0, more.output()
    assert here("show", place, "--json").document["trials"][0]["iteration"] == 3
    other = Run(
        "fork",
        f"{place}:final",
        "--name",
        "other",
        "--set",
        "training.lr=0.0005",
        "--set",
        "stop.iterations=4",
        log=tmp_path / "fork.log",
    )
    assert other.wait() == 0, other.output()
    child = here("show", tmp_path / "results" / "other", "--json").document
    assert child["trials"][0]["iteration"] == 4
    assert child["parent"]["experiment"] == "run"
    stored = json.loads((tmp_path / "results" / "other" / "experiment.json").read_text())["config"]
    assert stored["training"]["lr"] == 0.0005
    assert yaml.safe_load(json.dumps(stored["stop"]))["iterations"] == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lrr=1", "unknown key (did you mean 'lr'?)"),
        ("stop.iterations=0", "must be at least 1"),
        ("name=other", "cannot be changed for a stored run"),
        ("storage_path=/x", "cannot be changed for a stored run"),
        ("import_path=/x", "cannot be changed for a stored run"),
        ("training.lr=0.5", "holds a run with another config"),
        ("stop.metrics={nothing_of_this: 1, a//b: 1}", "is not the name of a metric"),
    ],
)
def test_resume_refuses_what_it_may_not_set(override: str, message: str, survivor: Path) -> None:
    place = Path(yaml.safe_load(survivor.read_text())["storage_path"]) / "run"
    ended = here("resume", place, "--set", override)
    assert ended.code == 2
    assert message in ended.err
    assert "Traceback" not in ended.err


def test_fork_refuses_before_anything_is_made(survivor: Path) -> None:
    place = Path(yaml.safe_load(survivor.read_text())["storage_path"]) / "run"
    for arguments, message in (
        ([f"{place}:final", "--name", "a/b"], "name"),
        ([f"{place}:final", "--name", "run"], "A fork is a run of its own"),
        ([f"{place}:final", "--name", "more"], "is past `stop` already"),
        ([str(place / "nothing"), "--name", "more"], "There is no directory"),
    ):
        ended = here("fork", *arguments)
        assert ended.code == 2, ended.err
        assert message in ended.err
    assert not (place.parent / "more").exists()
