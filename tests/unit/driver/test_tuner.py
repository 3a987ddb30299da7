"""What Tune's files are good for, and which trials are started."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raytrain.config import config_from_dict
from raytrain.driver.console import ConsoleReporter
from raytrain.driver.signals import Interrupts
from raytrain.driver.tune_callback import RunCallback
from raytrain.driver.tuner import ExperimentScheduler, TuneFiles
from raytrain.storage import Location, StorageError

ENDED, OPEN = "TERMINATED", "PENDING"


@pytest.mark.parametrize(
    ("statuses", "complete", "finished", "fit"),
    [
        ({"a": ENDED, "b": OPEN}, True, {"a"}, True),
        ({"a": OPEN, "b": OPEN}, True, {"a"}, True),
        # As many ended as are finished, but not the same ones.
        ({"a": ENDED, "b": OPEN}, True, {"b"}, False),
        ({"a": ENDED, "b": ENDED}, True, {"a"}, False),
        # One trial had not been made yet, or the search does not know that it has been.
        ({"a": ENDED}, True, {"a"}, False),
        ({"a": ENDED, "b": OPEN}, False, {"a"}, False),
    ],
)
def test_tunes_files_are_used_when_they_say_what_storage_says(
    statuses: dict[str, str], complete: bool, finished: set[str], fit: bool
) -> None:
    assert TuneFiles((), None, statuses, complete).fit(2, finished) is fit
    assert not TuneFiles((), "damaged", statuses, complete).fit(2, finished)


class FakeTrial:
    """As much of a trial as the scheduler looks at."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = self.trial_id = name
        self.status = "PENDING"
        place = Location.of(directory / name)
        self.storage = SimpleNamespace(storage_filesystem=place.fs, trial_fs_path=place.path)
        self.last_result: dict[str, Any] = {}
        self.checkpoints: list[str] = []

    def __str__(self) -> str:
        return self.name

    def update_last_result(self, result: dict[str, Any]) -> None:
        self.last_result = result

    def on_checkpoint(self, result: Any) -> None:
        self.checkpoints.append(result.checkpoint.path)


class FakeController:
    def __init__(self, *trials: FakeTrial) -> None:
        self._trials = trials
        self.stopped: list[str] = []

    def get_trials(self) -> tuple[FakeTrial, ...]:
        return self._trials

    def stop_trial(self, trial: FakeTrial) -> None:
        self.stopped.append(trial.name)
        trial.status = "TERMINATED"


def find_none(trial: Location) -> None:
    return None


def entry(trial: Location) -> Any:
    manifest = SimpleNamespace(metrics={"time_this_iter_s": 0.5, "score": 7.0})
    return SimpleNamespace(manifest=manifest, iteration=6, location=trial / "final")


def test_a_finished_trial_is_ended_without_being_started(tmp_path: Path) -> None:
    done, open_ = FakeTrial("done", tmp_path), FakeTrial("open", tmp_path)
    controller = FakeController(done, open_)
    scheduler = ExperimentScheduler({"done": entry(Location.of(tmp_path / "done"))}, find_none)
    assert scheduler.choose_trial_to_run(controller) is open_
    assert controller.stopped == ["done"]
    assert done.last_result["training_iteration"] == 6
    assert done.last_result["score"] == 7.0
    assert done.checkpoints == [str(tmp_path / "done" / "final")]


def test_a_trial_that_died_after_its_last_save_is_not_started_again(tmp_path: Path) -> None:
    trial = FakeTrial("trial", tmp_path)
    controller = FakeController(trial)
    asked: list[str] = []

    def find(place: Location) -> Any:
        asked.append(place.name)
        return entry(place)

    scheduler = ExperimentScheduler({}, find)
    assert scheduler.choose_trial_to_run(controller) is trial
    assert asked == [], "storage is asked only about a trial that has failed"
    scheduler.on_trial_error(controller, trial)
    assert scheduler.choose_trial_to_run(controller) is None
    assert (asked, controller.stopped) == (["trial"], ["trial"])


def test_a_trial_that_failed_is_started_if_storage_does_not_say_how_far_it_is(
    tmp_path: Path,
) -> None:
    trial = FakeTrial("trial", tmp_path)

    def find(place: Location) -> Any:
        said = f"Listing the checkpoints failed at {place}"
        raise StorageError(said, errno=errno.EIO)

    scheduler = ExperimentScheduler({}, find)
    scheduler.on_trial_error(None, trial)
    assert scheduler.choose_trial_to_run(FakeController(trial)) is trial


def test_a_store_that_does_not_answer_after_a_save_is_asked_after_the_next_one(
    tmp_path: Path,
) -> None:
    asked: list[str] = []

    class Store:
        def get_file_info(self, path: str) -> Any:
            asked.append(path)
            if len(asked) == 1:
                raise OSError("could not connect to server")
            return SimpleNamespace(type=int(path == "there"))

    known = [SimpleNamespace(checkpoint=SimpleNamespace(path=path)) for path in ("gone", "there")]
    manager = SimpleNamespace(_checkpoint_results=known)
    trial: Any = FakeTrial("trial", tmp_path)
    trial.storage.storage_filesystem = Store()
    trial.run_metadata = SimpleNamespace(checkpoint_manager=manager, invalidate_cache=lambda: None)
    config = config_from_dict(
        {"name": "run", "environment": {"env": "CartPole-v1"}, "stop": {"iterations": 1}}
    )
    watch = RunCallback(config, ConsoleReporter(), Interrupts(), lambda: None)
    watch.on_trial_save(1, [trial], trial)
    assert (asked, manager._checkpoint_results) == (["gone"], known)
    watch.on_trial_save(2, [trial], trial)
    assert [each.checkpoint.path for each in manager._checkpoint_results] == ["there"]
    asked.clear()
    watch.on_trial_save(3, [trial], trial)
    assert asked == []


def test_a_pickled_scheduler_knows_no_trial(tmp_path: Path) -> None:
    scheduler = ExperimentScheduler({"done": entry(Location.of(tmp_path / "done"))}, find_none)
    trial = FakeTrial("done", tmp_path)
    again = pickle.loads(pickle.dumps(scheduler))
    assert again.choose_trial_to_run(FakeController(trial)) is trial
