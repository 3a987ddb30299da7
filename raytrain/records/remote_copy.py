"""Records of a trial whose results lie on object storage: written locally and copied there.

An object store cannot append, so the changed files are copied whole, before each checkpoint is
committed. What is mirrored: result.json, progress.csv, events.jsonl, events.out.tfevents.* and
episodes/*.parquet.

    attempts/000002.records/       the records, as the second attempt has written them; they count once
                                   its file `complete` is there
    result.json, ...               copies of them, made by the store, for everybody who reads

A writer that was replaced by another and goes on writes to its own directory and copies from there, and
its successor has deleted that. So it changes nothing that counts.

A request that was repeated since no answer came may still arrive, after later ones, and set a file in the
attempt's directory back. Before it was copied: then the copy is too short, and made anew. Or after that: files
that only grow are longer in the copy then, which goes on where they end.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from raytrain.checkpoint import ATTEMPTS, Fence
from raytrain.storage import Location, in_parallel, make_directories, storage_errors

_PATTERNS = (
    "result.json",
    "progress.csv",
    "events.jsonl",
    "events.out.tfevents.*",
    "episodes/part-*.parquet",
)


_DIRECTORY = re.compile(r"(\d+)\.records")
_COMPLETE = "complete"
_TRIES = 5


class RecordsMirror:
    """Keep the record files of `directory` and those of a trial on storage the same. `attempt`: the number
    of this one; `fence` raises if it has been replaced by another.

    On the way out new and changed files are copied before those that are gone are deleted, so that
    a crash in between leaves too much and never too little; opening the records sorts that out.
    """

    def __init__(self, directory: Path, trial: Location, attempt: int, fence: Fence) -> None:
        self._directory = directory
        self._trial = trial
        self._fence = fence
        self._own = trial / ATTEMPTS / f"{attempt:06d}.records"
        self._source = trial  # from where the records of former attempts were fetched
        self._made: set[str] = set()
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._is_first = True

    def download(self) -> list[str]:
        """Make the local files those on storage, before the records are opened. Returns the names.

        Local files that storage does not have are deleted: they belong to another attempt. Raises `StorageError`.
        """
        with storage_errors("Fetching the records", self._trial):
            return self._download()

    def _download(self) -> list[str]:
        for place in sorted(self._former(), key=lambda each: each.name, reverse=True):
            if (place / _COMPLETE).exists():
                self._source = place
                break
        remote = _sizes(self._source)
        for name in set(self._states()) - remote.keys():
            (self._directory / name).unlink()
        in_parallel(self._fetch, remote)
        self._uploaded = self._states()
        if self._source != self._trial:
            copies = _sizes(self._trial)
            longer = [name for name, size in remote.items() if copies.get(name, 0) > size]
            in_parallel(self._fetch_rest, longer)
        return list(remote)

    def upload(self) -> list[str]:
        """Copy what has changed since the last call. Returns the names. Raises OSError."""
        states = self._states()
        changed = [name for name, state in states.items() if self._uploaded.get(name) != state]
        gone = self._uploaded.keys() - states.keys()
        same = states.keys() - set(changed) if self._is_first else ()
        self._fence()
        self._make_directories(self._own, [*changed, *same])
        self._make_directories(self._trial, changed)
        in_parallel(lambda name: (self._source / name).duplicate(self._own / name), same)
        in_parallel(lambda name: self._local(name).copy_file(self._own / name), changed)
        if self._is_first:
            self._supersede()
        self._fence()  # Who takes over after this deletes what is copied from.
        self._copy_for_readers(changed, states)
        # The states from before the copy: a row appended meanwhile is copied the next time.
        self._uploaded.update({name: states[name] for name in changed})
        if gone:
            self._fence()
        in_parallel(
            lambda place: place.delete_file(),
            [p / n for p in (self._own, self._trial) for n in gone],
        )
        for name in gone:
            del self._uploaded[name]
        return sorted(changed)

    def _copy_for_readers(self, names: list[str], states: Mapping[str, tuple[int, int]]) -> None:
        """Copy these, and what else is not there in its full length."""
        for _ in range(_TRIES):
            in_parallel(lambda name: (self._own / name).duplicate(self._trial / name), names)
            there = _sizes(self._trial)
            names = [name for name, (size, _) in states.items() if there.get(name, -1) < size]
            if not names:
                return
            in_parallel(lambda name: self._local(name).copy_file(self._own / name), names)
        raise OSError(errno.EIO, f"copies are shorter than what was copied: {', '.join(names)}")

    def _supersede(self) -> None:
        """From now on this attempt's records count, and no others."""
        (self._own / _COMPLETE).write_bytes(b"")
        self._is_first = False
        self._fence()
        in_parallel(lambda place: place.delete_tree(), self._former())

    def _former(self) -> list[Location]:
        """Those of the attempts before this one. Who was replaced since the fence leaves its successor's."""
        found = [
            each for each in (self._trial / ATTEMPTS).subdirectories() if _DIRECTORY.fullmatch(each)
        ]
        return [self._trial / ATTEMPTS / each for each in found if each < self._own.name]

    def _local(self, name: str) -> Location:
        return Location.of(self._directory / name)

    def _fetch(self, name: str) -> None:
        local = self._directory / name
        local.parent.mkdir(parents=True, exist_ok=True)
        (self._source / name).download(local)

    def _fetch_rest(self, name: str) -> None:
        """Take the copy of a file if that goes on where the file ends. It counts as changed then."""
        local, copy = self._directory / name, (self._trial / name).read_bytes()
        if copy.startswith(local.read_bytes()):
            local.write_bytes(copy)

    def _make_directories(self, place: Location, names: list[str]) -> None:
        needed = {(place / name).parent.path for name in names} - self._made
        if needed:
            make_directories(place, names)
            self._made |= needed

    def _states(self) -> dict[str, tuple[int, int]]:
        states = {}
        for pattern in _PATTERNS:
            for path in sorted(self._directory.glob(pattern)):
                status = path.stat()
                name = path.relative_to(self._directory).as_posix()
                states[name] = (status.st_size, status.st_mtime_ns)
        return states


def _sizes(place: Location) -> dict[str, int]:
    """The record files below `place`, by name, in order."""
    folders = in_parallel(lambda each: (each, each.listed()), [place, place / "episodes"])
    found: dict[str, int] = {}
    for folder, listed in folders:
        start = "" if folder == place else "episodes/"
        found |= {start + name: each.size for name, each in listed.items() if not each.is_dir}
    ours = [n for n in sorted(found) if any(PurePosixPath(n).match(p) for p in _PATTERNS)]
    return {name: found[name] for name in ours}
