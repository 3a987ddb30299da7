"""Which part of the cluster failed: a process, or the node that it was on.

A failure of the run's own (an exception, a crash, a hang) counts against `failure.max_failures`. A
node that is lost or taken away is the cluster's doing: it is counted apart, and bears no limit.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayActorError

from raytrain import _ray
from raytrain.cluster.restart_counts import Loss
from raytrain.errors import RaytrainError

_KNOCK_S = 1.0
_KNOCKS = 2
_BETWEEN_KNOCKS_S = 0.3


class NodeLost(RaytrainError):
    """A node died, or was cut off, with a part of the trial on it."""

    loss: Loss = "lost_node"


class NodePreempted(RaytrainError):
    """A node was taken away before the trial had left it."""

    loss: Loss = "preemption"


class PeerDied(RaytrainError):
    """Another process of the trial was killed or crashed. Nothing that a second try would repeat."""

    loss: Loss = "failure"


class Hung(RaytrainError):
    """A part of an iteration took far longer than usual."""

    loss: Loss = "failure"


def loss_of(error: BaseException | None) -> tuple[Loss, str | None]:
    """What kind of loss `error` (as Ray delivers it to the driver) is, and the address of the node
    if a node is its cause."""
    for each in _chain(error):
        loss: Loss | None = getattr(each, "loss", None)
        if loss is not None:
            return loss, None
        if isinstance(each, RayActorError) and each.actor_id:
            return loss_of_actor(each.actor_id, preempted=each.preempted)
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
    """Whether a node is dead. Ray knows it some seconds after the processes on it are missed, so its
    raylet is knocked at: a machine that died, or was cut off, does not answer."""
    for knock in range(_KNOCKS):
        if knock:
            time.sleep(_BETWEEN_KNOCKS_S)
        found = _node(node_id)
        if found is None or not found["Alive"]:
            return True
        try:
            place = (found["NodeManagerAddress"], int(found["NodeManagerPort"]))
            socket.create_connection(place, timeout=_KNOCK_S).close()
        except OSError:
            return True
    return False


def address_of(node_id: str) -> str:
    """The address of a node, dead or alive, as a person knows it."""
    found = _node(node_id)
    return str(found["NodeManagerAddress"]) if found else node_id[:12]


def nodes_alive() -> set[str]:
    """Ids of the nodes that Ray takes for alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _node(node_id: str) -> dict[str, Any] | None:
    return next((node for node in ray.nodes() if node["NodeID"] == node_id), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what Ray wraps in it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = getattr(error, "cause", None) or error.__cause__
