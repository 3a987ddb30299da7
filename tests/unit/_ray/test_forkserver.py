"""What the fork server imports before it knows a job."""

from __future__ import annotations

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
