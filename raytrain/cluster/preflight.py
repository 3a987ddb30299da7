"""The preflight: whether every node of a cluster is fit to train on, before training begins.

    look    versions of raytrain (and its source files), ray, torch, gymnasium, numpy, python; clock
    write   every node, and the driver, writes a file of its own below the storage path
    read    every node, and the driver, reads the files of all others
    compute every node computes the same; otherwise a message says which nodes differ

An actor without CPUs on each node does all three; on the driver's own node the driver does them
itself if no part of the run can be placed there. A wrong answer, or none, ends the run before it
begins (`ClusterNotReady`, exit code 2) with the node's name and what to do. A node that leaves
meanwhile is skipped: a run survives the loss of nodes. The usual mistake is a storage path that
every node has on its own disk: then nodes do not see each other's files.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import ActorUnschedulableError, RayError, RayTaskError

from raytrain.arithmetic.machine import describe
from raytrain.cluster import node_checks
from raytrain.cluster.nodes import actor_on, node_is_gone, nodes_alive
from raytrain.errors import BadInput
from raytrain.storage import Location, storage_errors
from raytrain.versions import versions

MAX_SKEW_S = 10.0  # Leases on an object store, and the signatures of its requests, compare clocks.
TIMEOUT_S = 120.0  # Each node starts a worker, and may first have to fetch the run's files.
_LATE_FILE_S = 10.0  # caches of network file systems
_TIDY_S = 5.0  # Nodes that do not remove their files in this time leave them.
_DEATH_S = 30.0  # Ray's own health check takes half of it to notice a dead machine.
_SLICE_S = 0.5
_TEMPORARY = "/runtime_resources/working_dir_files/"  # where Ray unpacks a job's working directory
Answers = dict["Node", tuple[Any, float]]
"""What nodes returned, and when (seconds since the epoch, by this machine's clock)."""
_DRIVER = "driver"
_HERE = "this machine"


class ClusterNotReady(BadInput):
    """A node of the cluster cannot take part in the run."""


@dataclass(frozen=True)
class Node:
    """A node by Ray's id, and by its name in messages."""

    id: str
    name: str


def alive_nodes() -> list[Node]:
    """All living nodes by `ADDRESS (HOST)`; with their ids if several are on one machine."""
    nodes = [
        Node(node["NodeID"], f"{node['NodeManagerAddress']} ({node['NodeManagerHostname']})")
        for node in ray.nodes()
        if node["Alive"]
    ]
    names = [node.name for node in nodes]
    return [
        node if names.count(node.name) == 1 else Node(node.id, f"{node.name[:-1]}, {node.id[:8]})")
        for node in nodes
    ]


def nodes_to_ask(nodes: Iterable[Node]) -> list[Node]:
    """All of these but the driver's own, if it has neither CPUs nor GPUs."""
    here = ray.get_runtime_context().get_node_id()
    able = {
        node["NodeID"]
        for node in ray.nodes()
        if node["Resources"].get("CPU") or node["Resources"].get("GPU")
    }
    return [node for node in nodes if node.id != here or node.id in able]


def _nothing() -> None:
    pass


class NodeActors:
    """`with NodeActors(nodes) as actors: preflight(storage_path, actors)`. An actor on each node;
    they start while the caller does something else."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        cloudpickle.register_pickle_by_value(node_checks)
        self._actors = {node: actor_on(node.id) for node in nodes}

    def __enter__(self) -> NodeActors:
        return self

    def __exit__(self, *exc_info: object) -> None:
        cloudpickle.unregister_pickle_by_value(node_checks)
        for actor in self._actors.values():
            if ray.is_initialized():  # Otherwise this would start, or join, another Ray.
                with suppress(RayError):
                    ray.kill(actor)
        self._actors.clear()

    @property
    def nodes(self) -> list[Node]:
        return list(self._actors)

    def ask(
        self,
        nodes: Iterable[Node],
        function: Callable[..., Any],
        arguments: Callable[[Node], tuple[Any, ...]],
        timeout_s: float,
        check: Callable[[], None] = _nothing,
    ) -> Answers:
        """Run `function` on these nodes. Returns the answers of those that are still alive. `check`
        is called twice a second, and ends the wait by raising.

        Raises:
            ClusterNotReady: a living node does not answer, or the function failed on it.
        """
        answers, problems = self.answers_and_problems(nodes, function, arguments, timeout_s, check)
        _refuse(
            f"{node.name} {problem}"
            for node, problem in problems.items()
            if not _has_died(node, check)
        )
        return answers

    def answers_and_problems(
        self,
        nodes: Iterable[Node],
        function: Callable[..., Any],
        arguments: Callable[[Node], tuple[Any, ...]],
        timeout_s: float = math.inf,
        check: Callable[[], None] = _nothing,
    ) -> tuple[Answers, dict[Node, str]]:
        """The same, with a text for each node without an answer; a node that is being drained has
        neither."""
        pending = {
            self._actors[node].call.remote(function, *arguments(node)): node for node in nodes
        }
        answers: Answers = {}
        problems: dict[Node, str] = {}
        deadline = time.monotonic() + timeout_s
        while pending and (left := deadline - time.monotonic()) > 0:
            check()
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=min(left, _SLICE_S))
            if not ready:
                continue
            node = pending.pop(ready[0])
            try:
                answers[node] = ray.get(ready[0]), time.time()
            except RayTaskError as error:
                problems[node] = f"failed: {error.cause or error}"
            except ActorUnschedulableError:
                pass  # It is being drained: it leaves, and takes no new work.
            except RayError as error:
                problems[node] = f"could not start a worker: {_short(error)}"
        for node in pending.values():
            problems[node] = (
                f"has not answered within {timeout_s:.0f} s. Look at its raylet (raylet.out in "
                "Ray's logs) and at the network between, or remove it from the cluster"
            )
        return answers, problems


def _has_died(node: Node, check: Callable[[], None]) -> bool:
    """Whether the node is dead. Ray may need some seconds to notice that of a node whose raylet
    does not answer any more; one whose raylet never could be reached from here is alive."""
    deadline = time.monotonic() + _DEATH_S
    while node.id in nodes_alive():
        if not node_is_gone(node.id) or time.monotonic() > deadline:
            return False
        check()
        time.sleep(_SLICE_S)
    return True


def preflight(
    storage_path: str,
    actors: NodeActors,
    *,
    tell: Callable[[str], None] = lambda message: None,
    timeout_s: float = TIMEOUT_S,
    check: Callable[[], None] = _nothing,
) -> None:
    """Check the nodes of these actors. `tell` gets a message if they compute differently. `check`
    is called during the waits, and may raise.

    Raises:
        ClusterNotReady: with every problem that was found.
        StorageError: this process cannot use the storage itself.
    """
    if _TEMPORARY in storage_path:
        raise ClusterNotReady(
            f"The storage path {storage_path} lies in the job's working directory, which Ray "
            "deletes when the job has ended. Choose a permanent one: --storage-path, with an "
            "absolute path or a URI."
        )
    ask = partial(actors.ask, check=check)
    nodes = same_versions(actors, timeout_s, check)
    _exchange(ask, nodes, storage_path, timeout_s)
    computed = ask(nodes, node_checks.compute, lambda node: (), timeout_s)
    kinds: dict[str, tuple[str, list[str]]] = {}
    for node, ((fingerprint, machine), _) in computed.items():
        kinds.setdefault(fingerprint, (describe(machine), []))[1].append(node.name)
    if len(kinds) > 1:
        named = "; ".join(f"{', '.join(names)}: {text}" for text, names in kinds.values())
        tell(
            f"The nodes compute differently ({named}). A run keeps to nodes that compute alike as "
            "long as there are any; see fault_tolerance.on_other_arithmetic."
        )


def same_versions(
    actors: NodeActors, timeout_s: float = TIMEOUT_S, check: Callable[[], None] = _nothing
) -> list[Node]:
    """Compare versions and clocks with this process's. Returns the nodes that have answered.

    Raises:
        ClusterNotReady: with every difference.
    """
    packages = tuple(name for name in versions() if name != "python")
    mine = node_checks.look(packages)
    sent = time.time()
    answers = actors.ask(actors.nodes, node_checks.look, lambda node: (packages,), timeout_s, check)
    problems = []
    for node, (theirs, received) in answers.items():
        problems += [f"{node.name} {text}" for text in _version_problems(theirs, mine)]
        # When in between the clock was read is not known; this much is certain.
        clock = theirs["clock"]
        skew = max(clock - received, sent - clock)
        if skew > MAX_SKEW_S:
            side = "ahead of" if clock > received else "behind"
            problems.append(
                f"{node.name} has a clock at least {skew:.0f} s {side} this machine's. Enable time "
                "synchronisation on both (chrony or systemd-timesyncd)"
            )
    _refuse(problems)
    return list(answers)


def _version_problems(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    problems = []
    for name, expected in mine["versions"].items():
        version = theirs["versions"].get(name)
        if version is None:
            problems.append(f"has no {name}; this machine has {name} {expected}. Install it there")
        # A head without a GPU may well have the build torch 2.13.0+cpu.
        elif version.partition("+")[0] != expected.partition("+")[0]:
            problems.append(
                f"has {name} {version}; this machine has {expected}. Install one of them on both"
            )
    if not problems and theirs["source"] != mine["source"]:
        problems.append(
            f"has raytrain {mine['versions']['raytrain']} with other source files "
            f"({theirs['source']}, here {mine['source']}). Install the same commit on both"
        )
    return problems


def _exchange(
    ask: Callable[..., Answers], nodes: list[Node], storage_path: str, timeout_s: float
) -> None:
    """Each node and the driver write a file, and read all of them."""
    token = f".raytrain-preflight-{uuid.uuid4().hex[:12]}"
    directory = f"{storage_path.rstrip('/')}/{token}"
    place = Location.of(directory)
    texts = {_DRIVER: f"{token} {_DRIVER}", **{node.id: f"{token} {node.id}" for node in nodes}}
    done = False
    try:
        with storage_errors("Writing a file, as every node of a cluster has to,", place):
            place.make()
            (place / _DRIVER).write_bytes(texts[_DRIVER].encode())
        written = ask(
            nodes, node_checks.write, lambda node: (directory, node.id, texts[node.id]), timeout_s
        )
        _refuse(
            f"{node.name} cannot write to {storage_path}: {reason}. Make it writable there "
            "for the user that Ray runs as, or choose another --storage-path"
            for node, (reason, _) in written.items()
            if reason is not None
        )
        writers = {_DRIVER: _HERE, **{node.id: node.name for node in written}}
        expected = {name: texts[name] for name in writers}
        arguments = (directory, expected, _LATE_FILE_S)
        seen = ask(written, node_checks.read, lambda node: arguments, timeout_s + _LATE_FILE_S)
        wrong = {node.name: unread for node, (unread, _) in seen.items()}
        wrong[_HERE] = node_checks.read(*arguments)
        _refuse(_unseen(storage_path, wrong, writers, is_local=place.is_local))
        done = True
    finally:
        with storage_errors("Removing the files of the preflight", place):
            place.delete_tree()
        if not done:  # Perhaps it is not one directory, but one on each node.
            with suppress(ClusterNotReady):
                ask(nodes, node_checks.remove, lambda node: (directory,), _TIDY_S, check=_nothing)


def _unseen(
    storage_path: str,
    wrong: Mapping[str, Mapping[str, str]],
    writers: Mapping[str, str],
    *,
    is_local: bool,
) -> list[str]:
    """The problem of all files that a reader could not read, if there is one."""
    problems = [
        f"{reader} does not see what {' and '.join(writers[name] for name in files)} wrote: "
        f"{next(iter(files.values()))}"
        for reader, files in wrong.items()
        if files
    ]
    if not problems:
        return []
    remedy = (
        "It must be one directory that all nodes share: mount a network file system (NFS, EFS, "
        "Filestore, Lustre) at this path on each node, or use an object store "
        "(--storage-path s3://BUCKET/runs)"
        if is_local
        else "Check that all nodes reach the same store, with the same rights to read and write"
    )
    return [f"The storage path {storage_path} is not shared: {'; '.join(problems)}. {remedy}"]


def _short(error: BaseException) -> str:
    """Ray's message without the ids that it lists (lines that begin with a tab); of a traceback the
    last line."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip() and line[0] != "\t"]
    return " ".join(lines[-1:] if "Traceback (" in text else lines) or type(error).__name__


def _refuse(problems: Iterable[str]) -> None:
    text = "".join(f"\n  {problem.rstrip('.')}." for problem in problems)
    if text:
        raise ClusterNotReady(f"The cluster is not ready to train:{text}")
