"""Worker processes that wait for an actor, with everything imported.

A trial that starts again on another node would spend most of its time with imports: seconds for its
own process, and as many again for each that it starts. So a worker that never ran anything is kept on
every node. (One that has run a task is never given to an actor.) What it imports is in the instance's
or the job's environment (see `session`).
"""

from __future__ import annotations

import importlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from grpc import RpcError

from raytrain import _ray

WORKERS_IMPORT = (
    "raytrain.trainable.trial",
    "raytrain.trainable.update.kernels",
    # Two seconds, of which Torch spends one half of a trial's start: every optimizer and every call for
    # deterministic algorithms imports it.
    "torch._inductor",
)
_LOOK_EVERY_S = 10.0
_TO_COME_S = 30.0


def import_all() -> None:
    """What a worker of a cluster does first (a runtime environment's `worker_process_setup_hook`)."""
    for module in WORKERS_IMPORT:
        importlib.import_module(module)


class Spares:
    """`count` on each node."""

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._clock = clock
        self._looked = clock()
        self._started: dict[str, float] = {}
        # A node that is cut off answers late, and nobody may wait for it.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="raytrain-spares")
        self._looking: Future[None] | None = None

    def keep(self) -> None:
        """Look after them; called again and again, and returns at once."""
        now = self._clock()
        if not self._count or now - self._looked < _LOOK_EVERY_S:
            return
        if self._looking is not None and not self._looking.done():
            return
        self._looked = now
        # Ray itself is asked here: asked after it was left, it would start an instance of its own.
        draining = _ray.cluster.draining_nodes()
        raylets = _ray.cluster.raylets()
        staying = {node: raylets[node] for node in raylets.keys() - draining.keys()}
        self._looking = self._pool.submit(self._look, staying, now)

    def _look(self, raylets: Mapping[str, str], now: float) -> None:
        for node, address in raylets.items():
            if now - self._started.get(node, -_TO_COME_S) < _TO_COME_S:
                continue
            try:
                missing = self._count - len(_ray.cluster.unused_workers(address))
                if missing > 0:
                    self._started[node] = now
                    _ray.cluster.start_workers(address, missing)
            except RpcError:
                continue  # The node goes away, or is busy: it is asked again.


def start_beside(bundles: Iterable[int]) -> None:
    """Have a worker wherever one of these bundles of this process's placement group is, while this
    process builds something else. RLlib starts learners only when its env runners are there."""
    raylets = _ray.cluster.raylets()
    for node, count in Counter(_ray.cluster.nodes_of_bundles(bundles)).items():
        try:
            there = _ray.cluster.unused_workers(raylets[node], starting=True)
            missing = count - len(there)
            if missing > 0:
                _ray.cluster.start_workers(raylets[node], missing)
        except (KeyError, RpcError):
            continue  # Then these processes start when they are needed.
