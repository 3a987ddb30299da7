"""Where a trial's time went."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

from support.experiments import BEGINNING, FakeRun

from raytrain.server.records.timeline import timeline
from raytrain.storage import Location


def spans(run: FakeRun, trial: int = 0) -> list[tuple[str, float, float]]:
    """Kind, and begin and end in seconds since the run began."""
    found = whole(run, trial)
    return [(each["kind"], each["begin"] - BEGINNING, each["end"] - BEGINNING) for each in found]


def whole(run: FakeRun, trial: int = 0) -> list[dict[str, Any]]:
    found = timeline(Location.of(run.trials[trial].place))
    for before, after in itertools.pairwise(found):
        assert before["end"] <= after["begin"]
    return found


def test_an_undisturbed_trial_trains(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, "cartpole").start().train(20)
    (span,) = whole(run)
    assert span == {
        "kind": "training",
        "begin": BEGINNING,
        "end": BEGINNING + 40,
        "text": "Attempt 1 trained iterations 1 to 20.",
    }


def test_a_failure_costs_what_was_lost_and_the_time_away(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, "cartpole").start().train(5).kill(after_s=60).start().train(15)
    assert spans(run) == [
        ("training", 0, 10),
        ("away", 10, 70),
        ("repeated", 70, 72),
        ("training", 72, 100),
    ]
    first = whole(run)[0]["text"]
    assert first == (
        "Attempt 1 trained iterations 1 to 4; the last 2 s were lost with its process."
    )


def test_a_preemption_and_a_stop(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, "cartpole").start().train(4).lose("preemption", after_s=20).train(3)
    run.interrupt().start().train(2)
    assert spans(run) == [
        ("training", 0, 8),
        ("preempted", 8, 28),
        ("training", 28, 34),
        ("away", 34, 64),
        ("training", 64, 68),
    ]
    assert whole(run)[1]["text"] == "the node 10.0.0.0 is gone"
    assert whole(run)[3]["text"] == "Stopped after saving. Nothing was trained."


def test_an_error_is_the_reason_of_the_time_after_it(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, "cartpole").start().train(4).fail("ValueError: it broke")
    run.now += 100
    run.start().train(2)
    away = whole(run)[1]
    assert (away["kind"], away["text"]) == ("away", "ValueError: it broke")


def test_an_attempt_before_its_first_iteration_is_starting(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, "cartpole").start()
    run.now += 15
    run.train(4)
    assert spans(run) == [("waiting", 0, 15), ("training", 15, 23)]


def test_attempts_without_an_iteration(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, "cartpole").start().train(5)
    for _ in range(2):
        run.kill(after_s=30).start()
    run.train(2)
    kinds = [kind for kind, _, _ in spans(run)]
    assert kinds == ["training", "away", "away", "repeated", "training"]
    assert spans(run)[-1][2] == 10 + 60 + 4


def test_all_that_was_trained_may_be_lost(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, "cartpole", every=10).start().train(5).kill(after_s=30).start().train(7)
    assert spans(run) == [
        ("training", 0, 10),
        ("away", 10, 40),
        ("repeated", 40, 50),
        ("training", 50, 54),
    ]


def test_what_is_lost_twice_is_trained_again_in_the_end(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, "cartpole", every=10).start().train(5).kill(after_s=30)
    run.start().train(2).kill(after_s=30).start().train(8)
    assert spans(run) == [
        ("training", 0, 10),
        ("away", 10, 40),
        ("repeated", 40, 44),
        ("away", 44, 74),
        ("repeated", 74, 84),
        ("training", 84, 90),
    ]


def test_a_copy_of_the_directory_has_no_times_of_attempts(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, "cartpole").start().train(4).interrupt().start().train(4)
    before = spans(run)
    for file in (run.trials[0].place / "attempts").iterdir():
        os.utime(file)
    assert spans(run) == before


def test_nothing_was_trained_yet(tmp_path: Path) -> None:
    assert whole(FakeRun(tmp_path, "cartpole").start()) == []
