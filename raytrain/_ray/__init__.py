"""The one place that touches private names of Ray.

Written against Ray 2.60. Each entry names what is private, and why the public interface does not do.
When Ray is upgraded, this package and its tests (`tests/test_ray_private.py`,
`tests/test_ray_private_cluster.py`, `tests/test_packing.py`) are what to look at.

    cluster   nodes and jobs
    learners  learners
    local     an instance, or an algorithm, on this machine alone
    runners   env runners
    tune      Tune
    actors    env runner actors; imports RLlib, and is therefore imported by itself
"""

from raytrain._ray import cluster, learners, local, runners, tune

__all__ = ["cluster", "learners", "local", "runners", "tune"]
