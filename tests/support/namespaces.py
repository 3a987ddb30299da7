"""A Ray cluster on one Linux machine whose nodes have addresses of their own.

    switch (a bridge) ── head 10.77.0.1     each node: its own network, process, mount, host name
                      ├─ a    10.77.0.2     and IPC namespace; `ray start --block` is its process
                      └─ b    10.77.0.3     1, so that its SIGKILL is the death of the whole node
    The switch itself is 10.77.0.200: there this process can serve something to all nodes.

    with Cluster() as cluster:
        a = cluster.add("a", cpus=2)
        driver = cluster.driver("train", "config.yaml", log=path)
        a.cut(); a.heal(); a.kill(); a.terminate()

Files are shared, as they are on a network file system; only Ray's temporary directory is each
node's own. Names begin with a prefix of this object's own, so several clusters can run side by
side. Needs root, and `ip`, `unshare`, `nsenter`; `why_not()` says what is missing."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from support.running import Run

PORT = 6379
ADDRESS = f"10.77.0.1:{PORT}"
SWITCH = "10.77.0.200"
_CLONE_NEWNET = 0x40000000
_START_S = 600.0
_counter = itertools.count()

NOTICED_IN_9_S = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
"""The setting of docs/clusters/nodes.md by which a head notices a node that was cut off."""

_NOTICED = {**NOTICED_IN_9_S, "RAY_health_check_timeout_ms": "5000"}
"""The same for a machine that runs other tests as well: a slow node is not to be given up."""


def why_not() -> str | None:
    """Why there can be no such cluster here; None if there can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs root on Linux"
    missing = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
    if missing:
        return f"needs the programs {', '.join(missing)}"
    name = f"rt{os.getpid()}try"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "this machine allows no network namespaces"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


class Node:
    """One machine of the cluster. `pid` is the process `ray start --block`, seen from outside."""

    def __init__(self, cluster: Cluster, name: str, number: int, starter: Any, log: Path) -> None:
        self.name, self.ip, self.log = name, f"10.77.0.{number}", log
        self._cluster, self._starter = cluster, starter
        self.pid = self._find()

    def _find(self) -> int:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            children = psutil.Process(self._starter.pid).children()
            if children:
                return int(children[0].pid)
            time.sleep(0.05)
        raise AssertionError(f"{self.name} did not start:\n{self.log.read_text()}")

    def alive(self) -> bool:
        return self._starter.poll() is None

    def kill(self) -> None:
        """The whole node dies at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._starter.wait(600)

    def terminate(self) -> None:
        """SIGTERM: Ray drains the node by itself."""
        os.kill(self.pid, signal.SIGTERM)

    def wait(self, timeout: float = 600) -> None:
        """Until the node has ended by itself."""
        self._starter.wait(timeout)

    def cut(self) -> None:
        """Its link carries nothing any more; its processes live on."""
        self._cluster.ip("-n", self._cluster.switch, "link", "set", f"p{self.name}", "down")

    def heal(self) -> None:
        self._cluster.ip("-n", self._cluster.switch, "link", "set", f"p{self.name}", "up")

    def processes(self, title: str) -> list[psutil.Process]:
        """Processes on this node whose title begins with `title`, such as `ray::TrialPPO`."""
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if " ".join(process.cmdline()).startswith(title):
                        found.append(process)
        return found

    def inside(self, *command: str) -> list[str]:
        """A command line that runs `command` on this node."""
        return ["nsenter", "-t", str(self.pid), *["-n", "-u", "-p", "-m", "-i"], "--", *command]


class Driver(Run):
    """`raytrain` (or another program) on a node, with its output in a file."""

    def __init__(self, node: Node, command: list[str], log: Path, env: dict[str, str]) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                node.inside(*command),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=env,
            )
        self.started.append(self)

    def signal(self, number: int = signal.SIGINT) -> None:
        for child in psutil.Process(self.process.pid).children():
            child.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to the program itself; what it started on other nodes lives on."""
        self.signal(signal.SIGKILL)
        self.process.wait(600)


class Cluster:
    """See the module's docstring. `env` is added to every node's environment; `files` holds a
    directory for each node, its Ray's temporary one."""

    def __init__(self, *, head_cpus: int = 1, env: dict[str, str] | None = None) -> None:
        self.prefix = f"rt{os.getpid()}x{next(_counter)}"
        self.switch = f"{self.prefix}sw"
        self.nodes: dict[str, Node] = {}
        self._numbers = itertools.count(1)
        self._namespaces: list[str] = []
        self._drivers: list[Driver] = []
        self._head_cpus = head_cpus
        # Short: Ray's sockets lie in it, and a socket's path has 107 characters at most.
        self.files = Path(tempfile.mkdtemp(prefix="rt"))
        (self.files / "ray").mkdir()
        names = "".join(f"10.77.0.{i} n{i}\n" for i in range(1, 100))
        (self.files / "pool").write_text(f"127.0.0.1 localhost\n{names}")
        self.env = {
            **os.environ,
            "GLOO_SOCKET_IFNAME": "eth0",
            "OMP_NUM_THREADS": "1",
            # A head with an address that others can reach takes no calls without a token.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            **_NOTICED,
            **(env or {}),
        }

    def __enter__(self) -> Cluster:
        try:
            self._namespace(self.switch)
            self.ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
            self.ip("-n", self.switch, "addr", "add", f"{SWITCH}/24", "dev", "br0")
            self.ip("-n", self.switch, "link", "set", "br0", "up")
            self.add("head", cpus=self._head_cpus)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def head(self) -> Node:
        return self.nodes["head"]

    def add(
        self,
        name: str,
        *,
        cpus: int,
        gpus: int = 0,
        resources: dict[str, float] | None = None,
        env: dict[str, str] | None = None,
    ) -> Node:
        """Start a node and wait until it has joined. GPUs are only counted, there need be none."""
        number = next(self._numbers)
        namespace = f"{self.prefix}{name}"
        self._namespace(namespace)
        self.ip(
            *f"-n {self.switch} link add p{name} type veth peer name eth0 netns {namespace}".split()
        )
        self.ip(*f"-n {self.switch} link set p{name} master br0 up".split())
        self.ip("-n", namespace, "link", "set", "lo", "up")
        self.ip(*f"-n {namespace} addr add 10.77.0.{number}/24 dev eth0".split())
        self.ip("-n", namespace, "link", "set", "eth0", "up")
        own = self.files / name
        own.mkdir()
        where = (
            f"--head --port={PORT} --temp-dir={self.files}/ray --include-dashboard=false"
            if number == 1
            else f"--address={ADDRESS}"
        )
        counts = f"--num-cpus={cpus} --num-gpus={gpus} --resources='{json.dumps(resources or {})}'"
        script = (
            f"hostname n{number}; mount --bind {self.files}/hosts /etc/hosts; "
            f"mount --bind {own} {self.files}/ray; "
            f"exec {sys.executable} -m ray.scripts.scripts start --block {where} {counts} "
            f"--node-ip-address=10.77.0.{number} --object-store-memory=120000000 "
            "--disable-usage-stats"
        )
        return self._started(name, namespace, number, script, env or {})

    def _started(
        self, name: str, namespace: str, number: int, script: str, env: dict[str, str]
    ) -> Node:
        log = self.files / f"{name}.log"
        unshared = [
            "unshare",
            "--uts",
            "--ipc",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount",
            "--mount-proc",
        ]
        with log.open("ab") as output:
            starter = subprocess.Popen(
                ["ip", "netns", "exec", namespace, *unshared, "bash", "-c", script],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**self.env, **env},
            )
        node = Node(self, name, number, starter, log)
        self.nodes[name] = node
        deadline = time.monotonic() + _START_S
        while "Ray runtime started" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            if not node.alive() and "timed out during startup" in log.read_text():
                # Ray waits 30 seconds for its own raylet, whatever the machine is busy with.
                log.write_text("")
                return self._started(name, namespace, number, script, env)
            assert node.alive(), log.read_text()
            time.sleep(0.1)
        return node

    def driver(self, *arguments: str, log: Path, program: list[str] | None = None) -> Driver:
        """`raytrain ARGUMENTS` on the head, joined to the cluster if it trains."""
        command = program or [sys.executable, "-m", "raytrain"]
        if arguments[:1] in (("train",), ("resume",)):
            arguments = (*arguments, "--address", ADDRESS)
        found = Driver(self.head, [*command, *arguments], log, self.env)
        self._drivers.append(found)
        return found

    def run(self, *command: str) -> str:
        """What a short command prints on the head."""
        done = subprocess.run(
            self.head.inside(*command), env=self.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def where(self, title: str) -> list[Node]:
        """The nodes that have a process of that title."""
        return [node for node in self.nodes.values() if node.alive() and node.processes(title)]

    def new_socket(self) -> socket.socket:
        """A TCP socket of this process in the cluster's network, where `SWITCH` is its address."""
        made: list[socket.socket] = []

        def make() -> None:
            # A thread can be in another network than its process, and a socket stays where it was
            # made.
            with open(f"/run/netns/{self.switch}") as namespace:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            made.append(socket.socket())

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return made[0]

    def ip(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    def close(self) -> None:
        """End every process of the cluster and take its namespaces down."""
        for node in self.nodes.values():
            node.kill()
        for driver in self._drivers:
            driver.process.kill()
            driver.process.wait(600)
        for namespace in self._namespaces:
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)
        shutil.rmtree(self.files, ignore_errors=True)

    def _namespace(self, name: str) -> None:
        self.ip("netns", "add", name)
        self._namespaces.append(name)


@contextlib.contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """A process that hangs: it does nothing within."""
    process.suspend()
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()
