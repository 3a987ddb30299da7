"""How a checkpoint is written and deleted, so that neither a kill nor a writer that was replaced by
another leaves any doubt about it.

A checkpoint directory is in one of these states:

    manifest.json present             committed, whatever else is there; elsewhere than on a local
                                      disk not if .incomplete is the only other file
    .incomplete, no manifest.json     garbage of a crash, or being written: may be deleted
    neither                           damage: the manifest was removed; never deleted

Writing (`commit`):

    local disk    `.NAME.ATTEMPT-ITERATION.incoming`: every file, hashed as it is read
                  ─> manifest.json ─> sync ─> fence() ─> rename to NAME, which fails if NAME has
                  files
    elsewhere     NAME: .incomplete ─> every file ─> fence() ─> manifest.json (atomic, last)
                  ─> fence() ─> delete the marker

Deleting (`remove_checkpoint`):

    local disk    rename to `.NAME.outgoing` (atomic, needs no space on a full disk) ─> fence()
                  ─> delete that
    elsewhere     .incomplete ─> delete manifest.json ─> delete the rest ─> delete the marker;
                  the marker of one that was never complete stays: a late file of it may still
                  arrive, and is garbage then as well

`fence` raises if another writer has taken over. A writer may be stopped for any time between
the fence and the next step, and continue after another has taken over. So it writes under a
name that nobody else writes to, until one rename that overwrites nothing: on a local disk the
name of the incoming directory holds the attempt, elsewhere NAME itself does
(`file_names.own_name`). And what it deletes after the fence is not needed by any later attempt,
since those list the storage afterwards.

On a store a request is mostly waiting, so independent requests are made at once: each arrow above
is one wait, however many files there are.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raytrain.checkpoint.file_names import INCOMING, OUTGOING
from raytrain.checkpoint.manifest import (
    HALF_WRITTEN_NAME,
    INCOMPLETE_NAME,
    MANIFEST_NAME,
    FileEntry,
    Manifest,
)
from raytrain.errors import RaytrainError
from raytrain.storage.location import (
    Location,
    StorageError,
    fsync,
    in_parallel,
    make_directories,
    storage_errors,
    sync_directories,
    together,
)

Fence = Callable[[], None]
State = Literal["missing", "empty", "committed", "incomplete", "bare"]


def nothing() -> None:
    """The fence of a writer without competitors, and the default of callbacks."""


class CheckpointExists(StorageError):
    """There is a checkpoint already, good or damaged, where one was to be written."""


class DamagedCheckpoint(RaytrainError):
    """Files of a checkpoint are not what its manifest says."""

    def __init__(self, place: Location, problem: str) -> None:
        super().__init__(
            f"The checkpoint {place} is damaged: {problem}. Restore these files, or use another "
            "checkpoint (`raytrain checkpoints EXPERIMENT_DIR` lists them)."
        )


@dataclass(frozen=True)
class Source:
    """A file to put into a checkpoint. `expected`: its entry in a manifest; `take`: it
    may be moved."""

    name: str
    place: Location
    expected: FileEntry | None = None
    take: bool = False


def state_of(place: Location) -> State:
    """Directories without files exist only on a local disk."""
    if place.is_local:
        names = set(place.listed())
        return state_by_names(names, local=True) if names or place.is_dir() else "missing"
    files = place.files()
    return state_by_names(files, local=False) if files else "missing"


def state_by_names(names: Collection[str], *, local: bool) -> State:
    """The state of a directory with these files; on a local disk `names` includes directories."""
    if MANIFEST_NAME in names:
        late = not local and INCOMPLETE_NAME in names and not is_complete(names)
        return "incomplete" if late else "committed"
    if INCOMPLETE_NAME in names:
        return "incomplete"
    return "bare" if names else "empty"


def is_complete(names: Collection[str]) -> bool:
    """Whether there is a manifest, and any file that it could list: on an object store the manifest
    of a deleted checkpoint may arrive late."""
    return MANIFEST_NAME in names and not set(names) <= {MANIFEST_NAME, INCOMPLETE_NAME}


def read_manifest(place: Location) -> Manifest:
    """Raises `ManifestError`, and `OSError` if there is none."""
    file = place / MANIFEST_NAME
    return Manifest.from_json(file.read_bytes(), str(file))


def commit(
    staging: Path,
    target: Location,
    manifest: Manifest,
    *,
    fence: Fence = nothing,
    before_manifest: Callable[[], None] = nothing,
) -> Manifest:
    """Make the files in `staging` the checkpoint `target`; the manifest with its list of files.

    `before_manifest` is called after the first fence and ends before the manifest is written: for
    what must be on storage before the checkpoint exists. The files may be moved out of `staging`;
    the caller deletes the rest. Raises `StorageError`, and what `fence` or `before_manifest` raise;
    then there is no checkpoint at `target`, and other checkpoints are as they were.
    """
    with storage_errors(f"Writing the checkpoint {target.name}", target):
        return write_checkpoint(staged_files(staging), target, manifest, fence, before_manifest)


def copy_checkpoint(source: Location, target: Location, fence: Fence) -> Manifest:
    """Copy a checkpoint and its manifest to `target`, where there must be none. Raises as
    `commit`, and `DamagedCheckpoint`."""
    with storage_errors(f"Copying {source.name} to {target.name}", target):
        manifest = read_manifest(source)
        return write_checkpoint(
            sources_of(manifest, source), target, manifest.with_files(()), fence
        )


def sources_of(manifest: Manifest, place: Location) -> list[Source]:
    """The files of a manifest in `place`, to be compared with it while they are copied."""
    return [Source(file.path, place / file.path, expected=file) for file in manifest.files]


def staged_files(staging: Path, *, take: bool = True) -> list[Source]:
    """The files below `staging`; with `take` they may be moved. Refuses links and special files."""
    sources = []
    for directory, _, names in os.walk(staging):
        for name in names:
            path = Path(directory, name)
            if path.is_symlink() or not path.is_file():
                raise OSError(errno.EINVAL, "only regular files can be checkpointed", str(path))
            inside = path.relative_to(staging).as_posix()
            sources.append(Source(inside, Location.of(path), take=take))
    if not sources:
        raise OSError(errno.ENOENT, "there are no staged files to commit", str(staging))
    return sorted(sources, key=lambda source: source.name)


def write_checkpoint(
    sources: Sequence[Source],
    target: Location,
    manifest: Manifest,
    fence: Fence,
    before_manifest: Callable[[], None] = nothing,
    *,
    marked: bool = True,
) -> Manifest:
    """The protocol of the module's docstring. Raises `OSError`. Without `marked` there is no marker
    elsewhere than on a local disk, and nothing may be at `target`: for a name that counts as a
    checkpoint only once its manifest is there."""
    manifest.with_files(()).to_json()  # Fails before anything is written if it cannot be written.
    local = target.is_local
    has_marker = marked and not local
    if marked or local:
        _make_room(target, fence)
    place = target
    if local:
        mark = f"{manifest.attempt}-{manifest.iteration}"
        place = target.parent / f".{target.name}.{mark}{INCOMING}"
        place.delete_tree()
    names = [source.name for source in sources]
    entries: list[FileEntry] = []

    def copy_files() -> None:
        entries.extend(in_parallel(lambda s: _place(s, place / s.name), sources, serial=local))

    try:
        make_directories(place, names)
        if has_marker:
            (place / INCOMPLETE_NAME).write_bytes(b"")
        together(copy_files, before_manifest, serial=local)
        complete = manifest.with_files(tuple(entries))
        data = complete.to_json()
        if local:
            (place / MANIFEST_NAME).write_bytes(data)
            sync_directories(place, names)
            fence()
            rename(place, target)
        else:
            fence()
            place.write_atomic(MANIFEST_NAME, data)
    except (OSError, RaytrainError):
        with suppress(OSError):  # If this fails too, the next sweep frees the space.
            if has_marker:
                remove_checkpoint(place)
            else:
                place.delete_tree()
        raise
    if has_marker:
        # The checkpoint is committed, and the marker means nothing now. It stays if another writer
        # has taken over: that one may have deleted the files.
        with suppress(OSError, RaytrainError):
            fence()
            (place / INCOMPLETE_NAME).delete_file()
    return complete


def remove_checkpoint(place: Location, fence: Fence = nothing) -> None:
    """Delete a checkpoint, or garbage, so that a kill in between leaves nothing that looks good or
    damaged. Raises what `fence` raises; on a local disk the checkpoint is in its place then."""
    if place.is_local:
        if not place.exists():
            return
        outgoing = place.parent / f".{place.name}{OUTGOING}"
        outgoing.delete_tree()
        os.rename(place.path, outgoing.path)
        place.parent.sync()
        try:
            fence()
        except RaytrainError:  # The successor may resume from it.
            rename(outgoing, place)
            raise
        outgoing.delete_tree()
        return
    names = set(place.files())
    if names:
        (place / INCOMPLETE_NAME).write_bytes(b"")
    if MANIFEST_NAME in names:
        (place / MANIFEST_NAME).delete_file()
    rest = names - {MANIFEST_NAME, INCOMPLETE_NAME}
    in_parallel(lambda name: (place / name).delete_file(), rest)
    if is_complete(names):
        place.delete_tree()


def rewrite_manifest(place: Location, manifest: Manifest, fence: Fence) -> None:
    """Replace the manifest of this writer's checkpoint. Raises what `fence` raises, `StorageError`.

    If another writer takes over after the fence, its checkpoints stay as they are: on a local disk
    the manifest goes into the directory that had the name before the fence.
    """
    with storage_errors(f"Writing the manifest of {place.name}", place):
        if place.is_local:
            directory = os.open(place.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fence()
                _write_manifest(directory, manifest)
            finally:
                os.close(directory)
            return
        fence()
        place.write_atomic(MANIFEST_NAME, manifest.to_json())
        try:
            fence()
        except RaytrainError:
            # The successor may have deleted the checkpoint before this was written.
            if place.files().keys() == {MANIFEST_NAME}:
                (place / MANIFEST_NAME).delete_file()
            raise


def _write_manifest(directory: int, manifest: Manifest) -> None:
    """As `Location.write_atomic`, in an open directory."""
    opener = functools.partial(os.open, mode=0o666, dir_fd=directory)
    with open(HALF_WRITTEN_NAME, "wb", opener=opener) as stream:
        stream.write(manifest.to_json())
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(HALF_WRITTEN_NAME, MANIFEST_NAME, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)


def move_checkpoint(source: Location, target: Location) -> None:
    """Move a checkpoint, good or damaged, to a free place; elsewhere than on a local disk by
    copying and deleting it."""
    if source.is_local:
        source.move_tree(target)
        return
    if target.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target.path)
    names = set(source.files()) - {INCOMPLETE_NAME}
    rest = names - {MANIFEST_NAME}
    make_directories(target, rest)
    (target / INCOMPLETE_NAME).write_bytes(b"")
    in_parallel(lambda name: (source / name).duplicate(target / name), rest)
    if MANIFEST_NAME in names:
        (source / MANIFEST_NAME).duplicate(target / MANIFEST_NAME)
    (target / INCOMPLETE_NAME).delete_file()
    remove_checkpoint(source)


def _make_room(target: Location, fence: Fence) -> None:
    """Refuse to overwrite a checkpoint, and delete what a crash left of one."""
    states: list[State] = []
    together(lambda: states.append(state_of(target)), fence, serial=target.is_local)
    (state,) = states
    if state == "incomplete":
        remove_checkpoint(target)
    elif state != "missing":
        raise _exists(target, state)


def _exists(target: Location, state: State) -> CheckpointExists:
    kind = "a complete checkpoint" if state == "committed" else "a checkpoint without its manifest"
    return CheckpointExists(
        f"There is {kind} at {target} already, which is not overwritten. Move it away, or set the "
        "experiment aside with --fresh.",
        errno=errno.EEXIST,
    )


def rename(place: Location, target: Location) -> None:
    """Give a checkpoint its name, on a local disk. Raises `CheckpointExists`."""
    try:
        os.rename(place.path, target.path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise _exists(target, state_of(target)) from None
        raise
    target.parent.sync()


def _place(source: Source, target: Location) -> FileEntry:
    """Bring one file to its place; its entry for the manifest, compared with the expected one."""
    if source.take and target.is_local:
        size, sha256 = _move(source.place, target)
    else:
        size, sha256 = source.place.copy_file(target)
    if source.expected and (size, sha256) != (source.expected.size, source.expected.sha256):
        raise DamagedCheckpoint(source.place.parent, f"{source.name}: SHA-256 or size differs")
    return FileEntry(source.name, size, sha256)


def _move(source: Location, target: Location) -> tuple[int, str]:
    """Hash, rename and sync without copying a byte; across devices, copy."""
    size, sha256 = source.digest()
    try:
        os.rename(source.path, target.path)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return source.copy_file(target)
    fsync(target.path)
    return size, sha256
