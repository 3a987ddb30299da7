"""A Ray instance for tests in this process, started as `raytrain train` starts one on a single
machine: no autoscaler, no dashboard, no reader of logs, and workers that are forked from a process
that has imported RLlib. Each of these, and each import, is a second or more of CPU time."""

from __future__ import annotations

import sys
from typing import Any

import ray

from raytrain import _ray
from raytrain._ray import forkserver
from raytrain.arithmetic.settings import ROLES, ArithmeticSettings

ONE_THREAD = ArithmeticSettings(dict.fromkeys(ROLES, 1), hash_seed=0)


def ensure() -> None:
    """For an algorithm in this process: without a Ray, it would start one with all of those, or
    join one that it finds on the machine."""
    if not ray.is_initialized():
        start(4)


def start(num_cpus: int, *, forked: bool = True, **options: Any) -> None:
    """`forked=False` for tests that start no workers, or none that need RLlib."""
    if forked:
        workers: dict[str, Any] = {
            "env_vars": {**_ray.local.worker_variables(), **ONE_THREAD.variables()}
        }
        if sys.platform == "linux":
            workers["py_executable"] = forkserver.COMMAND
        options["runtime_env"] = workers
    with _ray.local.lean_instance():
        ray.init(
            "local",
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            _system_config=_ray.local.SYSTEM_CONFIG,
            **options,
        )
