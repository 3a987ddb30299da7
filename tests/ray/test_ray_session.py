"""The local Ray instance of a run: what it starts."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from support.running import TINY

from raytrain import _ray
from raytrain.config import config_from_dict, cpus_at_most, param_space
from raytrain.driver.process_cleanup import own_services
from raytrain.driver.ray_session import _set_variables
from raytrain.trial.trainable import TrialPPO

_AGENTS = ("dashboard/agent.py", "runtime_env/agent/main.py")
_HEAVY = ("torch", "ray.rllib", "ray.tune")


@pytest.fixture(scope="module")
def lean() -> Iterator[Any]:
    """An instance, and those of its processes that a busy machine had not let run before
    it was there."""
    started, held = threading.Event(), set()

    def hold() -> None:
        while not started.wait(0.02):
            for each in _processes():
                with contextlib.suppress(psutil.Error):
                    is_agent = any(part.endswith(_AGENTS) for part in each.cmdline())
                    if is_agent and each not in held:
                        each.suspend()
                        held.add(each)

    holding = threading.Thread(target=hold)
    holding.start()
    try:
        with _ray.local.lean_instance():
            ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    finally:
        started.set()
        holding.join()
        for each in held:
            each.resume()
    yield held
    ray.shutdown()


def _processes() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _line(process: psutil.Process) -> str:
    return " ".join(process.cmdline())


def test_a_lean_instance_has_no_process_that_a_run_does_not_use(lean: Any) -> None:
    lines = [_line(each) for each in _processes()]
    unused = ("monitor.py", "log_monitor.py", "dashboard/dashboard.py")
    assert not [line for line in lines if any(name in line for name in unused)]
    assert any("gcs_server" in line for line in lines)
    workers = [each for each in _processes() if "default_worker.py" in "".join(each.cmdline()[1:2])]
    assert workers + [line for line in lines if line.startswith("ray::IDLE")] == []


def test_a_raylet_waits_for_no_agent(lean: Any) -> None:
    """Without the files with their ports it would end after 15 s."""
    assert lean

    @ray.remote(num_cpus=0, runtime_env={"env_vars": {"TOLD": "by an agent"}})
    def told() -> str:
        return os.environ["TOLD"]

    assert ray.get(told.remote()) == "by an agent"


def test_ray_can_start_before_the_driver_imports_rllib_and_torch() -> None:
    code = (
        f"import sys, raytrain.driver.ray_session; print([n for n in {_HEAVY} if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"env_runners": {"num_env_runners": 0}},
        {"env_runners": {"num_env_runners": 5, "num_cpus_per_env_runner": 0.5}},
        {"resources": {"num_cpus_for_main_process": 3}},
        {"learners": {"num_learners": 2, "num_cpus_per_learner": 2}},
        {"learners": {"num_cpus_per_learner": 4}},
        {"evaluation": {"evaluation_interval": 2, "evaluation_num_env_runners": 2}},
    ],
)
def test_the_bound_of_a_trials_cpus_is_one(sections: Any) -> None:
    config = config_from_dict({**TINY, **sections})
    request = TrialPPO.default_resource_request(param_space(config))
    assert cpus_at_most(config) >= request.required_resources["CPU"]


@pytest.mark.parametrize("main", [0, 1])
@pytest.mark.parametrize("runner", [0, 0.5])
@pytest.mark.parametrize("learner", [0, 0.5])
def test_an_actor_that_asks_for_no_cpu_has_a_place_that_is_next_to_nothing(
    main: int, runner: float, learner: float
) -> None:
    sections = {
        "resources": {"num_cpus_for_main_process": main},
        "env_runners": {"num_env_runners": 1, "num_cpus_per_env_runner": runner},
        "learners": {"num_learners": 1, "num_cpus_per_learner": learner},
    }
    request = TrialPPO.default_resource_request(param_space(config_from_dict({**TINY, **sections})))
    assert request.head_cpus == main
    assert len(request.bundles) == 3
    assert request.required_resources.get("CPU", 0) == main + runner + learner
    assert all(each in ({"memory": 1}, {"CPU": each.get("CPU")}) for each in request.bundles)


def test_no_function_of_rays_starts_another_instance_within_a_run() -> None:
    """Tune asks Ray this and that when it tidies up after an instance that has died."""
    ray.shutdown()
    with _ray.local.no_instance_by_itself(), pytest.raises(Exception, match=r"ray\.init"):
        ray.wait([])
    assert not ray.is_initialized()


def test_a_service_of_an_instance_that_did_not_come_up_is_none_of_the_next(tmp_path: Path) -> None:
    """Nobody waits for it, so it stays a child of this process; a run took it for its own that had
    died, and started Ray again and again."""
    program = tmp_path / "raylet"
    sleep = shutil.which("sleep")
    assert sleep is not None
    shutil.copy(sleep, program)
    started = [subprocess.Popen([program, "600"]) for _ in range(2)]
    try:
        started[0].kill()
        os.waitid(
            os.P_PID, started[0].pid, os.WEXITED | os.WNOWAIT
        )  # It has ended, and stays a zombie.
        assert [(each.pid, name) for each, name in own_services().items()] == [
            (started[1].pid, "raylet")
        ]
    finally:
        for each in started:
            each.kill()
            each.wait()


@pytest.mark.parametrize(("is_running", "seen_by_c"), [(True, None), (False, b"1")])
def test_once_ray_runs_variables_are_set_for_python_alone(
    monkeypatch: pytest.MonkeyPatch, is_running: bool, seen_by_c: bytes | None
) -> None:
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    monkeypatch.setattr(ray, "is_initialized", lambda: is_running)
    name = f"RAYTRAIN_TEST_{is_running}"
    _set_variables({name: "1"})
    _set_variables({name: "2"})
    assert getenv(name.encode()) == seen_by_c
    assert os.environ.pop(name) == "1"
