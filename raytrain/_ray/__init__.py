"""The one place that uses private names of Ray. Knows nothing of a run.

Written against Ray 2.60. Each entry names what is private, and why no public interface serves.
When Ray is upgraded, this package and its tests (`tests/ray/test_ray_private.py`,
`tests/ray/test_ray_private_cluster.py`, `tests/unit/cluster/test_package.py`) are what to look at.

    actors      env runner actors; imports RLlib
    cluster     nodes and jobs
    connectors  RLlib's default connector pipelines
    forkserver  workers as forks of a process that has imported what they need
    learners    learners
    local       an instance, or an algorithm, on this machine alone
    patch       attributes of Ray, replaced for a while
    runners     env runners
    tune        Tune

Each is imported when it is first used: the fork server's client starts with every worker, and needs
none of them.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raytrain._ray import cluster, connectors, learners, local, runners, tune

__all__ = ["cluster", "connectors", "learners", "local", "runners", "tune"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
