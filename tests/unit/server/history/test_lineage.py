"""Forks and stages, and the models that came out of runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sqlalchemy import insert
from support.experiments import FakeRun, weights

from raytrain.server.history.database import History
from raytrain.server.history.run_index import id_of
from raytrain.server.history.scanner import Scanner
from raytrain.server.history.tables import tasks


@pytest.fixture
def scanner(history: History, storage: Path) -> Scanner:
    return Scanner(history, [str(storage)], clock=lambda: 4e9)


def run_of(run: FakeRun) -> str:
    return id_of(str(run.place), run.run_id)


def drawn(history: History) -> tuple[set[str], set[tuple[str, str, str]]]:
    """Nodes as NAME@ITERATION, and edges between them."""
    graph = history.lineage()
    short = {node["id"]: f"{node['name']}@{node['iteration']}" for node in graph["nodes"]}
    assert len(short) == len(graph["nodes"])
    edges = {(short[edge["from"]], edge["kind"], short[edge["to"]]) for edge in graph["edges"]}
    assert len(edges) == len(graph["edges"])
    return set(short.values()), edges


def test_a_run_alone_is_its_newest_checkpoint(
    storage: Path, history: History, scanner: Scanner
) -> None:
    run = FakeRun(storage, "a").start().train(6)
    FakeRun(storage, "empty").start()
    scanner.scan()
    (node,) = history.lineage()["nodes"]
    assert node == {
        "id": f"{run_of(run)}/trial_00000/{weights(run.run_id, 'trial_00000', 6)[:16]}",
        "run": run_of(run),
        "name": "a",
        "trial": "trial_00000",
        "checkpoint": "checkpoint_000006",
        "iteration": 6,
        "weights_sha256": weights(run.run_id, "trial_00000", 6),
        "kind": "periodic",
    }


def test_stages_and_forks_are_a_tree(storage: Path, history: History, scanner: Scanner) -> None:
    parent = FakeRun(storage, "parent", stop=30).start().train(4).end_stage("easy", "hard")
    parent.train(4).end_stage("hard", "last")
    child = parent.fork("child", "stages/easy").start().train(6)
    grandchild = child.fork("grandchild", "checkpoint_000008").start().train(2)
    parent.train(2)
    scanner.scan()
    nodes, edges = drawn(history)
    assert nodes == {
        "parent@4", "parent@8", "parent@10", "child@8", "child@10", "grandchild@10",
    }  # fmt: skip
    expected = {
        ("parent@4", "stage", "parent@8"),
        ("parent@8", "stage", "parent@10"),
        ("parent@4", "fork", "child@8"),
        ("child@8", "stage", "child@10"),
        ("child@8", "fork", "grandchild@10"),
    }
    assert edges == expected
    assert history.parent(run_of(grandchild)) == run_of(child)
    assert history.parent(run_of(child)) == run_of(parent)
    assert history.parent(run_of(parent)) is None


def test_a_parent_that_was_moved_or_has_lost_the_checkpoint_is_the_parent(
    storage: Path, history: History, scanner: Scanner
) -> None:
    parent = FakeRun(storage, "parent").start().train(8)
    child = parent.fork("child", "checkpoint_000006").start().train(4)
    shutil.rmtree(parent.trials[0].place / "checkpoint_000006")
    shutil.rmtree(parent.trials[0].place / "best")
    scanner.scan()
    assert history.parent(run_of(child)) == run_of(parent)
    moved = FakeRun(storage, "moved").start().train(8)
    child = moved.fork("child-of-moved", "checkpoint_000006").start().train(4)
    scanner.scan()
    moved.place.rename(storage / "elsewhere")
    scanner.scan()
    assert history.parent(run_of(child)) == run_of(moved)
    _, edges = drawn(history)
    assert ("moved@6", "fork", "child-of-moved@10") in edges


def test_a_parent_that_was_never_seen_is_known_by_its_forks(
    storage: Path, history: History, scanner: Scanner
) -> None:
    parent = FakeRun(storage, "parent").start().train(8)
    child = parent.fork("child", "checkpoint_000006").start().train(4)
    child.fork("grandchild", "checkpoint_000008").start().train(2)
    parent.delete()
    child.delete()
    scanner.scan()
    nodes, edges = drawn(history)
    assert nodes == {"parent@6", "child@8", "grandchild@10"}
    assert edges == {
        ("parent@6", "fork", "child@8"),
        ("child@8", "fork", "grandchild@10"),
    }
    unknown = [node for node in history.lineage()["nodes"] if node["run"] is None]
    assert {node["kind"] for node in unknown} == {"unknown"}


def test_models_are_what_one_would_load(storage: Path, history: History, scanner: Scanner) -> None:
    old = FakeRun(storage, "old", stop=4).start().train(4)
    new = FakeRun(storage, "new", stop=9, begin=old.now + 1000).start().train(3)
    new.end_stage("easy", "hard").train(3)
    gone = FakeRun(storage, "gone", stop=4).start().train(4)
    scanner.scan()
    gone.delete()
    scanner.scan()
    place = storage / "new" / "trial_00000"
    with history.writing() as connection:
        result = {"path": "/exports/x", "weights_sha256": weights(new.run_id, "trial_00000", 3)}
        connection.execute(
            insert(tasks).values(
                id="t1", kind="export", run=run_of(new), state="done", done=1, total=1,
                message="", result=result, started_at="2027", ended_at="2027", server="x",
            )
        )  # fmt: skip
    models = history.models()
    assert [(model["kind"], model["name"]) for model in models] == [
        ("export", "new"),
        ("best", "new"),
        ("stage", "new"),
        ("final", "old"),
        ("best", "old"),
    ]
    export, best, stage, _, _ = models
    assert stage == {
        "kind": "stage",
        "run": run_of(new),
        "name": "new",
        "trial": "trial_00000",
        "path": f"{place}/stages/easy",
        "iteration": 3,
        "score": new.trials[0].score(3),
        "weights_sha256": weights(new.run_id, "trial_00000", 3),
        "created_at": "2026-05-28T20:43:34+00:00",
        "load": f"raytrain.load_policy('{place}/stages/easy')",
        "latest_checkpoint": f"{place}/checkpoint_000006",
    }
    assert best["path"] == f"{place}/best"
    assert (export["path"], export["iteration"]) == ("/exports/x", 3)
    assert export["latest_checkpoint"] == f"{place}/checkpoint_000006"
