"""Workers are forked from one process that has imported everything, and are like those
that are not."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from support import own_ray

from raytrain._ray import forkserver

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")

WORKER = """
import atexit, json, os, random, sys
import numpy as np

report = sys.argv[1]
atexit.register(lambda: os.rename(report + ".new", report))
seen = {
    "pid": os.getpid(), "parent": os.getppid(), "arguments": sys.argv, "path": sys.path[0],
    "directory": os.getcwd(), "mark": os.environ.get("MARK"), "group": os.getpgid(0),
    "own": sys.modules["__main__"].__dict__ is globals(),
    "early": "colorsys" in sys.modules,
    "random": [random.random(), np.random.random()], "hash": hash("left"),
    "files": sorted(os.readlink(f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd")
                    if os.path.exists(f"/proc/self/fd/{each}")),
}
print("a worker's words", flush=True)
with open(report + ".new", "w") as file:
    json.dump(seen, file)
"""


class Node:
    """A node's directory as Ray lays it out, and a process that stands for its raylet."""

    def __init__(self, root: Path) -> None:
        self.root, self.job = root, "01000000"
        self.raylet = subprocess.Popen(["sleep", "600"])
        self.own = root / "sockets" / f"rt{os.getuid()}"
        self.log = root / "logs" / "raytrain_forkserver.log"
        for name in ("sockets", "logs", "cwd"):
            (root / name).mkdir()
        (root / "worker.py").write_text(WORKER)

    def ask(
        self, name: str, imports: str = "numpy.random,colorsys", job_imports: str = "json"
    ) -> subprocess.Popen[bytes]:
        """A client as the raylet starts it, for servers that import something lighter."""
        code = (
            "import sys; from raytrain._ray import forkserver;"
            f"forkserver.BASE_IMPORTS = {tuple(imports.split(','))!r};"
            f"forkserver.JOB_IMPORTS = {tuple(job_imports.split(','))!r}; forkserver.main()"
        )
        env = {**os.environ, "RAY_RAYLET_PID": str(self.raylet.pid), "RAY_JOB_ID": self.job}
        worker = [str(self.root / "worker.py"), str(self.root / name)]
        with (self.root / f"{name}.out").open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-c", code, *worker, f"--raylet-name={self.root}/sockets/raylet"],
                env={**env, "OMP_NUM_THREADS": "1", "MARK": name},
                cwd=self.root / "cwd",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def worker(self, name: str, **imports: str) -> dict[str, Any]:
        """What a worker saw that was asked for."""
        self.ask(name, **imports)
        return self.seen(name)

    def seen(self, name: str) -> dict[str, Any]:
        until((self.root / name).exists, (self.root / f"{name}.out").read_text)
        found: dict[str, Any] = json.loads((self.root / name).read_text())
        until(lambda: ended(found["pid"]))  # Until then it looks like a server.
        return found

    def servers(self) -> list[psutil.Process]:
        """The base first, and then those of jobs."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if "--serve" in line and any(str(self.root) in each for each in line):
                found.append(process)
        return sorted(found, key=lambda process: process.create_time())


def ended(pid: int) -> bool:
    try:
        return not psutil.Process(pid).cmdline()
    except psutil.NoSuchProcess:
        return True


def until(condition: Any, told: Any = lambda: "") -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.02)


@pytest.fixture
def node() -> Iterator[Node]:
    with tempfile.TemporaryDirectory() as place:  # Short: a socket lies in it.
        found = Node(Path(place))
        try:
            yield found
        finally:
            found.raylet.kill()
            found.raylet.wait()
            until(lambda: not found.servers())


def test_a_worker_is_as_the_raylet_wants_it(node: Node) -> None:
    seen = node.worker("first")
    _, server = node.servers()
    assert seen["parent"] == server.pid
    assert seen["early"], "what the server has imported is there"
    assert seen["arguments"][:2] == [str(node.root / "worker.py"), str(node.root / "first")]
    assert seen["path"] == str(node.root)
    assert seen["directory"] == str(node.root / "cwd")
    assert seen["mark"] == "first"
    assert seen["own"], "it is the main module"
    assert seen["group"] == seen["pid"], "a signal to the server's group does not reach it"
    assert (node.root / "first.out").read_text() == "a worker's words\n"
    assert [each for each in seen["files"] if "socket" in each or "lock" in each] == []
    until(lambda: not psutil.pid_exists(seen["pid"]))


def test_what_a_new_process_draws_differs_between_workers(node: Node) -> None:
    first, second = node.worker("first"), node.worker("second")
    assert first["parent"] == second["parent"]
    assert not set(first["random"]) & set(second["random"])
    assert second["mark"] == "second"


def test_many_at_a_time_have_one_server(node: Node) -> None:
    names = [f"w{number}" for number in range(6)]
    clients = [node.ask(name) for name in names]
    (parent,) = {node.seen(name)["parent"] for name in names}
    base, server = node.servers()
    assert server.pid == parent
    assert server.ppid() == base.pid
    assert base.pid in [client.pid for client in clients], "it stays where the raylet put it"
    assert sorted(client.wait(600) for client in clients if client.pid != base.pid) == [0] * 5


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "which", [pytest.param("base", marks=SLOW), "server", pytest.param("both", marks=SLOW)]
)
def test_a_server_that_was_killed_is_replaced(node: Node, which: str) -> None:
    first = node.worker("first")
    base, server = node.servers()
    for each in {"base": [base], "server": [server], "both": [base, server]}[which]:
        each.kill()
    second = node.worker("second")
    assert (second["parent"] != first["parent"]) == (which != "base")
    assert second["early"]
    node.job = "02000000"
    assert node.worker("third")["early"]


@pytest.mark.slow
def test_nothing_of_the_environment_is_on_a_command_line(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "not-for-everybody")
    node.worker("first")
    lines = [" ".join(each.cmdline()) for each in node.servers()]
    assert len(lines) == 2
    assert not [line for line in lines if "not-for-everybody" in line]


@pytest.mark.slow
def test_one_that_ends_while_it_asks_stops_nobody(node: Node) -> None:
    before = node.worker("first")["parent"]
    for path in node.own.glob("????????????"):
        for sent in (b"", (99).to_bytes(4, "big"), (99).to_bytes(4, "big") + b"{"):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(path))
                connection.sendall(sent)
    assert node.worker("second")["parent"] == before
    node.job = "02000000"
    node.worker("third")
    assert len(node.servers()) == 3


@pytest.mark.slow
def test_each_job_has_a_server_of_its_own(node: Node) -> None:
    first = node.worker("first")
    node.job = "02000000"
    second = node.worker("second")
    assert second["parent"] != first["parent"]
    base, *servers = node.servers()
    assert {server.pid for server in servers} == {first["parent"], second["parent"]}
    assert {server.ppid() for server in servers} == {base.pid}


def test_a_worker_has_the_hash_order_of_its_own_hash_seed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents: list[int] = []
    for seed in ("7", "8", "7"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        seen = node.worker(f"with {seed}, {len(parents)}")
        usual = subprocess.run(
            [sys.executable, "-c", "print(hash('left'))"], capture_output=True, check=True
        )
        assert seen["hash"] == int(usual.stdout)
        assert seen["early"], "it was forked"
        parents.append(seen["parent"])
    assert parents[0] == parents[2] != parents[1]


def test_what_has_imported_another_raytrain_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "raytrain"
    package.mkdir()
    (package / "kernels.py").write_text("SCALE = 1")
    monkeypatch.setattr(forkserver, "__file__", str(package / "forkserver.py"))
    monkeypatch.setenv("RAY_RAYLET_PID", "1")
    command = ["default_worker.py", "--raylet-name=/tmp/x/sockets/raylet"]
    before = forkserver._socket_paths(command)
    assert before is not None and before == forkserver._socket_paths(command)
    (package / "kernels.py").write_text("SCALE = 2.0")
    paths = forkserver._socket_paths(command)
    assert paths is not None
    base, job = paths
    assert base not in before and job not in before


@pytest.mark.slow
def test_a_server_that_is_not_used_ends(node: Node) -> None:
    """It lives for as long as the worker that it was started for, and for as long as it
    is not used."""
    ended = node.root / "ended"
    (node.root / "slow.py").write_text(f"import time; time.sleep(3); open({str(ended)!r}, 'w')")
    path = node.root / "sockets" / "x" / "own"
    path.parent.mkdir()
    code = (
        "import os, sys; from pathlib import Path; from raytrain._ray import forkserver as f;"
        "f.UNUSED_S, f._LOOK_S = 1.5, 0.1; root = Path(sys.argv[1]);"
        "lock = os.open(root / 'own.lock', os.O_CREAT | os.O_RDWR);"
        "first = f.Request([str(root / 'slow.py')], dict(os.environ), str(root));"
        "files = [os.dup(each) for each in range(3)];"
        "f.serve(root / 'sockets' / 'x' / 'own', lock, ['json'], first, files)"
    )
    env = {**os.environ, "RAY_RAYLET_PID": str(node.raylet.pid), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen([sys.executable, "-c", code, str(node.root)], env=env)
    until(path.exists)
    assert server.wait(600) == 0
    assert ended.exists()
    assert not path.exists()


def test_a_server_ends_with_its_raylet(node: Node) -> None:
    node.worker("first")
    servers = node.servers()
    node.raylet.kill()
    node.raylet.wait()
    for server in servers:
        server.wait(600)
    assert list(node.own.glob("????????????")) == []


@pytest.mark.parametrize("where", ["imports", "job_imports"])
@pytest.mark.parametrize(
    ("module", "why"),
    [
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(600,), "
         "daemon=True).start()",
         "has started threads"),
        ("raise RuntimeError('not today')", "RuntimeError: not today"),
    ],
)  # fmt: skip
def test_a_server_that_cannot_fork_says_why_and_workers_start_as_usual(
    node: Node, module: str, why: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (node.root / "unfit.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", f"{node.root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    for name in ("first", "second"):
        imports = {"imports": "json", "job_imports": "json", where: "unfit"}
        seen = node.worker(name, **imports)
        assert not seen["early"]
        assert [each for each in seen["files"] if "lock" in each] == [], "others would wait for it"
    assert "--serve" not in " ".join(psutil.Process(node.seen("second")["parent"]).cmdline())
    assert len(node.servers()) == (where == "job_imports")
    assert node.log.read_text().count(why) == 1, "it was tried once"


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be somebody else")
@pytest.mark.parametrize("whose", ["job", "base"])
def test_nobody_elses_server_is_told_anything(node: Node, whose: str) -> None:
    node.worker("first")
    for server in node.servers():
        server.kill()
        server.wait(600)
    job, base = sorted(node.own.glob("????????????"), key=lambda path: path.stat().st_mtime)[::-1]
    path = job if whose == "job" else base
    for each in (job, base):
        each.unlink()
    node.root.chmod(0o755)
    node.own.chmod(0o777)
    listening = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); "
        "s.bind(sys.argv[1]); s.listen();"
        "open(sys.argv[1] + '.up', 'w'); c, _ = s.accept(); open(sys.argv[1] + '.got', 'wb')"
        ".write(c.recv(9999)); c.sendall(b'+'); import time; time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-S", "-c", listening, str(path)])
    try:
        until(path.with_name(f"{path.name}.up").exists)
        path.chmod(0o777)
        node.own.chmod(0o700)
        seen = node.worker("second")
        assert seen["parent"] == os.getpid()
        got = path.with_name(f"{path.name}.got")
        assert not got.exists() or got.read_bytes() == b""
    finally:
        other.kill()
        other.wait()


def test_what_servers_listen_at_and_lock_is_of_one_user(node: Node) -> None:
    node.worker("first")
    assert stat.S_IMODE(node.own.stat().st_mode) == 0o700
    assert len(list(node.own.glob("*.lock"))) == len(node.servers()) == 2
    assert list((node.root / "sockets").iterdir()) == [node.own]


def _of_somebody_else(path: Path) -> None:
    path.mkdir(mode=0o700)
    os.chown(path, 65534, 65534)


def _open_to_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def _link(path: Path) -> None:
    _open_to_all(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("make", [_open_to_all, _link, Path.touch, _of_somebody_else])
def test_a_directory_that_others_can_write_to_is_not_used(
    node: Node, make: Callable[[Path], None]
) -> None:
    if make is _of_somebody_else and os.geteuid() != 0:
        pytest.skip("needs to make it somebody else's")
    make(node.own)
    assert node.worker("first")["parent"] == os.getpid()
    said = (node.root / "first.out").read_text()
    assert "no worker can be forked here: " in said and "only this user can open" in said
    assert node.servers() == []


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("whose", ["job", "base"])
def test_a_lock_that_stays_held_is_not_waited_for_long(
    node: Node, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(forkserver, "time", clock)
    node.own.mkdir(mode=0o700)
    places = {"base": node.own / "a", "job": node.own / "b"}
    with forkserver._locked(places[whose]) as lock:
        assert lock is not None
        request = forkserver.Request(["worker.py"], {}, "/")
        assert forkserver.ask(places["base"], places["job"], request) is False
    assert clock.now <= 31


def test_a_log_that_is_a_pipe_is_not_waited_for(node: Node) -> None:
    os.mkfifo(node.log)
    assert node.worker("first")["early"]


def test_a_log_that_is_a_link_is_not_followed(node: Node) -> None:
    others = node.root / "others"
    others.touch()
    node.log.symlink_to(others)
    assert not node.worker("first", job_imports="there_is_no_such_module")["early"]
    assert others.read_text() == ""


def test_a_worker_without_a_raylet_starts_as_usual(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text("import os; print('here', os.getppid())")
    found = subprocess.run(
        [sys.executable, "-m", "raytrain._ray.forkserver", str(tmp_path / "worker.py")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == f"here {os.getpid()}\n"


def test_rays_workers_are_forked_and_know_their_job() -> None:
    @ray.remote(num_cpus=0)
    class Actor:
        def seen(self) -> tuple[int, str, bool]:
            parent = psutil.Process().parent()
            job = ray.get_runtime_context().get_job_id()
            assert parent is not None
            return parent.pid, job, "raytrain.trial.trainable" in sys.modules

        def pid(self) -> int:
            return os.getpid()

    own_ray.start(2)
    try:
        actors = [Actor.remote() for _ in range(3)]
        seen = ray.get([actor.seen.remote() for actor in actors])
        assert len({parent for parent, _, _ in seen}) == 1
        assert {job for _, job, _ in seen} == {ray.get_runtime_context().get_job_id()}
        assert all(imported for _, _, imported in seen)
        server = psutil.Process(seen[0][0])
        assert "--serve" in server.cmdline()
        os.kill(ray.get(actors[0].pid.remote()), signal.SIGKILL)
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(actors[0].pid.remote(), timeout=600)
        assert ray.get(Actor.remote().seen.remote())[0] == server.pid
    finally:
        ray.shutdown()
    server.wait(600)


@pytest.mark.slow
def test_rays_workers_have_the_hash_order_of_their_runtime_environment() -> None:
    @ray.remote(num_cpus=0)
    def seen() -> tuple[int, str]:
        parent = psutil.Process().parent()
        assert parent is not None
        return hash("left"), " ".join(parent.cmdline())

    own_ray.start(2)
    try:
        found = []
        for seed in ("7", "8"):
            workers = {"py_executable": forkserver.COMMAND, "env_vars": {"PYTHONHASHSEED": seed}}
            found.append(ray.get(seen.options(runtime_env=workers).remote(), timeout=600))
            usual = subprocess.run(
                [sys.executable, "-c", "print(hash('left'))"],
                env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True,
            )  # fmt: skip
            assert found[-1][0] == int(usual.stdout)
            assert "--serve" in found[-1][1], "it was forked"
    finally:
        ray.shutdown()
    assert found[0][0] != found[1][0]


@pytest.mark.slow
def test_a_second_driver_of_a_cluster_has_workers_of_its_own() -> None:
    code = (
        "import os, ray, sys; from raytrain._ray import forkserver;"
        "ray.init(sys.argv[1], runtime_env={'py_executable': forkserver.COMMAND,"
        " 'env_vars': {'OMP_NUM_THREADS': '1'}}, log_to_driver=False);"
        "job = ray.remote(num_cpus=0)(lambda: ray.get_runtime_context().get_job_id());"
        "print(ray.get(job.remote(), timeout=600), ray.get_runtime_context().get_job_id())"
    )
    own_ray.start(1, forked=False)
    try:
        address = ray.get_runtime_context().gcs_address
        said = []
        for _ in range(2):
            found = subprocess.run(
                [sys.executable, "-c", code, address], capture_output=True, text=True, check=False
            )
            assert found.returncode == 0, found.stderr
            said.append(found.stdout.split())
    finally:
        ray.shutdown()
    assert said == [["02000000"] * 2, ["03000000"] * 2]
