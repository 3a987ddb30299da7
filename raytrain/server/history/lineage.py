"""How runs descend from one another, and the models that came out of them.

A node is a checkpoint, found by the digest of its weights, so a parent that was moved is the same.
A run has a node for each of its stages, for each checkpoint that a fork began from, and for its
newest checkpoint:

    run A    easy ──stage──> hard ──stage──> newest
                               └────fork────> run B's newest
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection, select

from raytrain.server.history.queries import USABLE
from raytrain.server.history.tables import checkpoints, runs, tasks

_STAGES = "stages/"
_FIXED = ("best", "final")


@dataclass(frozen=True)
class Node:
    """A checkpoint. `run`: None if the history has never seen the run, and `kind` "unknown" if it
    has not seen the checkpoint: then a fork tells of it."""

    run: str | None
    name: str
    trial: str
    checkpoint: str
    iteration: int
    weights_sha256: str
    kind: str

    @property
    def id(self) -> str:
        return f"{self.run or self.name}/{self.trial}/{self.weights_sha256[:16]}"


class _Graph:
    """The nodes of each trial, and the edges between runs."""

    def __init__(self, saved: Iterable[tuple[Node, str]]) -> None:
        """`saved`: every checkpoint, and the path of its run."""
        self.chains: dict[tuple[str | None, str, str], dict[str, Node]] = defaultdict(dict)
        self.forks: list[tuple[Node, str]] = []
        self._by_weights: dict[str, list[tuple[Node, str]]] = defaultdict(list)
        newest: dict[tuple[str | None, str], Node] = {}
        for node, path in saved:
            self._by_weights[node.weights_sha256].append((node, path))
            if node.kind == "stage":
                self.show(node)
            known = newest.get((node.run, node.trial))
            if known is None or node.iteration >= known.iteration:
                newest[node.run, node.trial] = node
        for node in newest.values():
            self.show(node)

    def show(self, node: Node) -> None:
        """Have this node; of several checkpoints with the same weights the first one is shown."""
        self.chains[node.run, node.name, node.trial].setdefault(node.id, node)

    def add_fork(self, run: str, generations: Sequence[Mapping[str, Any]]) -> None:
        """`generations`: the ancestors of a run, its parent first."""
        line = [self._node_of(generation) for generation in generations]
        for node in line:
            self.show(node)
        if line:
            self.forks.append((line[0], run))
        # Of a run that is known the history has the ancestors, too.
        for child, parent in pairwise(line):
            if child.run is None:
                self.forks.append((parent, child.id))

    def _node_of(self, generation: Mapping[str, Any]) -> Node:
        weights, path = str(generation["weights_sha256"]), generation.get("place")
        found = self._by_weights[weights]
        if found:
            return next((node for node, place in found if place == path), found[0][0])
        return Node(
            run=None,
            name=str(generation["experiment"]),
            trial=str(generation["trial"]),
            checkpoint=str(generation["checkpoint"]),
            iteration=int(generation.get("iteration", 0)),
            weights_sha256=weights,
            kind="unknown",
        )

    def to_dict(self) -> dict[str, Any]:
        chains = {
            key: sorted(nodes.values(), key=lambda node: node.iteration)
            for key, nodes in self.chains.items()
        }
        edges = [
            {"from": one.id, "to": other.id, "kind": "stage"}
            for chain in chains.values()
            for one, other in pairwise(chain)
        ]
        first = defaultdict(list)
        for (run, _, _), chain in chains.items():
            first[run or chain[0].id].append(chain[0].id)
        edges += [
            {"from": parent.id, "to": begin, "kind": "fork"}
            for parent, child in dict.fromkeys(self.forks)
            for begin in first.get(child, ())
        ]
        nodes = [{"id": node.id, **asdict(node)} for chain in chains.values() for node in chain]
        return {"nodes": nodes, "edges": edges}


def graph(connection: Connection) -> dict[str, Any]:
    """{"nodes": [the fields of a `Node` with its id, ...],
    "edges": [{"from": id, "to": id, "kind": "fork" or "stage"}, ...]}"""
    saved = select(
        *(checkpoints.c[name] for name in ("run", "trial", "path", "iteration", "kind")),
        checkpoints.c.weights_sha256.label("weights"),
        runs.c.name,
        runs.c.path.label("place"),
    ).join(runs)
    order = runs.c.first_start, runs.c.id, checkpoints.c.trial, checkpoints.c.iteration
    where = USABLE & checkpoints.c.weights_sha256.is_not(None)
    found = connection.execute(saved.where(where).order_by(*order, checkpoints.c.path))
    whole = _Graph(
        (
            Node(row.run, row.name, row.trial, row.path, row.iteration, row.weights, row.kind),
            row.place,
        )
        for row in found
    )
    for run, generations in connection.execute(select(runs.c.id, runs.c.ancestors)):
        whole.add_fork(run, generations or ())
    return whole.to_dict()


def parent(connection: Connection, run: str) -> str | None:
    """The id of the run that a run was forked from: the one at the parent's place, or another that
    has the checkpoint's weights. None if it is no fork, or the history has neither."""
    found = connection.execute(select(runs.c.ancestors).where(runs.c.id == run)).scalar()
    if not found:
        return None
    weights, place = found[0]["weights_sha256"], found[0].get("place")
    owners = connection.execute(
        select(runs.c.id)
        .outerjoin(
            checkpoints,
            (checkpoints.c.run == runs.c.id) & (checkpoints.c.weights_sha256 == weights),
        )
        .where(runs.c.id != run, (checkpoints.c.run.is_not(None)) | (runs.c.path == place))
        .order_by(checkpoints.c.run.is_(None), runs.c.path != place, runs.c.gone_at.is_not(None))
        .order_by(runs.c.first_start, runs.c.id)
    )
    return owners.scalars().first()


def models(connection: Connection) -> list[dict[str, Any]]:
    """Best, final and stages of all runs that are on storage, and what was exported by a server,
    the newest first: {kind, run, name, trial, path, iteration, score, weights_sha256, created_at,
    load, latest_checkpoint}. `load`: the line of Python that loads it; `latest_checkpoint`: the
    path of the newest checkpoint of its trial, None if that is not on storage."""
    names = ("run", "trial", "path", "iteration", "score", "weights_sha256", "created_at")
    saved = (
        select(*(checkpoints.c[name] for name in names), runs.c.name, runs.c.path.label("place"))
        .join(runs)
        .where(USABLE, runs.c.gone_at.is_(None))
        .order_by(checkpoints.c.iteration, checkpoints.c.path)
    )
    rows, newest = [], {}
    by_weights: dict[tuple[str, str], dict[str, Any]] = {}
    for found in connection.execute(saved).mappings():
        row = dict(found)
        inside, place = row["path"], row.pop("place")
        row["path"] = newest[row["run"], row["trial"]] = f"{place}/{row['trial']}/{inside}"
        by_weights[row["run"], row["weights_sha256"]] = row
        if inside in _FIXED or inside.startswith(_STAGES):
            rows.append({**row, "kind": inside.partition("/")[0].removesuffix("s")})
    rows += _exports(connection, by_weights)
    for row in rows:
        row["latest_checkpoint"] = newest.get((row["run"], row["trial"]))
        row["load"] = f"raytrain.load_policy({row['path']!r})"
    return sorted(rows, key=lambda row: (row["created_at"] or "", row["path"]), reverse=True)


def _exports(
    connection: Connection, saved: Mapping[tuple[str, str], Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """What tasks exported. `saved`: the checkpoints on storage, by run and weights."""
    columns = tasks.c.run, tasks.c.result, tasks.c.ended_at, runs.c.name
    done = select(*columns).join(runs, runs.c.id == tasks.c.run)
    for run, result, ended_at, name in connection.execute(
        done.where(tasks.c.kind == "export", tasks.c.state == "done")
    ):
        source = saved.get((run, result["weights_sha256"]), {})
        yield {
            "kind": "export",
            "run": run,
            "name": name,
            "trial": source.get("trial"),
            "path": result["path"],
            "iteration": source.get("iteration"),
            "score": source.get("score"),
            "weights_sha256": result["weights_sha256"],
            "created_at": ended_at,
        }
