"""Finding, sorting and comparing runs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.experiments import FakeRun, many

from raytrain.errors import BadInput
from raytrain.server.history.database import History
from raytrain.server.history.queries import (
    SORTABLE,
    RunQuery,
    different_values,
    storable,
)
from raytrain.server.history.run_index import id_of
from raytrain.server.history.scanner import Scanner

NAN, INF = float("nan"), float("inf")


def scanned(history: History, storage: Path) -> History:
    Scanner(history, [str(storage)], clock=lambda: 4e9).scan()
    return history


def names(history: History, **query: Any) -> list[str]:
    return [run["name"] for run in history.runs(RunQuery(**query)).runs]


@pytest.fixture
def filled(history: History, storage: Path) -> History:
    """Eight runs, one of each kind."""
    many(storage, 8)
    return scanned(history, storage)


def test_runs_come_in_pages_the_last_change_first(filled: History) -> None:
    everything = names(filled)
    assert everything == [f"run-{i:04d}" for i in range(7, -1, -1)]
    page = filled.runs(RunQuery(page=2, per_page=3))
    assert [run["name"] for run in page.runs] == everything[3:6]
    assert (page.total, page.page, page.pages) == (8, 2, 3)
    assert filled.runs(RunQuery(page=4, per_page=3)).runs == []


def test_states_are_counted_before_the_filter_for_one(filled: History) -> None:
    page = filled.runs(RunQuery(state="finished"))
    expected = {"finished": 3, "failed": 1, "interrupted": 1, "stopped": 2, "empty": 1}
    assert page.states == {**expected, "running": 0, "gone": 0}
    assert page.total == len(page.runs) == 3
    assert {run["state"] for run in page.runs} == {"finished"}


def test_gone_runs_are_a_state_of_their_own(filled: History, storage: Path) -> None:
    shutil.rmtree(storage / "run-0000")
    scanned(filled, storage)
    assert names(filled, state="gone") == ["run-0000"]
    assert "run-0000" not in names(filled, state="finished")
    assert "run-0000" not in names(filled, include_gone=False)
    assert filled.runs(RunQuery()).states["finished"] == 2


def test_a_part_of_the_name_or_path_finds_runs(filled: History) -> None:
    expected = {"0003": 1, "RUN-000": 8, "%": 0, "run_0001": 0, "lts/run-0001": 1}
    assert {q: filled.runs(RunQuery(q=q)).total for q in expected} == expected


def test_every_key_sorts_with_what_is_unknown_last(filled: History) -> None:
    for sort in [*SORTABLE, *(f"-{key}" for key in SORTABLE)]:
        runs = filled.runs(RunQuery(sort=sort)).runs
        assert len(runs) == 8
        values = [_value(run, sort.removeprefix("-")) for run in runs]
        known = [value for value in values if value is not None]
        assert values == known + [None] * (len(values) - len(known)), sort
        if not isinstance(next(iter(known), None), str):  # Their order is the database's.
            assert known == sorted(known, reverse=sort.startswith("-")), sort


def _value(run: dict[str, Any], key: str) -> Any:
    if key == "lost_s":
        return run["redone_s"] + run["away_s"]
    short = {"best_score": "best", "last_score": "last", "score_metric": "metric"}
    short["score_order"] = "order"
    return run["score"][short[key]] if key in short else run[key]


def test_what_cannot_be_asked_is_refused(history: History) -> None:
    for query, message in (
        (RunQuery(sort="config"), r"not sorted by 'config'. Keys: .*lost_s"),
        (RunQuery(state="x"), "There is no state 'x'. States: running, finished"),
        (RunQuery(page=0), "Pages begin with 1"),
        (RunQuery(per_page=100_000), "1 to 1000 runs"),
    ):
        with pytest.raises(BadInput, match=message):
            history.runs(query)


def test_a_row_has_the_keys_of_the_api(filled: History) -> None:
    row = filled.runs(RunQuery()).runs[0]
    expected = (
        "id name storage path state progress trials finished timesteps iteration episodes "
        "first_start changed_at size_bytes resume score sparkline exact exact_lost "
        "failures_survived preemptions lost_nodes redone_s away_s stage last_error writer parent "
        "gone_at"
    )
    assert set(row) == set(expected.split())


def test_the_runs_of_a_storage_add_up(filled: History) -> None:
    by_name = {run["name"]: run for run in filled.runs(RunQuery()).runs}
    survivor = by_name["run-0005"]  # Killed after 5 iterations, then taken from its node.
    assert (survivor["trials"], survivor["finished"]) == (3, 3)
    assert (survivor["failures_survived"], survivor["preemptions"]) == (4, 1)
    assert survivor["timesteps"] == 3 * 10 * 4000
    staged = by_name["run-0006"]
    assert staged["exact"] is False
    assert staged["exact_lost"] == {"why": "my_env.py changed", "since_iteration": 5}
    failed = by_name["run-0003"]
    assert failed["last_error"] == "ValueError: the simulator has lost its licence"
    assert by_name["run-0004"]["state"] == "empty" and by_name["run-0004"]["progress"] == 0.0
    assert by_name["run-0007"]["parent"]["experiment"] == "run-0006"


def test_checkpoints_are_those_of_show(history: History, storage: Path) -> None:
    run = FakeRun(storage, "cartpole", trials=2).start().train(20)
    scanned(history, storage)
    row = id_of(str(run.place), run.run_id)
    found = history.checkpoints(row)
    assert len(found) == 2 * 5
    best = next(each for each in found if each["path"] == "best")
    entry = run.entry("best")
    assert entry is not None and entry.manifest is not None
    assert best == {
        "trial": "trial_00000",
        "path": "best",
        "kind": "best",
        "iteration": entry.iteration,
        "timesteps": entry.timesteps,
        "stage": None,
        "score": entry.score,
        "size_bytes": entry.size_bytes,
        "good": None,
        "problem": None,
        "created_at": entry.manifest.created_at.replace(".000000", ""),
        "weights_sha256": entry.weights_sha256,
        "full_path": str(entry.location),
    }
    finals = history.checkpoints(row, kind="final")
    assert {each["path"] for each in finals} == {"final"}
    latest = history.checkpoints(row, latest=True)
    assert [(each["trial"], each["path"]) for each in latest] == [
        ("trial_00000", "final"),
        ("trial_00001", "final"),
    ]


def test_trials_are_those_of_show_and_in_its_order(history: History, storage: Path) -> None:
    run = FakeRun(storage, "cartpole", trials=3).start().train(5).fail("it broke", trial=1)
    scanned(history, storage)
    found = history.trials(id_of(str(run.place), run.run_id))
    assert [trial["trial"] for trial in found] == [f"trial_{i:05d}" for i in range(3)]
    assert [trial["state"] for trial in found] == ["stopped", "failed", "stopped"]
    assert found[1]["last_error"] == "it broke" and "checkpoints" not in found[1]


def test_runs_are_compared_by_config_and_curves(history: History, storage: Path) -> None:
    runs = [
        FakeRun(storage, "a", stop=6).start().train(6),
        FakeRun(storage, "b", stop=8, seed=3, training={"lr": 0.25}).start().train(8),
    ]
    scanned(history, storage)
    ids = [id_of(str(run.place), run.run_id) for run in runs]
    found = history.compare(ids)
    assert [row["id"] for row in found["runs"]] == ids
    assert found["config"] == [
        {"key": "name", "values": ["a", "b"]},
        {"key": "training.lr", "values": [5e-05, 0.25]},
        {"key": "stop.iterations", "values": [6, 8]},
    ]
    curve = found["curves"][ids[1]]["trial_00000"]
    assert curve == [[i, i * 4000.0, i * 2.0, runs[1].trials[0].score(i)] for i in range(1, 9)]
    with pytest.raises(BadInput, match="no run 'x'"):
        history.compare([ids[0], "x"])


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        ([{"a": 1}, {"a": 1}], []),
        ([{"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}}], [("a.b", [1, 3])]),
        ([{"a": {}}, {"a": {"b": None}}, {}], [("a", [{}, None, None])]),
        ([{"a": [1]}, {"b": 2}], [("a", [[1], None]), ("b", [None, 2])]),
    ],
)
def test_configs_differ_in_their_innermost_keys(
    configs: Sequence[dict[str, Any]], expected: list[tuple[str, list[Any]]]
) -> None:
    found = different_values(configs)
    assert [(each["key"], each["values"]) for each in found] == expected


def test_whatever_is_stored_can_be_stored() -> None:
    assert storable({"a": (1, NAN, -INF), 3: 2**80, "x\0": "\ud800", "e": "é\x1b\n"}) == {
        "a": [1, None, None],
        "3": 2**63 - 1,
        "x\\x00": "\\ud800",
        "e": "é\x1b\n",
    }
