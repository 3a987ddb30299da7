"""An experiment on a cluster of raylets with addresses of their own, and perhaps with an object
store that all nodes reach over the same network.

Beside the head there are two workers that can carry trials. One that is killed, taken away or cut
off for long is replaced, as an autoscaler would replace it. A link that was cut and a store that
was stopped come back after a while."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping

import psutil

from support.chaos.campaign import PROCESSES, Stage, kill
from support.chaos.schedule import Fault
from support.chaos.trials import Trials
from support.namespaces import Cluster, Node
from support.running import Run
from support.s3_store import Proxy

KINDS = (*PROCESSES, "driver", "raylet", "preemption", "link", "files", "store")
WORKERS = 2
# Of the cuts, a share is over before anybody gives the node up; the others are not.
BLIPS, BLIP_S, CUT_S = 0.3, 2.0, (15.0, 25.0)
STOPPED_S = (6.0, 20.0)
STORE_WAYS = ("away", "errors", "mute")


class Nodes(Stage):
    """Nodes, their links and their processes. `command` starts the driver; `titles` are those of
    its processes, by kind; a worker carries as many trials as its `cpus` and its one unit of the
    resource `worker` allow."""

    def __init__(
        self,
        cluster: Cluster,
        command: Callable[[], Run],
        *,
        cpus: int,
        titles: Mapping[str, str] = PROCESSES,
    ) -> None:
        self._cluster = cluster
        self._command = command
        self._cpus = cpus
        self._titles = titles
        self._names = (f"w{number}" for number in itertools.count())
        self._cut: dict[str, float] = {}
        self._leaving: set[str] = set()
        self._replace()

    def start(self) -> Run:
        return self._command()

    def tend(self) -> None:
        now = time.monotonic()
        for name in [name for name, until in self._cut.items() if now >= until]:
            self._cluster.nodes[name].heal()
            del self._cut[name]
        self._replace()

    def strike(self, fault: Fault) -> str | None:
        if fault.kind == "driver":
            return self.kill_driver()
        if fault.kind in self._titles:
            return kill(fault, self.processes(fault.kind))
        carrying = [node for node in self._workers() if node.processes(self._titles["trial"])]
        if not carrying:
            return None
        return self._strike_node(fault, fault.choose(carrying))

    def processes(self, kind: str) -> list[psutil.Process]:
        title = self._titles[kind]
        return [process for node in self._workers() for process in node.processes(title)]

    # -- inside ----------------------------------------------------------------------------------

    def _strike_node(self, fault: Fault, node: Node) -> str:
        if fault.kind == "raylet":
            node.kill()
            return f"node {node.ip}, killed"
        if fault.kind == "preemption":
            node.terminate()
            self._leaving.add(node.name)
            return f"node {node.ip}, which got SIGTERM"
        assert fault.kind == "link", fault
        blip = fault.how < BLIPS
        seconds = BLIP_S if blip else fault.between(*CUT_S)
        node.cut()
        self._cut[node.name] = time.monotonic() + seconds
        if not blip:
            self._leaving.add(node.name)
        return f"the link of node {node.ip}, cut for {seconds:.1f} s"

    def _workers(self) -> list[Node]:
        """Those that are there to stay."""
        return [
            node
            for name, node in self._cluster.nodes.items()
            if name != "head" and name not in self._leaving and node.alive()
        ]

    def _replace(self) -> None:
        for _ in range(WORKERS - len(self._workers())):
            self._cluster.add(next(self._names), cpus=self._cpus, resources={"worker": 1})


class NodesAndStore(Nodes):
    """Also the store, which `proxy` stands before, and the files in it, which `trials` sees past
    it. The measure is the iterations that have a checkpoint."""

    def __init__(
        self, cluster: Cluster, proxy: Proxy, command: Callable[[], Run], trials: Trials
    ) -> None:
        super().__init__(cluster, command, cpus=3)
        self._proxy = proxy
        self._store_back_at: float | None = None
        self.trials = trials

    def reached(self) -> float:
        return self.trials.committed()

    def tend(self) -> None:
        if self._store_back_at is not None and time.monotonic() >= self._store_back_at:
            self._proxy.set("pass")
            self._store_back_at = None
        super().tend()

    def strike(self, fault: Fault) -> str | None:
        if fault.kind == "driver" and self._store_back_at is not None:
            return None  # A command that finds no store ends with an error, as it should.
        if fault.kind == "store":
            if not self.processes("trial"):
                return None
            way, seconds = fault.choose(STORE_WAYS), fault.between(*STOPPED_S)
            self._proxy.set(way)
            self._store_back_at = time.monotonic() + seconds
            return f"the store, {way} for {seconds:.1f} s"
        if fault.kind == "files":
            return self.trials.strike(fault, self.processes("trial"))
        return super().strike(fault)
