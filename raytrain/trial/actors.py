"""The other processes of a trial, by what a person calls them."""

from __future__ import annotations

from typing import Any

from raytrain import _ray


def remote_actors(algorithm: Any) -> dict[str, Any]:
    """Actors of an `ExactPPO`: `learner 0`, `env runner 0`, `evaluation runner 0`. May be asked in any
    thread, and of one that is still being built."""
    found = {}
    learners = getattr(algorithm, "learner_group", None)
    for rank, actor in enumerate(_ray.cluster.learner_actors(learners) if learners else []):
        found[f"learner {rank}"] = actor
    for what, name in (("env runner", "env_groups"), ("evaluation runner", "eval_env_groups")):
        groups = getattr(algorithm, name, None)
        for index, actor in groups.actors.items() if groups else ():
            found[f"{what} {index}"] = actor
    return found
