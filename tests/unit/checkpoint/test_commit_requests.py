"""How many requests a commit makes, and how many of them one after the other."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pyarrow.fs as pafs
import pytest
from support.checkpoint_children import FILES, manifest, stage

from raytrain.checkpoint import BestPolicy, Catalogue, RetentionPolicy
from raytrain.checkpoint.background_commit import CommitJob, Committer
from raytrain.storage import Location
from raytrain.storage.fsspec import LeanFSSpecHandler
from raytrain.storage.location import Listed

REQUESTS = [
    "_open",
    "ls",
    "info",
    "exists",
    "isfile",
    "isdir",
    "find",
    "makedirs",
    "mkdir",
    "rm",
    "rm_file",
    "cp_file",
]
LATENCY_S = 0.02


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The requests made to the file system `file` of fsspec, each as slow as a distant store's."""
    seen: list[tuple[str, str]] = []
    inside = threading.local()
    cls = fsspec.get_filesystem_class("file")

    def wrap(name: str, method: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if getattr(inside, "request", False):
                return method(*arguments, **options)
            inside.request = True
            try:
                seen.append((name, str(arguments[1])))
                time.sleep(LATENCY_S)
                return method(*arguments, **options)
            finally:
                inside.request = False

        return call

    for name in REQUESTS:
        monkeypatch.setattr(cls, name, wrap(name, getattr(cls, name)))
    return seen


def test_a_commit_makes_few_requests(counted: list[tuple[str, str]], tmp_path: Path) -> None:
    files = fsspec.filesystem("file", skip_instance_cache=True)
    trial = Location(pafs.PyFileSystem(LeanFSSpecHandler(files)), str(tmp_path / "trial"))
    worker = Committer(trial, retention=RetentionPolicy(1), best=BestPolicy())
    made = []
    for iteration, score in ((1, 2.0), (2, 1.0), (3, 3.0)):
        counted.clear()
        staging = stage(tmp_path / f"staging{iteration}", iteration)
        name = f"checkpoint_{iteration:06d}"
        worker.submit(CommitJob(staging, name, manifest(iteration, score=score)))
        worker.drain()
        (outcome,) = worker.outcomes()
        made.append(len(counted))
        best = Catalogue(trial).entry("best")
        assert outcome.ok and best is not None and (best.iteration == iteration) == (iteration != 2)
    worker.close()
    _, plain, with_best = made
    # Each file is written once and deleted once with the checkpoint before; the rest: two listings
    # of the trial and its `best`, directories, both markers, both manifests.
    assert plain <= 2 * len(FILES) + 18
    # `best` is written and copied.
    assert with_best <= plain + 2 * len(FILES) + 18


def test_an_unchanged_manifest_is_read_once(counted: list[tuple[str, str]], tmp_path: Path) -> None:
    files = fsspec.filesystem("file", skip_instance_cache=True)
    trial = Location(pafs.PyFileSystem(LeanFSSpecHandler(files)), str(tmp_path / "trial"))
    worker = Committer(trial, retention=RetentionPolicy(9), best=None)
    for iteration in (1, 2, 3):
        staging = stage(tmp_path / f"staging{iteration}", iteration)
        worker.submit(CommitJob(staging, f"checkpoint_{iteration:06d}", manifest(iteration)))
        worker.drain()
    worker.close()
    assert [outcome.ok for outcome in worker.outcomes()] == [True] * 3
    first = str(tmp_path / "trial/checkpoint_000001/manifest.json")
    assert [path for name, path in counted if path == first] == [first] * 2  # written, read
    listed = trial.tree()["checkpoint_000001/manifest.json"]
    assert isinstance(listed, Listed) and listed.mtime_ns is not None
