"""Attempts of one trial that follow each other: what each has recorded and saved, and how
it must end."""

from __future__ import annotations

import contextlib
import json
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from raytrain.checkpoint import BestPolicy, Catalogue, Entry, RetentionPolicy
from raytrain.records import read_episodes
from raytrain.storage import Location
from raytrain.trial.directory import TrialDirectory
from support.checkpoint_children import manifest
from support.interleaving import an_empty_store

# Scores of the iterations, the same for each attempt: training is exact. 9 is the best there will
# be.
SCORES = {2: 5.0, 4: 9.0, 6: 7.0, 8: 6.0}
STORAGE = pytest.mark.parametrize("on_store", [False, True], ids=["disk", "store"])

OPEN: list[TrialDirectory] = []
"""Directories of attempts, each with files and a lock of its own; a process that ends
gives them back."""


@dataclass
class Attempt:
    """One process, on a node that the others think gone. `saved`: the iterations that it was
    told are saved."""

    where: Location
    saved: list[int] = field(default_factory=list)
    best: BestPolicy = field(default_factory=BestPolicy)
    further: dict[int, dict[str, float]] = field(default_factory=dict)  # Columns of some rows.

    def open(self) -> int:
        """The iteration from which it goes on."""
        self.directory = TrialDirectory(
            self.where,
            retention=RetentionPolicy(1),
            best=self.best,
            max_failed_saves=0,
            node="any",
            node_is_gone=lambda node: True,
        )
        OPEN.append(self.directory)
        entry = self.directory.open()
        begun = entry.iteration if entry else 0
        self.directory.open_records(resume_from=begun, next_episode=begun)
        return begun

    @property
    def number(self) -> int:
        """0 before it is counted."""
        return self.directory.attempt if hasattr(self, "directory") else 0

    def train(self, after: int, last: int) -> None:
        for iteration in range(after + 1, last + 1):
            row: dict[str, Any] = {"training_iteration": iteration, "by": self.directory.attempt}
            row |= self.further.get(iteration, {})
            episode = {"group": 0, "env_index": 0, "return": 1.0, "length": iteration}
            self.directory.record(row, [episode], iteration * 10)
            if iteration in SCORES:
                self.save(f"checkpoint_{iteration:06d}", iteration)

    def save(self, name: str, iteration: int) -> None:
        told = manifest(
            iteration,
            attempt=self.directory.attempt,
            score=SCORES.get(iteration),
            kind="final" if name == "final" else "periodic",
        )
        self.directory.save(name, told, partial(self.write, iteration))
        for outcome in self.directory.poll(wait=True):
            assert outcome.ok, outcome.error
            self.saved.append(iteration)

    def write(self, iteration: int, staging: Path) -> None:
        (staging / "state").write_text(state(iteration, self.directory.attempt))
        (staging / "more").mkdir()
        (staging / "more" / "state").write_text("more")

    def to_the_end(self) -> None:
        self.train(self.open(), 8)
        self.save("final", 8)
        self.directory.close()


def state(iteration: int, attempt: int) -> str:
    """Of another length for each iteration, as real ones are."""
    return f"state{'!' * iteration}, by attempt {attempt}"


def spoil(file: Location) -> None:
    """Another content of the same size."""
    content = file.read_bytes()
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def assert_ended_well(where: Location) -> None:
    """Every checkpoint is good to the last byte, best is the best, and each iteration
    was recorded once."""
    entries = {entry.path: entry for entry in Catalogue(where).entries(verify=True)}
    assert [entry.problem for entry in entries.values()] == [None] * len(entries)
    assert entries["final"].iteration == 8
    assert (entries["best"].iteration, entries["best"].score) == (4, 9.0)
    assert {entry.path: inside(entry) for entry in entries.values()} == {
        entry.path: {
            "more/state": "more",
            "state": state(entry.iteration, entry.manifest.attempt),
        }
        for entry in entries.values()
        if entry.manifest is not None
    }
    each_once = list(range(1, 9))
    lines = (where / "result.json").read_bytes().splitlines()
    assert [json.loads(line)["training_iteration"] for line in lines] == each_once
    rows = (where / "progress.csv").read_bytes().decode().splitlines()
    assert [int(row.split(",")[0]) for row in rows[1:]] == each_once
    assert episodes(where) == each_once


def inside(entry: Entry) -> dict[str, str]:
    """The content of a checkpoint's files."""
    assert entry.manifest is not None
    names = [each.path for each in entry.manifest.files]
    return {name: (entry.location / name).read_bytes().decode() for name in names}


def episodes(where: Location) -> list[int]:
    """The iterations of all episodes, of which each has one."""
    with tempfile.TemporaryDirectory() as directory:
        (where / "episodes").copy_tree(Location.of(f"{directory}/episodes"))
        found: list[int] = read_episodes(Path(directory))["iteration"].to_pylist()
    return found


def end_of_all() -> None:
    """Each process of the last case has ended."""
    while OPEN:
        with contextlib.suppress(Exception):
            OPEN.pop().close()


def seeded(path: Path, on_store: bool) -> tuple[Location, Attempt]:
    """A trial whose first attempt has saved iteration 2."""
    end_of_all()
    where = an_empty_store() / "trial" if on_store else Location.of(path)
    first = Attempt(where)
    first.train(first.open(), 3)
    return where, first
