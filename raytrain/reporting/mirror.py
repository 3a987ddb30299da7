"""Records of a trial whose results lie on object storage: written locally and copied there.

An object store cannot append, so the changed files are copied whole, before each checkpoint is
committed. What is mirrored: result.json, progress.csv, events.jsonl, events.out.tfevents.* and
episodes/*.parquet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pyarrow.fs as pafs

_PATTERNS = (
    "result.json",
    "progress.csv",
    "events.jsonl",
    "events.out.tfevents.*",
    "episodes/part-*.parquet",
)


class RecordsMirror:
    """Keep the record files of `directory` and of `path` on `filesystem` the same.

    On the way out new and changed files are copied before those that are gone are deleted, so that
    a crash in between leaves too much and never too little; opening the records sorts that out.
    """

    def __init__(self, directory: Path, filesystem: pafs.FileSystem, path: str) -> None:
        self._directory = directory
        self._filesystem = filesystem
        self._path = path.rstrip("/")
        self._local = pafs.LocalFileSystem()
        self._uploaded: dict[str, tuple[int, int]] = {}

    def download(self) -> list[str]:
        """Make the local files those on storage, before the records are opened. Returns the names.

        Local files that storage does not have are deleted: they belong to another attempt.
        """
        remote = self._remote()
        for name in set(self._states()) - remote:
            (self._directory / name).unlink()
        for name in sorted(remote):
            local = self._directory / name
            local.parent.mkdir(parents=True, exist_ok=True)
            pafs.copy_files(
                f"{self._path}/{name}",
                str(local),
                source_filesystem=self._filesystem,
                destination_filesystem=self._local,
            )
        self._uploaded = self._states()
        return sorted(remote)

    def upload(self) -> list[str]:
        """Copy what has changed since the last call. Returns the names. Raises OSError."""
        states = self._states()
        changed = [name for name, state in states.items() if self._uploaded.get(name) != state]
        for name in changed:
            target = f"{self._path}/{name}"
            self._filesystem.create_dir(str(PurePosixPath(target).parent), recursive=True)
            pafs.copy_files(
                str(self._directory / name),
                target,
                source_filesystem=self._local,
                destination_filesystem=self._filesystem,
            )
            # The state from before the copy: a row appended meanwhile is copied the next time.
            self._uploaded[name] = states[name]
        for name in self._uploaded.keys() - states.keys():
            self._delete(name)
            del self._uploaded[name]
        return sorted(changed)

    def _delete(self, name: str) -> None:
        try:
            self._filesystem.delete_file(f"{self._path}/{name}")
        except FileNotFoundError:
            return

    def _states(self) -> dict[str, tuple[int, int]]:
        states = {}
        for pattern in _PATTERNS:
            for path in sorted(self._directory.glob(pattern)):
                status = path.stat()
                name = path.relative_to(self._directory).as_posix()
                states[name] = (status.st_size, status.st_mtime_ns)
        return states

    def _remote(self) -> set[str]:
        return {name for folder in ("", "episodes") for name in self._listed(folder)}

    def _listed(self, folder: str) -> Iterator[str]:
        selector = pafs.FileSelector(f"{self._path}/{folder}".rstrip("/"), allow_not_found=True)
        for info in self._filesystem.get_file_info(selector):
            name = f"{folder}/{info.base_name}".lstrip("/")
            if info.is_file and any(PurePosixPath(name).match(each) for each in _PATTERNS):
                yield name
