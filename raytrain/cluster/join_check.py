"""Checks nodes that join during a run (a replaced spot node, a cluster that grows).

A thread looks for new nodes and runs the preflight on them beside the training; the driver's loop
prints what is wrong. Ray may already have placed an actor there, so this warns and stops nothing.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable

from ray.exceptions import RayError

from raytrain.cluster.preflight import ClusterNotReady, Node, NodeActors, alive_nodes, preflight
from raytrain.errors import RaytrainError

_LOOK_S = 5.0
_LEAVE_S = 10.0


class _Over(Exception):
    """The run is at its end."""


class JoinCheck:
    """`with JoinCheck(storage_path, known) as join_check: ... join_check.problems()`. `known`: the
    nodes that were there before the run, which are not checked again."""

    def __init__(self, storage_path: str, known: Iterable[Node]) -> None:
        self._storage_path = storage_path
        self._known = {node.id for node in known}
        self._problems: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="raytrain-join-check", daemon=True)

    def __enter__(self) -> JoinCheck:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        # Before the driver leaves Ray: a later call would start a Ray of its own.
        self._thread.join(_LEAVE_S)

    def problems(self) -> list[str]:
        """What was found since the last call."""
        return [self._problems.get() for _ in range(self._problems.qsize())]

    def _look(self) -> None:
        while not self._over.wait(_LOOK_S):
            try:
                new = [node for node in alive_nodes() if node.id not in self._known]
                self._known |= {node.id for node in new}
                if new:
                    with NodeActors(new) as actors:
                        preflight(self._storage_path, actors, check=self._check)
            except _Over:
                return
            except ClusterNotReady as problem:
                self._problems.put(
                    f"{problem}\nThis node joined during the run, which continues. Work that Ray "
                    "places there may fail or not be exact: repair the node, or remove it."
                )
            except (RaytrainError, RayError, ConnectionError):
                continue  # The storage or the cluster is away for a moment; others report that.

    def _check(self) -> None:
        if self._over.is_set():
            raise _Over
