"""`CheckpointSaver` with a fake directory: names, retries of an end, broken states, states
kept in memory."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.checkpoint_children import manifest

from raytrain.checkpoint import Manifest
from raytrain.config.schema import Checkpoint
from raytrain.ppo.stopping import Progress
from raytrain.storage import StorageError
from raytrain.trial.saving import REPORT, CheckpointSaver

AWAY = StorageError("Listing failed", errno=errno.EIO)


class Directory:
    """As much of a trial's directory as is asked. The first of `fails` saves fail."""

    def __init__(self, fails: int = 0) -> None:
        self.saved: list[str] = []
        self.last_saved: Manifest | None = None
        self.last_saved_name = ""
        self.marked = False
        self._fails = fails
        self._outcomes: list[Any] = []

    def has(self, name: str) -> bool:
        return name in self.saved

    def save(self, name: str, told: Manifest, write: Callable[[Path], None]) -> None:
        self.saved.append(name)
        self._fails -= 1
        failed = self._fails >= 0
        self._outcomes.append(SimpleNamespace(error=AWAY if failed else None))
        if not failed:
            self.last_saved, self.last_saved_name = told, name

    def poll(self, *, wait: bool = False) -> list[Any]:
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def mark_interrupted(self) -> None:
        self.marked = True

    def take_messages(self) -> list[str]:
        return ["Checkpoint checkpoint_000007 could not be written"]


def saver_of(directory: Any, iteration: int = 7) -> CheckpointSaver:
    def describe(kind: str, metrics: Mapping[str, Any]) -> Manifest:
        return manifest(iteration, kind=kind, metrics=dict(metrics), stage="easy")

    ppo: Any = SimpleNamespace(capture=lambda: lambda place: None)
    settings = Checkpoint(checkpoint_frequency=0, every_seconds=60.0)
    return CheckpointSaver(ppo, directory, settings, describe=describe, measure=nullcontext)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("periodic", "checkpoint_000007"),
        ("interrupted", "checkpoint_000007"),
        ("final", "final"),
        ("stage", "stages/easy"),
        ("error", "error_000007"),
    ],
)
def test_each_kind_has_its_name_and_the_metrics_of_the_result(kind: str, name: str) -> None:
    directory = Directory()
    saver = saver_of(directory)
    result = {"score": 1.0, "config": {}, "done": True, REPORT: {}}
    assert saver.save(kind, result) == 7
    assert directory.saved == [name]
    assert saver.metrics == {"score": 1.0}


def test_a_video_among_the_metrics_is_not_in_the_manifest() -> None:
    saver = saver_of(Directory())
    saver.save("periodic", {"score": 1.0, "env_runners": {"video": [np.zeros((20, 3, 40, 60))]}})
    assert saver.metrics == {
        "score": 1.0,
        "env_runners": {"video": "144,000 values, which are not recorded"},
    }


def test_an_end_is_saved_until_it_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    directory = Directory(fails=2)
    directory.last_saved = manifest(6, kind="final")  # Of the run before `stop` was raised.
    saver_of(directory).save_surely("final", {"score": 1.0})
    assert directory.saved == ["final"] * 3
    assert directory.last_saved is not None and directory.last_saved.iteration == 7


def test_a_broken_state_is_kept_once() -> None:
    directory = Directory()
    saver = saver_of(directory)
    for _ in range(2):
        said = saver.save_broken("error_000007", {})
        assert said == "The state is saved in error_000007 for inspection."
    assert directory.saved == ["error_000007"]


def test_a_broken_state_that_cannot_be_kept_hides_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = Directory(fails=1)
    said = "The state could not be saved for inspection: Listing failed"
    assert saver_of(directory).save_broken("error_000007", {}).startswith(said)

    def away(name: str) -> bool:
        raise AWAY

    monkeypatch.setattr(directory, "has", away)
    assert saver_of(directory).save_broken("error_000007", {}).startswith(said)


@pytest.mark.parametrize("fails", [0, 1])
def test_an_interrupted_state_is_saved_or_it_is_said_why_not(fails: int) -> None:
    directory = Directory(fails)
    saved, said = saver_of(directory).save_interrupted(7, {"score": 1.0})
    assert directory.saved == ["checkpoint_000007"]
    assert saved is directory.marked is (fails == 0)
    assert said == (
        "Checkpoint checkpoint_000007 could not be written"
        if fails
        else "checkpoint_000007 (iteration 7) is saved"
    )


@pytest.mark.parametrize(("seconds", "kept"), [(1.0, False), (100.0, True)])
def test_only_after_a_long_iteration_a_state_is_kept_in_memory(seconds: float, kept: bool) -> None:
    directory = Directory()
    saver = saver_of(directory)
    saver.keep({"time_this_iter_s": seconds})
    assert directory.saved == []
    assert saver.commit_kept() == ("checkpoint_000007 is saved" if kept else None)
    assert (directory.saved == ["checkpoint_000007"]) is directory.marked is kept


def test_a_checkpoint_is_due_from_the_last_one_on() -> None:
    saver = saver_of(Directory())
    before, now = Progress(6, 600, 60, 95.0), Progress(7, 700, 70, 100.0)
    assert saver.is_due(now, before)
    saver.saved_at_s = 50.0
    assert not saver.is_due(now, before)


@pytest.mark.parametrize("older", [False, True])
def test_a_kept_state_that_cannot_be_saved_leaves_older_checkpoints_alone(older: bool) -> None:
    directory = Directory(fails=1)
    directory.last_saved = manifest(6) if older else None
    saver = saver_of(directory)
    saver.keep({"time_this_iter_s": 100.0})
    assert saver.commit_kept() is None
    assert directory.saved == ["checkpoint_000007"] and not directory.marked
    assert saver.commit_kept() is None, "it is tried once"
    assert directory.saved == ["checkpoint_000007"]


def test_a_directory_that_refuses_a_kept_state_ends_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = Directory()
    saver = saver_of(directory)
    saver.keep({"time_this_iter_s": 100.0})

    def refuse() -> None:
        raise AWAY

    monkeypatch.setattr(directory, "mark_interrupted", refuse)
    assert saver.commit_kept() is None
