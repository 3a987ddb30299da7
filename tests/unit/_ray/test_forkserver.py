"""What the fork server imports before it knows a job."""

from __future__ import annotations

import os
import subprocess
import sys

from raytrain._ray.forkserver import BASE_IMPORTS


def test_nothing_that_the_base_imports_imports_ray() -> None:
    """Ray reads a job's settings when it is imported, and the base forks for every job."""
    program = (
        "import importlib, sys\n"
        f"for name in {BASE_IMPORTS!r}:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ModuleNotFoundError:\n"
        "        continue\n"
        "    assert 'ray' not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_forks_of_a_jobs_server_draw_different_ids() -> None:
    """Workers that start at once would create objects of one id in the object store otherwise."""
    program = """
import os
from raytrain._ray import forkserver

assert forkserver._prepare(forkserver.JOB_IMPORTS, optional=False) is None
import ray

def drawn():
    here, there = os.pipe()
    if not os.fork():
        os.write(there, ray.ObjectID.from_random().binary())
        os._exit(0)
    os.wait()
    return os.read(here, 100)

assert len({drawn() for _ in range(3)}) == 3
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
