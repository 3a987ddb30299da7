"""Nodes that join during a run (a spot node that was replaced, a cluster that grows).

They are asked what the others were asked before the run, beside the training: a thread looks for new
nodes and keeps what is wrong with them until the driver's loop tells it. Ray may already have placed
an actor on a new node by then, so this warns and stops nothing.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable
from types import TracebackType

from ray.exceptions import RayError

from raytrain.cluster.preflight import ClusterNotReady, Envoys, Node, alive_nodes, preflight
from raytrain.errors import RaytrainError

_LOOK_S = 5.0
_LEAVE_S = 10.0


class _Over(Exception):
    """The run is at its end."""


class JoinCheck:
    """`with JoinCheck(storage_path, known) as join_check: ... join_check.told()`. `known`: nodes that were
    there before the run, and are not asked again."""

    def __init__(self, storage_path: str, known: Iterable[Node]) -> None:
        self._storage_path = storage_path
        self._known = {node.id for node in known}
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="raytrain-join-check", daemon=True)

    def __enter__(self) -> JoinCheck:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        # Before Ray is left: a question that is asked afterwards would start a Ray of its own.
        self._thread.join(_LEAVE_S)

    def told(self) -> list[str]:
        """What has been found since the last call."""
        return [self._said.get() for _ in range(self._said.qsize())]

    def _look(self) -> None:
        while not self._over.wait(_LOOK_S):
            try:
                new = [node for node in alive_nodes() if node.id not in self._known]
                self._known |= {node.id for node in new}
                if new:
                    with Envoys(new) as envoys:
                        preflight(self._storage_path, envoys, check=self._check)
            except _Over:
                return
            except ClusterNotReady as problem:
                self._said.put(
                    f"{problem}\nThis is of a node that joined during the run, which goes on. What is placed "
                    "there may fail, or not be exact: mend it, or take it away."
                )
            except (RaytrainError, RayError, ConnectionError):
                continue  # The storage or the cluster is away for a moment: that is told elsewhere.

    def _check(self) -> None:
        if self._over.is_set():
            raise _Over
