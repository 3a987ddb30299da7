"""How a checkpoint comes to be and how it goes, so that neither a kill nor a writer that was replaced by
another leaves any doubt about it.

A checkpoint directory is in one of these states:

    manifest.json present                    committed (whatever else is there: the manifest wins); elsewhere
                                             than on a local disk not if .incomplete is all that is beside it
    .incomplete, no manifest.json            garbage of a crash, or being written: may be deleted
    neither                                  damage: somebody took the manifest away; never deleted

Writing (`commit`):

    local disk    `.NAME.ATTEMPT-ITERATION.incoming`: every file, hashed as it is read ─> manifest.json
                  ─> sync ─> fence() ─> rename to NAME, which fails if there is anything in NAME
    elsewhere     NAME: .incomplete ─> every file ─> fence() ─> manifest.json (atomic, last) ─> fence()
                  ─> delete the marker

Deleting (`remove_checkpoint`):

    local disk    rename to `.NAME.outgoing` (atomic, needs no space on a full disk) ──> fence() ──> delete that
    elsewhere     .incomplete ──> delete manifest.json ──> delete the rest ──> delete the marker;
                  of one that was never complete, the marker stays: a file of it that was under way may
                  still arrive, however late, and is garbage then as well

`fence` raises if this writer has been replaced by another. A writer may be stopped for any time between
the fence and what follows it, and go on when another has taken over. So what it writes has a name that
nobody else writes to, until one rename that overwrites nothing: on a local disk by the attempt in the
name of the incoming directory, elsewhere by the attempt in NAME itself (`layout.own_name`). And what it
deletes after the fence is what every later attempt, which lists the storage after that, does without.

Where a request is mostly waiting, what need not come one after the other is asked for at once: an
arrow above is one wait, however many files there are.
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

from raytrain.checkpoint.file_names import INCOMING
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
    in_parallel,
    make_directories,
    storage_errors,
    sync_directories,
    together,
)

Fence = Callable[[], None]
State = Literal["missing", "empty", "committed", "incomplete", "bare"]


def nothing() -> None:
    """No fence, or nothing to wait for."""


class CheckpointExists(StorageError):
    """The place to write to holds a checkpoint already, good or damaged."""


class DamagedCheckpoint(RaytrainError):
    """Files of a checkpoint are not what its manifest says."""

    def __init__(self, place: Location, problem: str) -> None:
        super().__init__(
            f"The checkpoint {place} is damaged: {problem}. Restore these files, or use another "
            "checkpoint (`raytrain checkpoints EXPERIMENT_DIR` lists them)."
        )
        self.problem = problem


@dataclass(frozen=True)
class Source:
    """A file to go into a checkpoint. `expected` is what a manifest says of it; `take`: it may be
    moved away.
    """

    name: str
    place: Location
    expected: FileEntry | None = None
    take: bool = False


def state_of(place: Location) -> State:
    """Elsewhere than on a local disk, directories without a file in them are nothing."""
    if place.is_local:
        names = set(place.listed())
        return state_by_names(names, local=True) if names or place.is_dir() else "missing"
    files = place.files()
    return state_by_names(files, local=False) if files else "missing"


def state_by_names(names: Collection[str], *, local: bool) -> State:
    """The state of a directory with these files in it; on a local disk directories count as well."""
    if MANIFEST_NAME in names:
        late = not local and INCOMPLETE_NAME in names and not is_complete(names)
        return "incomplete" if late else "committed"
    if INCOMPLETE_NAME in names:
        return "incomplete"
    return "bare" if names else "empty"


def is_complete(names: Collection[str]) -> bool:
    """By the names of files alone: a manifest, and what it tells of. To an object store the manifest of what has
    been cleared away may come late."""
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
    fence: Fence | None = None,
    before_manifest: Callable[[], None] = nothing,
) -> Manifest:
    """Make the files in `staging` the checkpoint `target`; the manifest with its list of files.

    `before_manifest` is called after the first fence and is done before the manifest is written:
    for what has to be on storage before the checkpoint exists. The files may be moved out of
    `staging`; the caller deletes what is left of it. When it raises (`StorageError`, or what `fence`
    or `before_manifest` raised) there is no checkpoint at `target`, and other checkpoints are as they
    were.
    """
    with storage_errors(f"Writing the checkpoint {target.name}", target):
        return write_checkpoint(staged(staging), target, manifest, fence, before_manifest)


def copy_checkpoint(source: Location, target: Location, fence: Fence) -> Manifest:
    """Make a checkpoint with the same manifest at `target`, where there must be none. Raises as `commit`, and
    `DamagedCheckpoint`."""
    with storage_errors(f"Copying {source.name} to {target.name}", target):
        manifest = read_manifest(source)
        return write_checkpoint(
            sources_of(manifest, source), target, manifest.with_files(()), fence
        )


def sources_of(manifest: Manifest, place: Location) -> list[Source]:
    """The files of a manifest, to be copied from `place` and compared with it."""
    return [Source(each.path, place / each.path, expected=each) for each in manifest.files]


def staged(staging: Path, *, take: bool = True) -> list[Source]:
    """The files below `staging`, to be moved where that is possible if they are to be taken. Refuses links
    and special files.
    """
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
    fence: Fence | None,
    before_manifest: Callable[[], None] = nothing,
    *,
    marked: bool = True,
) -> Manifest:
    """The protocol of the module's docstring. Lets `OSError` through. Without `marked` there is no
    marker (elsewhere than on a local disk), and nothing may be at `target`: for a name that is nobody's
    checkpoint until its manifest is there.
    """
    fence = fence or nothing
    manifest.with_files(()).to_json()  # a manifest that cannot be written fails before anything is
    if marked or target.is_local:
        _make_room(target, fence)
    if target.is_local:
        mark = f"{manifest.attempt}-{manifest.iteration}"
        place = target.parent / f".{target.name}.{mark}{INCOMING}"
        place.delete_tree()
    else:
        place = target
    names = [source.name for source in sources]
    entries: list[FileEntry] = []
    try:
        make_directories(place, names)
        if marked and not target.is_local:
            (place / INCOMPLETE_NAME).write_bytes(b"")
        together(
            lambda: entries.extend(_place_all(sources, place)),
            before_manifest,
            serial=target.is_local,
        )
        complete = manifest.with_files(tuple(entries))
        data = complete.to_json()
        if target.is_local:
            (place / MANIFEST_NAME).write_bytes(data)
            sync_directories(place, names)
            fence()
            rename(place, target)
        else:
            fence()
            place.write_atomic(MANIFEST_NAME, data)
    except (OSError, RaytrainError):
        with suppress(OSError):  # If this fails too, the next sweep gives back the space.
            if marked and not target.is_local:
                remove_checkpoint(place)
            else:
                place.delete_tree()
        raise
    if marked and not target.is_local:
        # The checkpoint is committed, and the marker means nothing now. It stays if another writer has taken
        # over: that one may have cleared the files away.
        with suppress(OSError, RaytrainError):
            fence()
            (place / INCOMPLETE_NAME).delete_file()
    return complete


def remove_checkpoint(place: Location, fence: Fence = nothing) -> None:
    """Delete a checkpoint, or garbage, so that a kill in between never leaves something that looks
    good or damaged. Raises what `fence` raises; on a local disk the checkpoint is in its place then.
    """
    if place.is_local:
        if not place.exists():
            return
        outgoing = place.parent / f".{place.name}.outgoing"
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
    """Give a checkpoint of this writer another manifest. Raises `StorageError`, and what `fence` raises.

    If another takes over after the fence, its checkpoints stay as they are. On a local disk the directory
    that is written to is the one that had the name before the fence, whatever has the name now.
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
    """Move a checkpoint, good or damaged, to a place that is free; elsewhere than on a local disk:
    copy, then delete.
    """
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
    """Refuse to write over a checkpoint, and clear away what a crash left of one."""
    seen: list[State] = []
    together(lambda: seen.append(state_of(target)), fence, serial=target.is_local)
    (state,) = seen
    if state == "incomplete":
        remove_checkpoint(target)
    elif state != "missing":
        raise _exists(target, state)


def _exists(target: Location, state: State) -> CheckpointExists:
    found = "a complete checkpoint" if state == "committed" else "a checkpoint without its manifest"
    return CheckpointExists(
        f"There is {found} at {target} already. It is not overwritten: move it away, or set the "
        "experiment aside with --fresh.",
        path=str(target),
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


def _place_all(sources: Sequence[Source], target: Location) -> list[FileEntry]:
    take = target.is_local
    return in_parallel(lambda s: _place(s, target / s.name, take), sources, serial=take)


def _place(source: Source, target: Location, take: bool) -> FileEntry:
    """Bring one file to its place and say what it is; checks it against what its manifest says."""
    if source.take and take:
        size, sha256 = _move(source.place, target)
    else:
        size, sha256 = source.place.copy_file(target)
    if source.expected and (size, sha256) != (source.expected.size, source.expected.sha256):
        raise DamagedCheckpoint(source.place.parent, f"{source.name}: SHA-256 or size differs")
    return FileEntry(source.name, size, sha256)


def _move(source: Location, target: Location) -> tuple[int, str]:
    """Hash, sync and rename: no byte is copied. Across devices it is a copy."""
    size, sha256 = source.digest()
    try:
        os.rename(source.path, target.path)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return source.copy_file(target)
    descriptor = os.open(target.path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return size, sha256
