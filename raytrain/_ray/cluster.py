"""Private names of Ray that concern nodes and jobs."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_RAYLET_PATIENCE_S = 5.0
_KEEP_WORKERS_S = 10 * 365 * 86_400

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


def draining_nodes() -> dict[str, float | None]:
    """Nodes that are asked to give up their work: id -> when they end (seconds since 1970), or None
    for no deadline. `ray.nodes()` shows a draining node as any other."""
    from ray._private.state import state

    return {
        node: deadline_ms / 1000 if deadline_ms else None
        for node, deadline_ms in state.get_draining_nodes().items()
    }


def drain_node(node_id: str, why: str, seconds: float) -> str | None:
    """Have the cluster treat a node as one that ends in `seconds`; why it was refused, or None. The
    command `ray drain-node` does no more, and there is no public function."""
    from ray._private.worker import global_worker
    from ray.core.generated import autoscaler_pb2

    accepted, refusal = global_worker.gcs_client.drain_node(
        node_id,
        autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
        why,
        int((time.time() + seconds) * 1000),
    )
    return None if accepted else str(refusal)


def actor_node(actor_id: str) -> str | None:
    """The node on which an actor lives, or died; None if it never had one. An error of Ray's names
    the actor, and not always the node."""
    from ray._private.state import actors

    found: dict[str, Any] = actors(actor_id=actor_id)
    node = found.get("Address", {}).get("NodeID", "")
    return node or None


def actor_id(actor: Any) -> str:
    """The id of an actor in hex, as errors and `actor_node` have it."""
    text: str = actor._actor_id.hex()
    return text


def learner_actors(learner_group: Any) -> list[Any]:
    """The remote learners of a group in rank order; none if it learns in the trial's own process."""
    return list(learner_group._workers or ())


def trial_resources(trial: Any) -> list[dict[str, float]]:
    """What a trial asks for: one mapping for each of its processes."""
    return [dict(bundle) for bundle in trial.placement_group_factory.bundles]


def raylets() -> dict[str, str]:
    """Where the raylet of each node that is alive listens: id -> `address:port`."""
    import ray

    return {
        node["NodeID"]: f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
        for node in ray.nodes()
        if node["Alive"]
    }


def nodes_of_bundles(bundles: Iterable[int]) -> list[str]:
    """The node of each of these bundles of the placement group that this process is in; none if it is
    in none."""
    import ray

    group = ray.util.get_current_placement_group()
    if group is None:
        return []
    where = ray.util.placement_group_table(group)["bundles_to_node_id"]
    return [where[index] for index in bundles]


def unused_workers(raylet: str, *, starting: bool = False) -> list[int]:
    """Pids of a node's worker processes that have had no work yet; with `starting` also a 0 for each
    that does not answer yet. Raises `grpc.RpcError`. There is no public function that sees idle workers."""
    from ray.core.generated import common_pb2, node_manager_pb2

    request = node_manager_pb2.GetNodeStatsRequest()
    with _raylet_stub(raylet) as stub:
        reply = stub.GetNodeStats(request, timeout=_RAYLET_PATIENCE_S)
    return [
        worker.pid
        for worker in reply.core_workers_stats
        if worker.worker_type == common_pb2.WORKER
        and (worker.pid or starting)
        and not worker.actor_id.strip(b"\xff")
        and not worker.num_executed_tasks
        and not worker.num_running_tasks
    ]


def start_workers(raylet: str, count: int) -> None:
    """Have a node start worker processes for this job, and keep them for as long as the job lives.
    Raises `grpc.RpcError`. Ray does the same before tasks for which it has CPUs, and on no request: a
    worker that has run a task is not given to an actor any more."""
    from ray._private.worker import global_worker
    from ray.core.generated import common_pb2, node_manager_pb2

    job = global_worker.core_worker.get_job_config()
    request = node_manager_pb2.PrestartWorkersRequest(
        language=common_pb2.PYTHON,
        job_id=global_worker.current_job_id.binary(),
        runtime_env_info=job.runtime_env_info,
        keep_alive_duration_secs=_KEEP_WORKERS_S,
        num_workers=count,
    )
    with _raylet_stub(raylet) as stub:
        stub.PrestartWorkers(request, timeout=_RAYLET_PATIENCE_S)


@contextmanager
def _raylet_stub(raylet: str) -> Iterator[Any]:
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import node_manager_pb2_grpc

    with init_grpc_channel(raylet) as channel:
        yield node_manager_pb2_grpc.NodeManagerServiceStub(channel)
