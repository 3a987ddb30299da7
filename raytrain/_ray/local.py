"""Private names of Ray that concern an instance, or an algorithm, on this machine alone."""

from __future__ import annotations

import importlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from raytrain._ray.patch import patched

KEPT_FROM_RAY = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""Signals that the processes of a local instance never receive: they are for the driver."""

_IDLE_AGENT = Path(__file__).with_name("idle_agent.py")

# Neither Ray's workers (10,002 to 19,999) nor the kernel (from 32,768 on) use one of these.
_PORTS = range(20_000, 32_768)

START_S = 180.0
"""How long the raylet of a local instance may take to start."""

SYSTEM_CONFIG = {
    # The raylet, too, ends a worker by SIGTERM, and by SIGKILL after this time (Ray: 5 s).
    "kill_worker_timeout_milliseconds": 100,
    # The GCS would keep the last 100,000 tasks, 3 KB of each iteration, for a dashboard.
    "task_events_report_interval_ms": 0,
    # On a busy machine imports take minutes. Ray would end a raylet whose agents are so slow, and
    # start a worker's imports again after 60 s, each time.
    "agent_register_timeout_ms": int(START_S * 1000),
    "worker_register_timeout_seconds": 600,
}
"""`ray.init(_system_config=...)` of a local instance."""


def files_below(directory: str) -> AbstractContextManager[None]:
    """Within, an `Algorithm` that is made without Tune puts its files there. It would make a
    directory in ~/ray_results each time, and leave it."""
    from ray.tune.trainable import trainable

    return patched(trainable, DEFAULT_STORAGE_PATH=directory)


def no_instance_by_itself() -> AbstractContextManager[None]:
    """Within, no function of Ray's starts an instance where there is none. Tune, which cleans up
    after the instance of a run has died, would start another one, with all its services.
    `RAY_ENABLE_AUTO_CONNECT` is read when Ray is imported."""
    from ray._private import auto_init_hook

    return patched(auto_init_hook, enable_auto_connect=False)


@contextmanager
def no_instance() -> Iterator[None]:
    """Within, an `Algorithm` without remote processes works where no Ray runs: what RLlib puts into
    the object store, and gets from there, is the object itself."""
    import ray

    def same(value: Any, **_: Any) -> Any:
        return value

    with no_instance_by_itself(), patched(ray, put=same, get=same, available_resources=dict):
        yield


@contextmanager
def lean_instance() -> Iterator[None]:
    """Within, `ray.init` starts only what a run on one machine needs. None of this is an option.

    Ray also starts an autoscaler, a dashboard server (whatever `include_dashboard` says), a reader
    of log files and an agent that reports metrics: four Python processes of one to three seconds of
    CPU time each, and one idle worker for each logical CPU.

    On Linux its processes are in a session of their own, and `KEPT_FROM_RAY` is blocked in them and
    in all their children. `timeout`, a terminal, systemd and Slurm send a signal to every process
    of a group, a session or a cgroup, and the driver needs a living instance to save. (Actors
    unblock the signals for the user's own processes: see `raytrain._ray.actor_signals`.) So Ray's
    own SIGTERM has no effect either, and is SIGKILL here; the driver's death ends it as before.

    A raylet ends when its agents do not write their ports to files within 15 s, and Ray waits 30 s
    for the raylet. On a busy machine the agents' imports take longer. Here the files exist before
    the raylet starts, and the driver waits `START_S` for it, or until one of the processes ends.
    """
    from ray._private import node, parameter, services

    params, popen = parameter.RayParams, services.ConsolePopen
    start_process, get_node = services.start_ray_process, services.get_node
    started: list[Any] = []

    class LeanParams(params):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, no_monitor=True, include_log_monitor=False, **kwargs)
            self.runtime_env_agent_port = _free_port()

    class SessionPopen(popen):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, preexec_fn: Callable[[], None], **kwargs: Any) -> None:
            def prepare() -> None:
                preexec_fn()
                signal.pthread_sigmask(signal.SIG_BLOCK, KEPT_FROM_RAY)

            super().__init__(*args, preexec_fn=prepare, start_new_session=True, **kwargs)

        def terminate(self) -> None:
            self.kill()

    def start(command: list[str], *args: Any, **kwargs: Any) -> Any:
        is_raylet = any(option.startswith("--raylet_socket_name=") for option in command)
        info = start_process(_raylet_command(command) if is_raylet else command, *args, **kwargs)
        started.append(info.process)
        return info

    def wait_for_node(*args: Any) -> Any:
        deadline = time.monotonic() + START_S
        while True:
            try:
                return get_node(*args)
            except RuntimeError:
                one_ended = any(process.poll() is not None for process in started)
                if one_ended or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    with ExitStack() as stack:
        stack.enter_context(patched(parameter, RayParams=LeanParams))
        stack.enter_context(patched(node.Node, start_api_server=lambda *args, **kwargs: None))
        stack.enter_context(patched(services, start_ray_process=start, get_node=wait_for_node))
        if sys.platform == "linux":  # Elsewhere Ray ends its processes by their group.
            stack.enter_context(patched(services, ConsolePopen=SessionPopen))
        yield


def _free_port() -> int:
    """A port on which nobody listens."""
    generator = random.SystemRandom()
    while True:
        port = generator.choice(_PORTS)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("", port))
            return port


def _raylet_command(command: list[str]) -> list[str]:
    """The command without idle workers and with a stand-in for the agent that reports metrics. Also
    writes the files from which a raylet reads the ports of its agents, -1 for none."""
    core: Any = importlib.import_module("ray._raylet")
    options = dict(o[2:].split("=", 1) for o in command if o.startswith("--") and "=" in o)
    ports = {
        core.METRICS_AGENT_PORT_NAME: -1,
        core.METRICS_EXPORT_PORT_NAME: -1,
        core.DASHBOARD_AGENT_LISTEN_PORT_NAME: -1,
        core.RUNTIME_ENV_AGENT_PORT_NAME: int(options["runtime_env_agent_port"]),
    }
    for name, port in ports.items():
        core.persist_port(options["session_dir"], options["node_id"], name, port)
    idle_agent = subprocess.list2cmdline([sys.executable, "-IS", str(_IDLE_AGENT)])
    values = {"--num_prestart_python_workers": "0", "--dashboard_agent_command": idle_agent}
    return [
        f"{name}={values[name]}" if (name := option.partition("=")[0]) in values else option
        for option in command
    ]


@contextmanager
def quiet_start() -> Iterator[None]:
    """For `ray.init`: keeps a line of Ray's C++ part off stderr, which reports that
    RAY_BACKEND_LOG_LEVEL silences it. Everything else on stderr appears at the end."""
    try:
        stderr = os.dup(2)
    except OSError:  # It is closed.
        yield
        return
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            written.seek(0)
            os.write(2, b"".join(line for line in written if b"RAY_BACKEND_LOG_LEVEL" not in line))


def worker_variables() -> dict[str, str]:
    """Environment variables of worker processes."""
    # RLlib imports these frameworks wherever it is imported, and PPO on Torch uses none of them.
    variables = {"RLLIB_TEST_NO_TF_IMPORT": "1", "RLLIB_TEST_NO_JAX_IMPORT": "1"}
    variables["RAY_CHDIR_TO_TRIAL_DIR"] = os.environ.get("RAY_CHDIR_TO_TRIAL_DIR", "0")
    return variables
