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
def lean_instance() -> Iterator[None]:
    """Within, `ray.init` starts what a run on one machine needs.

    Ray also starts an autoscaler, a dashboard server (whatever `include_dashboard` says) and a reader
    of log files: three Python processes of a second of CPU time each, of which nothing is used here. Of
    idle workers it starts one for each logical CPU, which would not be used either. None of this is an
    option of `ray.init`.
    """
    from ray._private import node, parameter, services

    plain, start_process = parameter.RayParams, services.start_ray_process
    start_server = node.Node.start_api_server

    class Lean(plain):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, no_monitor=True, include_log_monitor=False, **kwargs)

    def start(command: list[str], *args: Any, **kwargs: Any) -> Any:
        flag = "--num_prestart_python_workers="
        command = [f"{flag}0" if each.startswith(flag) else each for each in command]
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


def worker_variables(*, one_cpu: bool) -> dict[str, str]:
    """Environment variables of worker processes. `one_cpu`: no actor is given more."""
    # RLlib asks for these frameworks wherever it is imported, and PPO on Torch uses none of them.
    wanted = {"RLLIB_TEST_NO_TF_IMPORT": "1", "RLLIB_TEST_NO_JAX_IMPORT": "1"}
    wanted["RAY_CHDIR_TO_TRIAL_DIR"] = os.environ.get("RAY_CHDIR_TO_TRIAL_DIR", "0")
    if one_cpu:
        # Torch reads this when it is imported; Ray would set it (to the actor's CPUs) only later.
        wanted["OMP_NUM_THREADS"] = "1"
    return wanted
