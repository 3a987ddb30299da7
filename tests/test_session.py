"""The local Ray instance of a run: what it starts, and what its idle workers are ready for."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest
import ray
from running import TINY

from raytrain import _ray
from raytrain.config import config_from_dict, cpus_at_most, param_space
from raytrain.session import _preload
from raytrain.trainable.trial import TrialPPO

_HEAVY = ("torch", "ray.rllib", "ray.tune")


def _trial() -> type:
    """Stands for a trial in what Ray needs of one: a class that becomes an actor."""

    class Trial:
        def seen(self) -> tuple[int, bool, str | None]:
            return os.getpid(), "colorsys" in sys.modules, os.environ.get("OMP_NUM_THREADS")

    return Trial


@pytest.fixture(scope="module")
def workers():
    """Pids of the idle workers of a lean instance."""
    with _ray.local.lean_instance(2), _ray.local.worker_environment("colorsys"):
        ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield [each.pid for each in _processes() if "default_worker" in _line(each)]
    ray.shutdown()


def _processes() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _line(process: psutil.Process) -> str:
    return " ".join(process.cmdline())


def test_a_lean_instance_has_no_process_that_a_run_does_not_use(workers):
    lines = [_line(each) for each in _processes()]
    unused = ("monitor.py", "log_monitor.py", "dashboard/dashboard.py")
    assert not [line for line in lines if any(name in line for name in unused)]
    assert any("gcs_server" in line for line in lines)


def test_a_trial_runs_in_a_process_that_was_there_and_has_imported(workers):
    from ray.tune.execution.class_cache import _ActorClassCache

    before = {each.pid for each in _processes()}
    with _ray.local.trials_use_idle_workers():
        made = _ActorClassCache().get(_trial())
    pid, imported, threads = ray.get(made.options(num_cpus=1).remote().seen.remote())
    assert pid in before
    assert imported
    assert threads == os.environ.get("OMP_NUM_THREADS", "1")


def test_tune_starts_trials_as_before_afterwards(workers):
    from ray.tune.execution.class_cache import _ActorClassCache

    with _ray.local.trials_use_idle_workers():
        pass
    assert _ActorClassCache().get(_trial())._default_options["runtime_env"]["env_vars"]


def test_the_environment_of_the_workers_does_not_stay_in_the_driver():
    before = dict(os.environ)
    with _ray.local.worker_environment("colorsys"):
        assert dict(os.environ) != before
    assert dict(os.environ) == before


def test_ray_can_start_before_the_driver_imports_rllib_and_torch():
    code = f"import sys, raytrain.session; print([n for n in {_HEAVY} if n in sys.modules])"
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
def test_the_bound_of_a_trials_cpus_is_one(sections):
    config = config_from_dict({**TINY, **sections})
    request = TrialPPO.default_resource_request(param_space(config))
    assert cpus_at_most(config) >= request.required_resources["CPU"]


@pytest.mark.parametrize(
    "sections",
    [
        {"resources": {"num_cpus_for_main_process": 2}},
        {"env_runners": {"num_cpus_per_env_runner": 2}},
        {"learners": {"num_cpus_per_learner": 2}},
        {"learners": {"num_gpus_per_learner": 1}},
    ],
)
def test_workers_do_not_import_torch_early_where_that_fixes_something_else(sections):
    assert _preload(config_from_dict(TINY)) is not None
    assert _preload(config_from_dict({**TINY, **sections})) is None
