"""Clusters for tests: heads and workers of their own, on free ports, that can be killed
one by one."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from support.paths import ROOT

NO_TOKEN = {"RAY_AUTH_MODE": "disabled"}
_any_seed = random.SystemRandom()
_SMALL = "200000000"  # bytes of object store: several nodes share this machine


def environment(**extra: str) -> dict[str, str]:
    """What a node or a client is started with: this raytrain first, this Python's programs first,
    and nothing of a Ray that the test itself may be running in."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), plain.get("PATH", "")])
    above = plain.get("PYTHONPATH", "")
    plain.update(
        PATH=path,
        PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), above])),
        RAY_USAGE_STATS_ENABLED="0",
        RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="0",  # A SIGTERM ends a node at once.
        **NO_TOKEN,
    )
    return {**plain, **extra}


class Node:
    """`ray start --block` and all that it starts."""

    def __init__(self, *arguments: str, log: Path, env: dict[str, str]) -> None:
        self._log = log.open("ab")
        common = ("--block", "--disable-usage-stats", f"--object-store-memory={_SMALL}")
        agent = (f"--dashboard-agent-listen-port={free_port()}", "--min-worker-port=0")
        self.process = subprocess.Popen(
            ["ray", "start", *common, *agent, "--max-worker-port=0", *arguments],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509 (no threads here)
            env=env,
        )

    def processes(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def comes_up(self) -> bool:
        """Wait until it is up (True) or has given up."""
        until(lambda: self._up() or self.process.poll() is not None, 600, self._read)
        return self._up()

    def _up(self) -> bool:
        return "Ray runtime started" in self._read()

    def _read(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL to everything on the node at once, as when its machine is switched off."""
        victims = self.processes()
        self.process.kill()
        for each in victims:
            try:
                each.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()
        psutil.wait_procs(victims, timeout=30)
        self._log.close()


class Cluster:
    """A head with a job server, and workers on request. `with Cluster(tmp_path) as cluster: ...`"""

    def __init__(
        self,
        logs: Path,
        *,
        cpus: int = 3,
        dashboard: bool = True,
        env: dict[str, str] | None = None,
    ) -> None:
        self._env = environment(**(env or {}))
        self._logs = logs
        self._stack = ExitStack()
        # Ray puts sockets there, whose paths may not be long.
        self._temp = tempfile.mkdtemp(prefix="rt")
        self._stack.callback(shutil.rmtree, self._temp, ignore_errors=True)
        self.port, self.dashboard = free_port(), free_port()
        self.nodes: list[Node] = []
        self.address = f"127.0.0.1:{self.port}"
        self.jobs = f"http://127.0.0.1:{self.dashboard}"
        self._cpus, self._with_dashboard = cpus, dashboard

    def __enter__(self) -> Cluster:
        try:
            self.head = self._start(
                "--head",
                f"--port={self.port}",
                f"--dashboard-port={self.dashboard}",
                f"--include-dashboard={self._with_dashboard}",
                f"--ray-client-server-port={free_port()}",
                f"--temp-dir={self._temp}",
                f"--num-cpus={self._cpus}",
            )
            if self._with_dashboard:
                until(self._answers, 600, lambda: self.log("head"))
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

    def close(self) -> None:
        for node in reversed(self.nodes):
            node.kill()
        self._stack.close()

    def add(self, *arguments: str, cpus: int = 1, **env: str) -> Node:
        """Another node; `env` is put into its environment."""
        return self._start(f"--address={self.address}", f"--num-cpus={cpus}", *arguments, **env)

    def log(self, name: str) -> str:
        return (self._logs / f"{name}.log").read_text(errors="replace")

    def driver_log(self, job: str) -> str:
        """What a job has printed so far."""
        logs = Path(self._temp).glob(f"session_*/logs/job-driver-{job}.log")
        return "".join(log.read_text(errors="replace") for log in logs)

    def _start(self, *arguments: str, **env: str) -> Node:
        """A node that is up. A raylet gives up when its agent needs more than 15 s to start, which
        it may on a machine that is busy; then another is started."""
        name = "head" if not self.nodes else f"node{len(self.nodes)}"
        log = self._logs / f"{name}.log"
        for _ in range(4):
            log.unlink(missing_ok=True)
            node = Node(*arguments, log=log, env={**self._env, **env})
            if node.comes_up():
                self.nodes.append(node)
                return node
            node.kill()
        raise AssertionError(f"{name} did not start:\n{self.log(name)}")

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.jobs}/api/version", timeout=5).close()
        except urllib.error.HTTPError:
            return True  # It wants a token.
        except OSError:
            return False
        return True


def end_with_parent() -> None:
    """A test run that is killed leaves no server behind: it gets a SIGTERM then."""
    parent_death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGTERM)


def until(condition: Callable[[], Any], timeout: float, told: Callable[[], str]) -> Any:
    """Wait for a condition to hold."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout} s:\n{told()}"
        time.sleep(0.1)
    return value


def free_port() -> int:
    """A port that nothing uses: below those that the system gives away by itself, and above those
    that Ray gives to its workers, so that nothing takes it before the test does."""
    while True:
        port = _any_seed.randrange(20_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def run(*arguments: str, env: dict[str, str], cwd: Path, timeout: float = 600) -> tuple[int, str]:
    """Exit code and output of a command, all of whose processes are dead after a timeout."""
    process = subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=cwd,
        env=env,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"still running after {timeout} s:\n{output}") from None
    return process.returncode, output
