"""Private names of Ray that concern an instance, or an algorithm, on this machine alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def files_below(directory: str) -> Iterator[None]:
    """Where an `Algorithm` that is made in the body, and that no Tune runs, puts its files. It would
    make a directory in ~/ray_results each time, and leave it there."""
    from ray.tune.trainable import trainable

    before = trainable.DEFAULT_STORAGE_PATH
    trainable.DEFAULT_STORAGE_PATH = directory
    try:
        yield
    finally:
        trainable.DEFAULT_STORAGE_PATH = before


@contextmanager
def lean_instance(workers: int) -> Iterator[None]:
    """Within, `ray.init` starts what a run on one machine needs, with `workers` idle worker processes.

    Ray also starts an autoscaler, a dashboard server (whatever `include_dashboard` says) and a reader
    of log files: three Python processes of a second of CPU time each, of which nothing is used here. Of
    idle workers it starts one for each logical CPU. None of this is an option of `ray.init`.
    """
    from ray._private import node, parameter, services

    plain, start_process = parameter.RayParams, services.start_ray_process
    start_server = node.Node.start_api_server

    class Lean(plain):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, no_monitor=True, include_log_monitor=False, **kwargs)

    def start(command: list[str], *args: Any, **kwargs: Any) -> Any:
        flag = "--num_prestart_python_workers="
        command = [f"{flag}{workers}" if each.startswith(flag) else each for each in command]
        return start_process(command, *args, **kwargs)

    def start_none(*args: Any, **kwargs: Any) -> None:
        return None

    parameter.RayParams, services.start_ray_process = Lean, start
    node.Node.start_api_server = start_none
    try:
        yield
    finally:
        parameter.RayParams, services.start_ray_process = plain, start_process
        node.Node.start_api_server = start_server


def worker_variables(preload: str | None) -> dict[str, str]:
    """Environment variables of worker processes. `preload`: modules (joined by commas) that they import
    before there is work for them, if any."""
    # RLlib asks for these frameworks wherever it is imported, and PPO on Torch uses none of them.
    wanted = {"RLLIB_TEST_NO_TF_IMPORT": "1", "RLLIB_TEST_NO_JAX_IMPORT": "1"}
    # What Tune sets for its trials by a runtime environment (see `trials_use_idle_workers`).
    wanted["PL_DISABLE_FORK"] = "1"
    wanted["RAY_CHDIR_TO_TRIAL_DIR"] = os.environ.get("RAY_CHDIR_TO_TRIAL_DIR", "0")
    if preload is not None:
        # Torch reads this when it is imported; Ray would set it (to the actor's CPUs) only later.
        wanted["OMP_NUM_THREADS"] = "1"
    return wanted


SECRETS_OF_TUNE = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
)
"""Variables that Tune hands from the driver to the processes of its trials, and to no others
(`ray.tune.execution.class_cache`)."""


@contextmanager
def worker_environment(preload: str | None) -> Iterator[None]:
    """Within, the environment variables for the processes of a local instance are set. `preload`: a
    module that idle workers import before there is work for them."""
    wanted = worker_variables(preload)
    # Ray ends workers that have been idle for a second (its default) once a trial's CPUs are
    # reserved: those that the trial is about to need.
    wanted["RAY_idle_worker_killing_time_threshold_ms"] = "86400000"
    if preload is not None:
        wanted["RAY_preload_python_modules"] = preload
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def trials_use_idle_workers() -> Iterator[None]:
    """Within, Tune starts its trials without a runtime environment, so that they (and the actors that
    they start) are given to workers that run already. What Tune would set there is in the environment
    of all of the job's workers (`worker_variables`)."""
    import ray
    from ray.tune.execution.class_cache import _ActorClassCache

    before = _ActorClassCache.get

    def get(self: Any, trainable: type) -> Any:
        if trainable not in self._cache:
            self._cache[trainable] = ray.remote(trainable)
        return self._cache[trainable]

    _ActorClassCache.get = get
    try:
        yield
    finally:
        _ActorClassCache.get = before
