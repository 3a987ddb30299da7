"""Records of a trial whose results are on object storage: written locally and copied there.

An object store cannot append, so changed files are copied whole, before each checkpoint is
committed.

    attempts/000002.records/       the records as the second attempt has written them; they count
                                   once its file `complete` exists
    result.json, ...               copies of them, made by the store, for readers

A writer that was replaced and is still running writes to its own directory and copies from there.
Its successor has deleted that directory, so it changes nothing that counts.

A request that was repeated because no answer came may still arrive after later ones, and set a file
in the attempt's directory back. If it arrives before the file was copied for readers, the copy is
too short and is made again. If it arrives after that, the copy of a file that only grows is longer
than the file, and the next attempt takes the rest from the copy.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from raytrain.checkpoint.commit import Fence
from raytrain.checkpoint.file_names import ATTEMPTS
from raytrain.records.event_log import EVENT_LOG
from raytrain.records.row_files import ROW_FILES
from raytrain.storage import Location, in_parallel, make_directories, storage_errors

_PATTERNS = (*ROW_FILES, EVENT_LOG, "episodes/part-*.parquet")
_DIRECTORY = re.compile(r"(\d+)\.records")
_COMPLETE = "complete"
_TRIES = 5


class RecordsMirror:
    """Keep the record files of `directory` and those of a trial on storage the same.

    `fence` raises if another attempt has replaced this one, number `attempt`. An upload copies new
    and changed files before it deletes removed ones, so a crash in between leaves too much and
    never too little; opening the records cuts the rest.
    """

    def __init__(self, directory: Path, trial: Location, attempt: int, fence: Fence) -> None:
        self._directory = directory
        self._trial = trial
        self._fence = fence
        self._own = trial / ATTEMPTS / f"{attempt:06d}.records"
        self._source = trial  # where the records of former attempts were downloaded from
        self._made: set[str] = set()
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._is_first = True

    def download(self) -> list[str]:
        """Replace the local files by those on storage, before the records are opened.

        Local files that storage does not have are deleted: they belong to another attempt. Returns
        the names of the files. Raises `StorageError`.
        """
        with storage_errors("Fetching the records", self._trial):
            complete = [place for place in self._former() if (place / _COMPLETE).exists()]
            self._source = max(complete, key=lambda place: place.name, default=self._trial)
            remote = _sizes(self._source)
            for name in self._states().keys() - remote.keys():
                (self._directory / name).unlink()
            in_parallel(self._fetch, remote)
            self._uploaded = self._states()
            if complete:
                copies = _sizes(self._trial)
                longer = [name for name, size in remote.items() if copies.get(name, 0) > size]
                in_parallel(self._fetch_rest, longer)
            return list(remote)

    def upload(self) -> list[str]:
        """Copy files that changed since the last call. Returns their names. Raises OSError."""
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
        self._fence()  # An attempt that takes over after this deletes the source of the copies.
        self._copy_for_readers(changed, states)
        # The states from before the copy: a row appended meanwhile is copied the next time.
        self._uploaded.update({name: states[name] for name in changed})
        if gone:
            self._fence()
        in_parallel(
            Location.delete_file,
            [place / name for place in (self._own, self._trial) for name in gone],
        )
        for name in gone:
            del self._uploaded[name]
        return sorted(changed)

    def _copy_for_readers(self, names: list[str], states: Mapping[str, tuple[int, int]]) -> None:
        """Copy these files, and any other whose copy is missing or too short."""
        for _ in range(_TRIES):
            in_parallel(lambda name: (self._own / name).duplicate(self._trial / name), names)
            there = _sizes(self._trial)
            names = [name for name, (size, _) in states.items() if there.get(name, -1) < size]
            if not names:
                return
            in_parallel(lambda name: self._local(name).copy_file(self._own / name), names)
        raise OSError(errno.EIO, f"copies are shorter than what was copied: {', '.join(names)}")

    def _supersede(self) -> None:
        """Make this attempt's records the ones that count."""
        (self._own / _COMPLETE).write_bytes(b"")
        self._is_first = False
        self._fence()
        in_parallel(Location.delete_tree, self._former())

    def _former(self) -> list[Location]:
        """The directories of earlier attempts, and none of a later one that may have taken over."""
        attempts = self._trial / ATTEMPTS
        names = [name for name in attempts.subdirectories() if _DIRECTORY.fullmatch(name)]
        return [attempts / name for name in names if name < self._own.name]

    def _local(self, name: str) -> Location:
        return Location.of(self._directory / name)

    def _fetch(self, name: str) -> None:
        local = self._directory / name
        local.parent.mkdir(parents=True, exist_ok=True)
        (self._source / name).download(local)

    def _fetch_rest(self, name: str) -> None:
        """Replace a local file by its copy if that continues it; it then counts as changed."""
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
    top, episodes = in_parallel(Location.listed, [place, place / "episodes"])
    entries = top | {f"episodes/{name}": entry for name, entry in episodes.items()}
    return {
        name: entries[name].size
        for name in sorted(entries)
        if not entries[name].is_dir and any(PurePosixPath(name).match(p) for p in _PATTERNS)
    }
