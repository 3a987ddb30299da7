"""What `raytrain/_ray` relies on in Ray for a long run's driver, and for signals. Each test fails
when Ray changes that, or needs it no longer; then look at the entry of the same name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray._private import node, parameter, services
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.air.execution._internal.event_manager import RayEventManager
from ray.tune import tune
from ray.tune.utils.serialization import TuneFunctionEncoder
from ray.util import debug

from raytrain import _ray


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Tune's actors with one of them, whose method `train` gives another reference each time."""
    before = RayActorManager._schedule_tracked_actor_task
    # A run in this process has replaced it.
    RayActorManager._schedule_tracked_actor_task = getattr(before, "_raytrain", before)
    actor = SimpleNamespace(train=SimpleNamespace(remote=object))
    made: Any = object.__new__(RayActorManager)
    made._live_actors_to_ray_actors_resources = {"actor": (actor, None)}
    made._actor_task_events = RayEventManager()
    made._tracked_actors_to_task_futures = defaultdict(set)
    yield made
    RayActorManager._schedule_tracked_actor_task = before


def references_after(manager: Any, calls: int) -> int:
    for _ in range(calls):
        manager._schedule_tracked_actor_task(
            SimpleNamespace(_tracked_actor="actor"), "train", args=(), kwargs={}
        )
        (future,) = manager._actor_task_events.get_futures()
        manager._actor_task_events.discard_future(future)  # As when it has been resolved.
    return len(manager._tracked_actors_to_task_futures["actor"])


def test_tune_still_keeps_each_reference_that_it_has_taken(manager: Any) -> None:
    assert references_after(manager, 5) == 5


def test_keep_no_results(manager: Any) -> None:
    _ray.tune.keep_no_results()
    _ray.tune.keep_no_results()
    assert references_after(manager, 5) == 1


def test_forget_logged_once() -> None:
    debug.log_once("another key")
    TuneFunctionEncoder().encode({"value": threading.Event})
    assert any(str(key).startswith("tune_func_encode:") for key in debug._logged)
    _ray.tune.forget_logged_once()
    assert not any(str(key).startswith("tune_func_encode:") for key in debug._logged)
    assert "another key" in debug._logged


def test_leave_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune's loop ends by our event, and no handler of ours is replaced."""
    monkeypatch.setattr(tune, "_setup_signal_catching", tune._setup_signal_catching)
    before = signal.getsignal(signal.SIGUSR1)
    asked = threading.Event()
    _ray.tune.leave_by(asked)
    assert tune._setup_signal_catching() is asked
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_raylet_is_waited_for_while_all_that_was_started_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[tuple[str, str]] = []

    def get_node(gcs_address: str, node_id: str) -> dict[str, str]:
        tries.append((gcs_address, node_id))
        if len(tries) < 3:
            raise RuntimeError("it is not there yet")
        return {"node_id": node_id}

    def start(code: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", code]
        started: Any = services.start_ray_process(command, "test", fate_share=True)
        return cast("subprocess.Popen[bytes]", started.process)

    monkeypatch.setattr(services, "get_node", get_node)
    with _ray.local.lean_instance():
        waits = start("import time; time.sleep(600)")
        assert services.get_node("here", "a") == {"node_id": "a"}
        assert tries == [("here", "a")] * 3
        tries.clear()
        start("").wait()
        with pytest.raises(RuntimeError, match="not there yet"):
            services.get_node("here", "a")
        assert len(tries) == 1
    waits.kill()
    assert services.get_node is get_node


def test_a_process_of_a_lean_instance_does_not_see_the_drivers_signals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = (services.ConsolePopen, parameter.RayParams, node.Node.start_api_server)
    with _ray.local.lean_instance():
        started = services.start_ray_process(
            [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"],
            "test",
            fate_share=True,
            stdout_file=subprocess.PIPE,
        ).process
    assert (services.ConsolePopen, parameter.RayParams, node.Node.start_api_server) == before
    try:
        assert started.stdout.readline() == b"up\n"
        assert os.getsid(started.pid) == started.pid
        for number in _ray.local.KEPT_FROM_RAY:
            os.kill(started.pid, number)
        with pytest.raises(subprocess.TimeoutExpired):
            started.wait(0.5)
        started.terminate()  # What Ray ends it with.
        assert started.wait(30) == -signal.SIGKILL
    finally:
        started.kill()
