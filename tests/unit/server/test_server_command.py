"""`raytrain serve` as a process: what it refuses, how it ends, and what becomes of its runs."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import fake_training, serve_fake_runs
from support.commands import here

import raytrain
from raytrain.errors import RaytrainError
from raytrain.server.history.database import History
from raytrain.server.history.scanner import Scanner

CONFIG = {"environment": {"env": "CartPole-v1"}, "stop": {"iterations": 8}}


class Served:
    """A server in a process of its own, which may be killed."""

    def __init__(self, place: Path) -> None:
        for name in ("results", "configs"):
            (place / name).mkdir(exist_ok=True)
        self.log = place / f"serve.{time.monotonic_ns()}.log"
        given = ["serve", str(place / "results"), "--port", "0", "--data-dir", str(place / "data")]
        given += ["--config-dir", str(place / "configs")]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, serve_fake_runs.__file__, *given],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url, self.log.read_text()
        self.client = raytrain.Client(self.url)

    def ended(self) -> int:
        return self.process.wait(60)

    def kill(self) -> None:
        self.process.kill()
        self.ended()


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        ours = fake_training.__file__ in line or serve_fake_runs.__file__ in line
        # Other tests have such processes at the same time.
        if ours and str(tmp_path) in " ".join(line):
            process.kill()


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 120
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "There is no directory"),
        (["--host", "0.0.0.0"], "--allow-remote"),
        (["--host", "10.9.8.7"], "run code as you"),
        (["--port", "taken"], "cannot listen there"),
        (["--port", "70000"], "--port"),
        (["--config-dir", "nowhere"], "there is no such directory"),
        (["--database", "mysql://x/y"], "--database"),
        (["--database", "sqlite://"], "--database"),
        (["--address", "ray://head:10001"], "cluster's dashboard"),
        (["strange://bucket/runs"], "Cannot open the storage"),
        (["--data-dir", "file/data"], "cannot be made"),
    ],
)
def test_wrong_arguments_start_nothing(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        given = [port if each == "taken" else each for each in arguments]
        data = [] if "--data-dir" in given else ["--data-dir", str(tmp_path / "data")]
        ended = here("serve", *given, *data)
    assert ended.code == 2, ended.err
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert not list(tmp_path.glob("data/history.db*"))
    assert not ended.out


def test_a_token_of_ones_own_is_long_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for token in ("short", "x" * 15, "ä" * 20, ""):
        monkeypatch.setenv("RAYTRAIN_SERVER_TOKEN", token)
        ended = here("serve", str(tmp_path), "--data-dir", str(tmp_path / "data"))
        assert ended.code == 2
        assert "RAYTRAIN_SERVER_TOKEN" in ended.err
        assert not token or token not in ended.err


# -- how it ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 0)]
)
def test_a_signal_ends_it_with_its_streams(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    served = Served(tmp_path)
    run = served.client.start({**CONFIG, "name": "cartpole"})
    streams: list[Iterator[Any]] = [
        served.client.events(),
        served.client.events(run["id"]),
        served.client.log(run["id"], follow=True),
    ]
    ends: list[list[Any]] = []
    threads = [threading.Thread(target=lambda s=each: ends.append(list(s))) for each in streams]
    for thread in threads:
        thread.start()
    until(lambda: served.client.get("/api/system")["streams"] == 3)
    served.process.send_signal(number)
    assert served.ended() == code
    for thread in threads:
        thread.join(60)
    assert len(ends) == 3
    assert "Traceback" not in served.log.read_text()
    # The run did not notice.
    again = Served(tmp_path)
    assert again.client.run(run["id"])["run"]["state"] == "running"
    again.client.stop(run["id"])
    again.kill()


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGTERM, signal.SIGINT)),
    ],
)
def test_a_run_outlives_a_signal_to_the_whole_group(number: int, tmp_path: Path) -> None:
    served = Served(tmp_path)
    run = served.client.start({**CONFIG, "name": "cartpole"})
    import os

    os.killpg(served.process.pid, number)
    served.ended()
    (tmp_path / "results" / "cartpole.go").touch()
    again = Served(tmp_path)
    assert again.client.wait(run["id"], timeout_s=60)["state"] == "finished"
    again.kill()


def test_it_imports_no_ray_and_no_torch(tmp_path: Path) -> None:
    served = Served(tmp_path)
    served.client.start({**CONFIG, "name": "cartpole"})
    served.client.models()
    maps = Path(f"/proc/{served.process.pid}/maps").read_text()
    assert "torch" not in maps
    assert "_raylet" not in maps
    served.kill()


# -- servers that are killed -----------------------------------------------------------------------


@pytest.mark.slow
def test_servers_are_killed_while_ten_runs_start_and_stop(tmp_path: Path) -> None:
    """No run is lost, none is started twice or stopped twice, and the index is that of storage."""
    chance = random.Random(7)
    names = [f"run{i}" for i in range(10)]
    servers = [Served(tmp_path), Served(tmp_path)]
    over = threading.Event()

    def ask(name: str, do: Callable[[raytrain.Client], Any]) -> Any:
        """Ask one of the servers until one has answered."""
        while True:
            try:
                return do(servers[chance.randrange(2)].client)
            except RaytrainError as error:
                if getattr(error, "status", 0) == 409:  # It has stopped by now.
                    return None
                time.sleep(0.05)

    def kill() -> None:
        while not over.wait(chance.uniform(0.5, 2.5)):
            which = chance.randrange(2)
            servers[which].kill()
            servers[which] = Served(tmp_path)

    def all_of(do: Callable[[str], Callable[[raytrain.Client], Any]]) -> None:
        over.clear()
        killer = threading.Thread(target=kill)
        threads = [threading.Thread(target=ask, args=(name, do(name))) for name in names]
        for thread in [killer, *threads]:
            thread.start()
        for thread in threads:
            thread.join(240)
            assert not thread.is_alive()
        over.set()
        killer.join(60)

    all_of(lambda name: lambda client: client.start({**CONFIG, "name": name}))
    lines = (tmp_path / "results" / "starts").read_text().splitlines()
    assert sorted(line.split()[0] for line in lines) == names

    ids = {row["name"]: row["id"] for row in servers[0].client.runs()}
    assert sorted(ids) == names
    all_of(lambda name: lambda client: client.stop(ids[name]))
    until(lambda: {row["state"] for row in servers[0].client.runs()} == {"interrupted"})
    signals = (tmp_path / "results" / "signals").read_text().split()
    assert sorted(signals) == names

    for served in servers:
        served.kill()
    rows = []
    for name in ("data/history.db", "anew.db"):
        history = History.open(f"sqlite:///{tmp_path / name}")
        Scanner(history, [str(tmp_path / "results")]).scan()
        rows.append(history.runs().runs)
        history.close()
    assert rows[0] == rows[1]
    assert len(rows[0]) == 10


def test_the_database_may_be_deleted(tmp_path: Path) -> None:
    served = Served(tmp_path)
    run = served.client.start({**CONFIG, "name": "cartpole"})
    served.kill()
    for file in (tmp_path / "data").glob("history.db*"):
        file.unlink()
    again = Served(tmp_path)
    assert until(again.client.runs)[0]["id"] == run["id"]
    assert again.client.start({**CONFIG, "name": "cartpole"})["id"] == run["id"]
    assert again.client.stop(run["id"])["saved"]
    again.kill()
