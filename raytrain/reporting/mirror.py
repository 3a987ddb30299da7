"""Records of a trial whose results lie on object storage: written locally and copied there.

An object store cannot append, so the changed files are copied whole, before each checkpoint is
committed. What is mirrored: result.json, progress.csv, events.jsonl, events.out.tfevents.* and
episodes/*.parquet.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from raytrain.checkpoint import Location, in_parallel, make_directories

_PATTERNS = (
    "result.json",
    "progress.csv",
    "events.jsonl",
    "events.out.tfevents.*",
    "episodes/part-*.parquet",
)


class RecordsMirror:
    """Keep the record files of `directory` and of `place` on storage the same.

    On the way out new and changed files are copied before those that are gone are deleted, so that
    a crash in between leaves too much and never too little; opening the records sorts that out.
    """

    def __init__(self, directory: Path, place: Location) -> None:
        self._directory = directory
        self._place = place
        self._made: set[str] = set()
        self._uploaded: dict[str, tuple[int, int]] = {}

    def download(self) -> list[str]:
        """Make the local files those on storage, before the records are opened. Returns the names.

        Local files that storage does not have are deleted: they belong to another attempt.
        """
        remote = self._remote()
        for name in set(self._states()) - remote:
            (self._directory / name).unlink()
        in_parallel(self._fetch, sorted(remote))
        self._uploaded = self._states()
        return sorted(remote)

    def upload(self) -> list[str]:
        """Copy what has changed since the last call. Returns the names. Raises OSError."""
        states = self._states()
        changed = [name for name, state in states.items() if self._uploaded.get(name) != state]
        self._make_directories(changed)
        in_parallel(self._send, changed)
        # The states from before the copy: a row appended meanwhile is copied the next time.
        self._uploaded.update({name: states[name] for name in changed})
        gone = self._uploaded.keys() - states.keys()
        in_parallel(lambda name: (self._place / name).delete_file(), gone)
        for name in gone:
            del self._uploaded[name]
        return sorted(changed)

    def _fetch(self, name: str) -> None:
        local = self._directory / name
        local.parent.mkdir(parents=True, exist_ok=True)
        (self._place / name).download(local)

    def _send(self, name: str) -> None:
        Location.of(self._directory / name).copy_file(self._place / name)

    def _make_directories(self, names: list[str]) -> None:
        needed = {(self._place / name).parent.path for name in names} - self._made
        if needed:
            make_directories(self._place, names)
            self._made |= needed

    def _states(self) -> dict[str, tuple[int, int]]:
        states = {}
        for pattern in _PATTERNS:
            for path in sorted(self._directory.glob(pattern)):
                status = path.stat()
                name = path.relative_to(self._directory).as_posix()
                states[name] = (status.st_size, status.st_mtime_ns)
        return states

    def _remote(self) -> set[str]:
        folders = in_parallel(
            lambda place: (place, place.listed()), [self._place, self._place / "episodes"]
        )
        found = set()
        for place, listed in folders:
            start = "" if place == self._place else "episodes/"
            found |= {start + name for name, each in listed.items() if not each.is_dir}
        return {name for name in found if any(PurePosixPath(name).match(p) for p in _PATTERNS)}
