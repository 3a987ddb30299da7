"""The curves of trials, read at once and bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.experiments import FakeRun

from raytrain.errors import BadInput
from raytrain.server.records.curves import SCORE, curves, thinned
from raytrain.storage import Location

ENTROPY = "learners/default_policy/entropy"
MANY = (SCORE, ENTROPY, "env_runners/episode_return_mean", "no/such/metric")


def read(run: FakeRun, since: str = "", **options: Any) -> dict[str, Any]:
    trials = [trial.place.name for trial in run.trials]
    options = {"metrics": MANY, **options}
    return curves(
        Location.of(run.place), trials, score="episode_return_mean", since=since, **options
    )


class Page:
    """What a browser has after some answers."""

    def __init__(self, run: FakeRun) -> None:
        self.run = run
        self.cursor = ""
        self.trials: dict[str, Any] = {}
        self.resets = 0

    def update(self) -> None:
        answer = read(self.run, self.cursor)
        self.cursor = answer["cursor"]
        for name, fresh in answer["trials"].items():
            self.resets += fresh["reset"]
            before = {} if fresh["reset"] else self.trials[name]["series"]
            series = {m: [*before.get(m, []), *fresh["series"][m]] for m in MANY}
            self.trials[name] = {**fresh, "series": series, "reset": True}


def test_the_curves_of_a_run(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, "cartpole", trials=2).start().train(6)
    answer = read(run)
    assert set(answer["trials"]) == {"trial_00000", "trial_00001"}
    for trial in run.trials:
        found = answer["trials"][trial.place.name]
        points = [(i, i * 4000.0, i * 2.0, trial.score(i)) for i in range(1, 7)]
        assert found["series"][SCORE] == points
        assert found["series"]["env_runners/episode_return_mean"] == points
        assert found["series"]["no/such/metric"] == []
        assert found["reset"] is True
        assert found["failures"] == found["stages"] == []
        begin = {"attempt": 1, "iteration": 0, "timesteps": 0.0, "time_s": 0.0}
        assert found["attempts"] == [begin]
    assert answer["metrics"][0] == SCORE
    assert {ENTROPY, "recent/episode_len_mean"} < set(answer["metrics"])
    assert not {"pid", "timestamp", "hostname"} & set(answer["metrics"])
    assert read(run, metrics=())["trials"]["trial_00000"]["series"].keys() == {SCORE}


def test_marks_of_attempts_failures_and_stages(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, "cartpole", stop=30).start().train(5).kill().start()
    for trial in run.trials:
        trial.stage = "easy"
    run.train(2).end_stage("easy", "hard").train(3).lose("preemption").train(1)
    found = read(run)["trials"]["trial_00000"]
    at = {i: {"iteration": i, "timesteps": i * 4000.0, "time_s": i * 2.0} for i in range(20)}
    assert found["attempts"] == [
        {"attempt": 1, **at[0]},
        {"attempt": 2, **at[4]},
        {"attempt": 3, **at[8]},
    ]
    failures = [(each["kind"], each["iteration"]) for each in found["failures"]]
    assert failures == [("recovered", 4), ("preemption", 9), ("recovered", 8)]
    assert found["stages"] == [
        {"name": "easy", "begin": at[4], "end": at[6]},
        {"name": "hard", "begin": at[6], "end": None},
    ]


def test_a_forks_curve_begins_where_its_parent_was(tmp_path: Path) -> None:
    parent = FakeRun(tmp_path, "parent").start().train(8)
    child = parent.fork("child", "checkpoint_000006").start()
    assert read(child)["trials"]["trial_00000"]["attempts"][0]["iteration"] == 6
    child.train(2)
    begin = read(child)["trials"]["trial_00000"]["attempts"][0]
    assert begin == {"attempt": 1, "iteration": 6, "timesteps": 24_000.0, "time_s": 12.0}


def test_bit_by_bit_is_the_same_as_at_once(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, "cartpole", trials=2, stop=60, every=3)
    page = Page(run)
    happens: list[Callable[[], object]] = [
        run.start,
        *[lambda: run.train(2)] * 3,
        lambda: run.train(1),
        lambda: run.end_stage("easy", "hard"),
        lambda: run.train(2),
        run.kill,
        run.start,
        lambda: run.train(1),
        lambda: run.train(7),
        lambda: run.lose("lost_node"),
        lambda: run.train(2),
        lambda: run.interrupt().start().train(5),
        lambda: run.fail("it broke"),
        lambda: run.kill().start().train(30),
    ]
    for happen in happens:
        happen()
        page.update()
        assert page.trials == read(run)["trials"]
    assert page.resets > 2
    before = page.resets
    page.update()
    assert page.resets == before and page.trials == read(run)["trials"]


def test_another_choice_of_metrics_begins_anew(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, "cartpole").start().train(6)
    cursor = read(run)["cursor"]
    found = read(run, cursor, metrics=(ENTROPY,))["trials"]["trial_00000"]
    assert found["reset"] and len(found["series"][ENTROPY]) == 6


@pytest.mark.parametrize("since", ["x", "e30=", "eJwDAAAAAAE=", "\ud800", "é" * 9, "A" * 99])
def test_what_is_no_cursor_is_refused(tmp_path: Path, since: str) -> None:
    with pytest.raises(BadInput, match="`since` is not the cursor"):
        read(FakeRun(tmp_path, "cartpole").start(), since)


def test_a_run_without_rows_has_empty_curves(tmp_path: Path) -> None:
    found = read(FakeRun(tmp_path, "cartpole").start())
    assert found["metrics"] == [SCORE]
    assert found["trials"]["trial_00000"]["series"][SCORE] == []


def test_thinning_keeps_the_extremes_and_the_order(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, "cartpole", stop=200, every=50).start().train(200)
    whole = read(run)["trials"]["trial_00000"]["series"][SCORE]
    few = read(run, points=40)["trials"]["trial_00000"]["series"][SCORE]
    assert len(few) <= 42 and set(few) <= set(whole) and few == sorted(few)
    by_value = sorted(whole, key=lambda point: point[3])
    assert {by_value[0], by_value[-1]} <= set(few)
    assert thinned(whole, 200) == whole
