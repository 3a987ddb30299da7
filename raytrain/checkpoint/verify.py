"""The check of a checkpoint against its manifest: by names and sizes (cheap), or by SHA-256.

A problem is a text that names files, several joined by "; ". A file that the manifest does not list
is a problem too, since RLlib would load it.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raytrain.checkpoint.commit import DamagedCheckpoint, read_manifest
from raytrain.checkpoint.manifest import (
    HALF_WRITTEN_NAME,
    INCOMPLETE_NAME,
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    ManifestError,
)
from raytrain.storage.escapes import printable
from raytrain.storage.json import LARGEST
from raytrain.storage.location import Location, in_parallel, storage_errors
from raytrain.storage.signing import signing_key

# Other errors (too many open files, no permission, an input/output error) say nothing about the
# content of the file: they are raised, and are no damage.
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


@dataclass(frozen=True)
class Checked:
    """`problem` is None if the check found nothing wrong."""

    manifest: Manifest | None
    problem: str | None
    size_bytes: int


def check(
    place: Location,
    *,
    contents: bool,
    present: Mapping[str, int] | None = None,
    known: Manifest | None = None,
) -> Checked:
    """Check the checkpoint at `place`; with `contents`, read and hash every file. Damage is
    returned, not raised; an error that kept a file from being read is raised. `present`: its files
    with their sizes, if just listed; `known`: its manifest, if it was read and has not changed."""
    if present is None:
        present = place.files()
    size = sum(present.values())
    if MANIFEST_NAME not in present:
        return Checked(None, f"no {MANIFEST_NAME}", size)
    if present[MANIFEST_NAME] > LARGEST:
        return Checked(None, f"{MANIFEST_NAME} is larger than {LARGEST:,} bytes", size)
    try:
        manifest = known or read_manifest(place)
    except ManifestError as error:
        return Checked(None, printable(f"{MANIFEST_NAME} unreadable: {error}"), size)
    except _MISSING as error:
        return Checked(None, f"{MANIFEST_NAME} unreadable: {error.strerror or error}", size)
    problems = (
        _by_size(present, manifest) if manifest.files else [f"{MANIFEST_NAME} lists no files"]
    )
    if contents:
        sized = [f for f in manifest.files if present.get(f.path) == f.size]
        results = in_parallel(lambda f: _by_contents(place, f), sized, serial=place.is_local)
        problems += [problem for problem in results if problem]
    return Checked(manifest, printable("; ".join(problems)) or None, size)


def fetch(place: Location, local_dir: Path) -> Path:
    """A local directory with the checkpoint's files, each checked by SHA-256 as it is read.

    A checkpoint on a local disk is checked in place, and its own path is returned. Any other is
    copied into `local_dir`, which must be new or empty. With signatures every checkpoint is copied:
    a file might be altered between the check and the use.

    Raises:
        DamagedCheckpoint, ManifestError, StorageError: it is damaged, or cannot be read.
    """
    with storage_errors(f"Reading the checkpoint {place.name}", place):
        if place.is_local and signing_key() is None:
            problem = check(place, contents=True).problem
            if problem:
                raise DamagedCheckpoint(place, problem)
            return place.local_path
        local_dir.mkdir(parents=True, exist_ok=True)
        if any(local_dir.iterdir()):
            raise FileExistsError(errno.EEXIST, "the directory is not empty", str(local_dir))
        manifest = read_manifest(place)
        for file in manifest.files:
            (local_dir / file.path).parent.mkdir(parents=True, exist_ok=True)

        def copy(file: FileEntry) -> str | None:
            try:
                return _difference(file, *(place / file.path).download(local_dir / file.path))
            except FileNotFoundError:
                return f"{file.path}: missing file"

        problems = [problem for problem in in_parallel(copy, manifest.files) if problem]
        if problems:
            raise DamagedCheckpoint(place, printable("; ".join(problems)))
        (local_dir / MANIFEST_NAME).write_bytes(manifest.to_json())
        return local_dir


def _by_size(present: Mapping[str, int], manifest: Manifest) -> list[str]:
    problems = []
    for file in manifest.files:
        if file.path not in present:
            problems.append(f"{file.path}: missing file")
        elif present[file.path] != file.size:
            problems.append(_size_problem(file, present[file.path]))
    listed = {f.path for f in manifest.files} | {MANIFEST_NAME, INCOMPLETE_NAME, HALF_WRITTEN_NAME}
    problems += [f"{name}: not listed in the manifest" for name in sorted(present.keys() - listed)]
    return problems


def _by_contents(place: Location, file: FileEntry) -> str | None:
    try:
        return _difference(file, *(place / file.path).digest())
    except _MISSING as error:
        return f"{file.path}: unreadable: {error.strerror or error}"


def _difference(file: FileEntry, size: int, sha256: str) -> str | None:
    if size != file.size:
        return _size_problem(file, size)
    return None if sha256 == file.sha256 else f"{file.path}: SHA-256 differs"


def _size_problem(file: FileEntry, size: int) -> str:
    return f"{file.path}: {size} bytes, manifest says {file.size}"
