"""What tells, without reading a file, whether an experiment has changed since it was read.

A stamp is a digest of the names, sizes and times of change of the files that `raytrain show` reads,
on a local disk with their inodes:

    experiment.json
    TRIAL/                    its entries: checkpoints, result.json, events.jsonl, losses.json, ...
    TRIAL/stages, quarantine  their entries

On a local disk the files inside a checkpoint are not looked at: they change with the checkpoint. If
somebody damages one, `raytrain history rebuild` sees it. On other storage one listing has all.

The locks have a stamp of their own, since a lease is written every ten seconds.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from raytrain.checkpoint.experiment_file import EXPERIMENT_FILE
from raytrain.checkpoint.file_names import ATTEMPTS, QUARANTINE, STAGES
from raytrain.checkpoint.lineage import FORKED_FROM, SET_ASIDE
from raytrain.storage import Location, storage_errors
from raytrain.storage.lock import LOCK_NAME

_NO_TRIALS = frozenset({FORKED_FROM, SET_ASIDE, "code"})
# Of a trial: what `raytrain show` does not read.
_NOT_READ = frozenset({"progress.csv", "episodes", ATTEMPTS, SET_ASIDE, "superseded"})
_EVENTS = "events.out.tfevents"
_HOLDERS = (STAGES, QUARANTINE)

Entry = tuple[str, int, int, int]
"""Path relative to the experiment, size, time of the last change in nanoseconds, inode."""


@dataclass(frozen=True)
class Stamps:
    """`newest_ns`: the latest change of any of the files, in nanoseconds since 1970."""

    files: str
    locks: str
    newest_ns: int

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Stamps:
        files: list[Entry] = []
        locks: list[Entry] = []
        for entry in entries:
            (locks if entry[0].endswith(LOCK_NAME) else files).append(entry)
        newest = max((entry[2] for entry in [*files, *locks]), default=0)
        return cls(_digest(files), _digest(locks), newest)


def _digest(entries: list[Entry]) -> str:
    text = repr(sorted(entries)).encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=12).hexdigest()


def experiments(storage: Location) -> dict[str, Stamps]:
    """The experiments directly in a directory, by name. Raises `StorageError`."""
    with storage_errors("Listing the experiments", storage):
        if storage.is_local:
            return dict(_on_disk(storage.path))
        return _in_one_listing(storage)


def _on_disk(storage: str) -> Iterator[tuple[str, Stamps]]:
    for entry in _entries(storage):
        if not entry.is_dir():
            continue
        try:
            found = list(_of_experiment(entry.path))
        except OSError:  # Reading it will fail, too, and say why.
            found = [(EXPERIMENT_FILE, 0, 0, 0)]
        if found:
            yield entry.name, Stamps.of(found)


def _of_experiment(place: str) -> Iterator[Entry]:
    """Nothing if it has no experiment.json."""
    inside = list(_entries(place))
    if not any(entry.name == EXPERIMENT_FILE for entry in inside):
        return
    for entry in inside:
        if entry.name in (EXPERIMENT_FILE, LOCK_NAME):
            yield from _stamped(entry, entry.name)
        elif entry.name not in _NO_TRIALS and entry.is_dir():
            yield from _of_trial(entry.path, entry.name)


def _of_trial(place: str, name: str) -> Iterator[Entry]:
    for entry in _entries(place):
        if entry.name in _NOT_READ or entry.name.startswith(_EVENTS):
            continue
        path = f"{name}/{entry.name}"
        yield from _stamped(entry, path)
        if entry.name in _HOLDERS:
            for inner in _entries(entry.path):
                yield from _stamped(inner, f"{path}/{inner.name}")


def _entries(place: str) -> Iterator[os.DirEntry[str]]:
    """Without hidden ones, which are on their way, except for the lock."""
    try:
        with os.scandir(place) as found:
            for entry in found:
                if entry.name[0] != "." or entry.name == LOCK_NAME:
                    yield entry
    except (FileNotFoundError, NotADirectoryError):
        return  # It was deleted, or moved, since it was listed.


def _stamped(entry: os.DirEntry[str], path: str) -> Iterator[Entry]:
    try:
        status = entry.stat()
    except FileNotFoundError:  # Deleted since; a link to nothing.
        return
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    yield path, size, status.st_mtime_ns, status.st_ino


def _in_one_listing(storage: Location) -> dict[str, Stamps]:
    found: dict[str, list[Entry]] = {}
    with_file = set()
    for path, listed in storage.tree().items():
        name, _, inside = path.partition("/")
        if listed.is_dir or not inside or name.startswith("."):
            continue
        if inside == EXPERIMENT_FILE:
            with_file.add(name)
        if _is_read(inside.split("/")):
            entry = inside, listed.size, listed.mtime_ns or 0, 0
            found.setdefault(name, []).append(entry)
    return {name: Stamps.of(found[name]) for name in sorted(with_file)}


def _is_read(parts: list[str]) -> bool:
    if len(parts) == 1:
        return parts[0] in (EXPERIMENT_FILE, LOCK_NAME)
    first, second = parts[0], parts[1]
    if first in _NO_TRIALS or second in _NOT_READ or second.startswith(_EVENTS):
        return False
    return not first.startswith(".") and (second == LOCK_NAME or not second.startswith("."))
