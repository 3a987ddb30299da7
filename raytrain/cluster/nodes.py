"""The nodes of the cluster: which are alive, what runs on one, and whether a failure was a node's.

A failure of the run's own (an exception, a crash, a hang) counts against `failure.max_failures`. A
lost or preempted node is counted apart and without a limit.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raytrain import _ray
from raytrain.cluster.node_checks import NodeActor
from raytrain.cluster.restart_counts import Loss
from raytrain.errors import RaytrainError

_CONNECT_S = 1.0
_CONNECTIONS = 2
_BETWEEN_CONNECTIONS_S = 0.3


class NodeLost(RaytrainError):
    """A node died, or was cut off, with a part of the trial on it."""

    loss: Loss = "lost_node"


class NodePreempted(RaytrainError):
    """A node was preempted before the trial had left it."""

    loss: Loss = "preemption"


class PeerDied(RaytrainError):
    """Another process of the trial was killed or crashed; a retry may succeed."""

    loss: Loss = "failure"


class Hung(RaytrainError):
    """A part of an iteration took far longer than usual."""

    loss: Loss = "failure"


def loss_of(error: BaseException | None) -> tuple[Loss, str | None]:
    """The kind of loss that `error` (as Ray delivers it to the driver) is, and the address of the
    node if a node is its cause."""
    for cause in _chain(error):
        loss: Loss | None = getattr(cause, "loss", None)
        if loss is not None:
            return loss, None
        if isinstance(cause, RayActorError) and cause.actor_id:
            return loss_of_actor(cause.actor_id, preempted=cause.preempted)
    return "failure", None


def loss_of_actor(actor_id: str, *, preempted: bool = False) -> tuple[Loss, str | None]:
    """As `loss_of`, for an actor that died."""
    node = _ray.cluster.actor_node(actor_id)
    if node is None:
        return ("preemption" if preempted else "failure"), None
    if preempted or node in _ray.cluster.draining_nodes():
        return "preemption", address_of(node)
    if node_is_gone(node):
        return "lost_node", address_of(node)
    return "failure", None


def node_is_gone(node_id: str) -> bool:
    """Whether a node is dead. Ray takes some seconds to notice, so its raylet is connected to: a
    machine that died or was cut off does not accept."""
    for attempt in range(_CONNECTIONS):
        if attempt:
            time.sleep(_BETWEEN_CONNECTIONS_S)
        node = _node(node_id)
        if node is None or not node["Alive"]:
            return True
        try:
            address = (node["NodeManagerAddress"], int(node["NodeManagerPort"]))
            socket.create_connection(address, timeout=_CONNECT_S).close()
        except OSError:
            return True
    return False


def address_of(node_id: str) -> str:
    """The address of a node, dead or alive; the beginning of its id if Ray does not know it."""
    node = _node(node_id)
    return str(node["NodeManagerAddress"]) if node else node_id[:12]


def nodes_alive() -> set[str]:
    """Ids of the nodes that Ray takes for alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def actor_on(node_id: str) -> Any:
    """Start a `NodeActor`, which needs no CPU, on one node and nowhere else."""
    affinity = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=affinity)(NodeActor).remote()


def _node(node_id: str) -> dict[str, Any] | None:
    return next((node for node in ray.nodes() if node["NodeID"] == node_id), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and the errors that Ray wraps in it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = getattr(error, "cause", None) or error.__cause__
