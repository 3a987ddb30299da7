"""Private names of Ray that concern nodes and jobs."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set for the driver of a Ray job (`ray._private.runtime_env.constants`), and nowhere else. The
runtime context has a job's id only once the driver has connected."""


def in_a_job() -> bool:
    """Whether this process is the driver of a submitted Ray job."""
    return IN_A_JOB in os.environ


def job_environment() -> dict[str, Any]:
    """The runtime environment of this driver's job; empty outside of a job."""
    job = json.loads(os.environ.get(IN_A_JOB) or "{}")
    return dict(job.get("runtime_env") or {})


def ignore_rules(directory: Path) -> list[Callable[[Path], bool]]:
    """The rules of one directory's `.gitignore` and `.rayignore`, as Ray itself reads them. Ray
    applies them only while it packs a directory, and raytrain's package also holds a config."""
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    rules: list[Callable[[Path], bool]] = get_excludes_from_ignore_files(
        directory,
        include_gitignore=os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1",
        logger=logging.getLogger("raytrain.packing"),
    )
    return rules


def draining_nodes() -> dict[str, float | None]:
    """Draining nodes: id -> when they end (seconds since 1970), or None for no deadline.
    `ray.nodes()` shows a draining node as any other."""
    from ray._private.state import state

    return {
        node: deadline_ms / 1000 if deadline_ms else None
        for node, deadline_ms in state.get_draining_nodes().items()
    }


def drain_node(node_id: str, why: str, seconds: float) -> str | None:
    """Drain a node that ends in `seconds`. Returns why Ray refused, or None. The command
    `ray drain-node` does the same, and there is no public function."""
    from ray._private.worker import global_worker
    from ray.core.generated import autoscaler_pb2

    accepted, refusal = global_worker.gcs_client.drain_node(
        node_id,
        autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
        why,
        int((time.time() + seconds) * 1000),
    )
    return None if accepted else str(refusal)


def actor_node(actor: Any) -> str | None:
    """The node on which an actor (a handle, or its id in hex) lives or died; None if it never had
    one. Ray's errors name the actor, and not always the node."""
    from ray._private.state import actors

    actor_id = actor if isinstance(actor, str) else actor._actor_id.hex()
    return actors(actor_id=actor_id).get("Address", {}).get("NodeID") or None


def learner_actors(learner_group: Any) -> list[Any]:
    """The remote learners of a group in rank order; empty if the trial's own process learns."""
    return list(learner_group._workers or ())
