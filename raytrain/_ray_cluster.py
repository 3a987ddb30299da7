"""Private names of Ray that work on a cluster needs; see `_ray` for the rules.

Written against Ray 2.60; `tests/test_packing.py` holds what is here against the installed Ray.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set for the driver of a Ray job (`ray._private.runtime_env.constants`), and nowhere else: the
runtime context knows a job's id only once the driver has connected."""


def in_a_job() -> bool:
    """Whether this process is the driver of a submitted Ray job."""
    return IN_A_JOB in os.environ


def ignore_rules(directory: Path) -> list[Callable[[Path], bool]]:
    """What the `.gitignore` and `.rayignore` of one directory leave out of a package, as Ray itself reads
    them. Ray applies them to directories only, and a package that is told of before it is sent, and
    that a config is added to, is made here."""
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    quiet = logging.getLogger("raytrain.packing")
    wanted = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    rules: list[Callable[[Path], bool]] = get_excludes_from_ignore_files(
        directory, include_gitignore=wanted, logger=quiet
    )
    return rules
