"""Replacing a checkpoint that has a fixed name (`best`, `final`, a stage) by another one.

    1. ORIGINAL   NAME.ATTEMPT-NUMBER.new is written in full and committed with its own manifest
    2. local disk:  NAME ─> NAME.ATTEMPT-NUMBER.old (rename)  ─>  ORIGINAL ─> NAME (rename)
                    ─> fence() ─> delete what was replaced
       elsewhere:   fence() ─> delete the older originals ─> copy the files of ORIGINAL over those
                    of NAME, the manifest last

ATTEMPT is that of the writer, and NUMBER is higher than that of whatever it replaces; both are in
the manifest (`replacement`). So a former checkpoint never passes for newer than its replacement,
though it may be of a later iteration, and no two writers use one name.

Elsewhere than on a local disk the original stays. It is the checkpoint, since only its writer ever
writes to it, and NAME is a copy for programs that do not know this protocol. A writer that was
stopped in the middle, and continues after another has taken over, spoils that copy at most, until
the next replacement.

At every point NAME or one of NAME.*.new, NAME.*.old is a committed checkpoint, and the one with the
highest attempt and number counts. `repair` brings it into its place. No rename overwrites anything,
and what is deleted is older than what counts. Files are copied, never hard-linked: damage to one
must not spread to another.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from raytrain.checkpoint.commit import (
    CheckpointExists,
    Fence,
    Source,
    is_complete,
    move_checkpoint,
    nothing,
    read_manifest,
    remove_checkpoint,
    rename,
    sources_of,
    staged_files,
    state_by_names,
    write_checkpoint,
)
from raytrain.checkpoint.file_names import (
    NEW,
    OLD,
    OUTGOING,
    QUARANTINE,
    by_directory,
    file_sizes,
    has_fixed_name,
    is_passing_name,
    numbered,
    order_of,
    split,
    taken_from,
    target_of,
    versions_of,
    way_aside,
)
from raytrain.checkpoint.manifest import (
    HALF_WRITTEN_NAME,
    INCOMPLETE_NAME,
    MANIFEST_NAME,
    Manifest,
    ManifestError,
)
from raytrain.checkpoint.verify import check
from raytrain.storage.location import (
    Listed,
    Location,
    make_directories,
    storage_errors,
    together,
    with_numbers,
)

_TRIED: dict[Location, int] = {}
"""The last number that this process used for a replacement, by its target."""

Listing = dict[str, dict[str, Listed]]
"""The content of each directory of a trial that may hold a checkpoint (`by_directory`)."""


def replace(
    source: Location,
    target: Location,
    *,
    kind: str,
    fence: Fence = nothing,
    files: Location | None = None,
    manifest: Manifest | None = None,
    attempt: int | None = None,
) -> Manifest:
    """Make `target` a full copy of the checkpoint `source`, with the manifest's kind set to `kind`.

    `files` is a nearer place with the same files (the staging directory), if there is one, and
    `manifest` that of the source, if it is known. `attempt` is that of the writer, if it is not the
    source's. The files are compared with the manifest while they are read.

    Raises:
        DamagedCheckpoint: they differ; `target` stays as it was.
        ManifestError, StorageError: the source cannot be read, or the target not be written.
    """
    with storage_errors(f"Copying {source.name} to {target.name}", target):
        manifest = manifest or read_manifest(source)
        sources = sources_of(manifest, files or source)
        written = manifest.with_files((), kind=kind)
        return _write_and_swap(sources, target, written, fence, attempt=attempt)


def commit_replacing(
    staging: Path,
    target: Location,
    manifest: Manifest,
    *,
    fence: Fence = nothing,
    before_manifest: Callable[[], None] = nothing,
    take: bool = True,
) -> Manifest:
    """As `commit`, but replace what is at `target` once the new checkpoint is complete. With `take`
    False the staged files stay."""
    with storage_errors(f"Writing the checkpoint {target.name}", target):
        sources = staged_files(staging, take=take)
        return _write_and_swap(sources, target, manifest, fence, before_manifest=before_manifest)


def sweep(trial: Location, fence: Fence = nothing) -> list[str]:
    """Repair what crashes left in a trial directory; the names of what was deleted.

    To be called before the first commit of a process, never during a commit. Deletes only what
    never was a checkpoint, or was given up already. `fence` is called after the storage was listed.
    """
    with storage_errors("Deleting what a crash left", trial):
        listing = by_directory(trial)
        fence()
        if bring_back(trial, listing):
            listing = by_directory(trial)
        swept = [path for path, names in listing.items() if _sweep(trial, path, names)]
        for name in sorted({name for path in listing if (name := target_of(path))}):
            _repair(trial, name, listing, fence)
    return swept


def _sweep(trial: Location, path: str, names: dict[str, Listed]) -> bool:
    """Repair or delete one directory, if it needs that; whether it was deleted."""
    place, local, files = trial / path, trial.is_local, file_sizes(names)
    state = state_by_names(names if local else files, local=local)
    is_evidence = local or path.startswith(f"{QUARANTINE}/")
    if is_passing_name(path.rpartition("/")[2]):
        if _put_back(trial, path, names):
            return False
        _delete_whole(place)
        return True
    if state == "incomplete":
        if is_evidence and not local:  # The marker arrived late.
            (place / INCOMPLETE_NAME).delete_file()
            return False
        if target_of(path) or (not local and files.keys() == {INCOMPLETE_NAME}):
            return False  # `_repair` decides; or the marker stays, see `remove_checkpoint`.
        remove_checkpoint(place)
        return True
    if state == "committed" and INCOMPLETE_NAME in names:
        if not is_evidence and _lacks_files(place, files):
            # The manifest arrived after a start, which was killed, had deleted some files.
            remove_checkpoint(place)
            return True
        # A kill between the manifest and the removal of the marker leaves both.
        (place / INCOMPLETE_NAME).delete_file()
    if state == "committed" and HALF_WRITTEN_NAME in names:
        (place / HALF_WRITTEN_NAME).delete_file()
    return False


def _put_back(trial: Location, path: str, names: dict[str, Listed]) -> bool:
    """On a local disk: give a checkpoint its name back if a kill left it on its way out before any
    of it was deleted: all newer ones may be damaged. Whether it was one, and its name was free."""
    name = path.removeprefix(".").removesuffix(OUTGOING)
    if not (path.endswith(OUTGOING) and numbered(name) and _is_whole(trial / path, names)):
        return False
    with suppress(CheckpointExists, FileNotFoundError):
        rename(trial / path, trial / name)
        return True
    return False


def _delete_whole(place: Location) -> None:
    """Delete a directory on its way in or out. On a local disk its writer may be about to rename
    it, and gets all of it or nothing."""
    if not place.is_local:
        place.delete_tree()
        return
    doomed = place.parent / f".{uuid.uuid4().hex}{OUTGOING}"
    with suppress(FileNotFoundError):
        os.rename(place.path, doomed.path)
    doomed.delete_tree()


def repair(trial: Location, name: str, fence: Fence = nothing) -> None:
    """Finish or undo an interrupted replacement of the checkpoint `name`."""
    with storage_errors(f"Repairing an interrupted replacement of {name}", trial):
        listing = by_directory(trial)
        fence()
        _repair(trial, name, listing, fence)


def take_down(place: Location) -> None:
    """Delete the copy of an original that is about to be deleted or moved itself."""
    trial, path = split(place)
    name = target_of(path)
    if name and not place.is_local:
        remove_checkpoint(trial / name)


def set_aside(
    trial: Location,
    place: Location,
    directory: str,
    name: str,
    *,
    is_meant: Callable[[Location], bool] = lambda place: True,
    fence: Fence = nothing,
) -> Location:
    """Move `place` as it is into a directory of the trial, under `name`, with a number if the name
    is taken; its new place. To be called after the fence.

    On a local disk another writer may have put something else there meanwhile. If it is not what
    `is_meant`, it goes back: raises what `fence` raises, or `CheckpointExists`, after which the
    caller looks again. After a kill in between, `bring_back` undoes the move.
    """
    was_in = place
    if place.is_local:
        place = was_in.parent / way_aside(was_in.name)
        rename(was_in, place)
        if not is_meant(place):
            rename(place, was_in)
            fence()
            raise CheckpointExists(
                f"{was_in} was replaced while it was being read.", errno=errno.EEXIST
            )
    target = (trial / directory).first_free(with_numbers(name))
    move_checkpoint(place, target)
    return target


def bring_back(trial: Location, directories: Iterable[str]) -> bool:
    """On a local disk: put back the directories that a kill left on their way aside, or into the
    quarantine if another has the name. Whether there were any."""
    lost = {path: name for path in directories if (name := taken_from(path))}
    for path, name in lost.items():
        with suppress(FileNotFoundError):  # The process that moves it is alive, and moved it on.
            try:
                rename(trial / path, trial / name)
            except CheckpointExists:
                set_aside(trial, trial / path, QUARANTINE, name.replace("/", "_"))
    return bool(lost)


def _write_and_swap(
    sources: Sequence[Source],
    target: Location,
    manifest: Manifest,
    fence: Fence,
    *,
    before_manifest: Callable[[], None] = nothing,
    attempt: int | None = None,
) -> Manifest:
    trial, name = split(target)
    listing = by_directory(trial)
    fence()
    if trial.is_local:
        _repair(trial, name, listing, fence)
    there = [_order(target), *(order_of(path)[:2] for path in versions_of(name, listing))]
    # A number is not used again after a failure: a file of that try may still arrive.
    number = 1 + max(0, _TRIED.get(target, 0), *(n for _, n in there))
    _TRIED[target] = number
    order = (manifest.attempt if attempt is None else attempt, number)
    new = _free(name, order, NEW, listing)
    manifest = dataclasses.replace(manifest, replacement=order)
    complete = write_checkpoint(
        sources, trial / new, manifest, fence, before_manifest, marked=False
    )
    fence()
    if trial.is_local:
        _rename_into_place(trial, new, name, fence)
    else:
        together(*(partial(_discard, trial, old, listing) for old in versions_of(name, listing)))
        _copy_into_place(trial / new, target, [file.path for file in complete.files])
        if not has_fixed_name(name):  # No reader looks for its original.
            (trial / new).delete_tree()
    return complete


def _repair(trial: Location, name: str, listing: Listing, fence: Fence) -> None:
    complete = []
    for path in versions_of(name, listing):
        if is_complete(file_sizes(listing[path])):
            complete.append(path)
        else:
            _discard(trial, path, listing)
    if not complete:
        return
    # Files of the newest may have been deleted before its manifest arrived.
    newest = max(
        complete, key=lambda path: (_is_whole(trial / path, listing[path]), order_of(path))
    )
    in_place = _order(trial / name) >= order_of(newest)[:2]
    if trial.is_local:
        # Read again: it may have been replaced since the listing.
        if in_place and not _is_whole(trial / name, (trial / name).tree()):
            set_aside(
                trial,
                trial / name,
                QUARANTINE,
                name.replace("/", "_"),
                is_meant=lambda place: not _is_whole(place, place.tree()),
                fence=fence,
            )
            in_place = False
        if not in_place:
            _rename_into_place(trial, newest, name, fence)
        gone = complete
    else:
        if not in_place or not _is_whole(trial / name, listing.get(name, {})):
            _copy_into_place(trial / newest, trial / name)
        gone = [path for path in complete if path != newest]
    for path in gone:
        _discard(trial, path, listing)


def _rename_into_place(trial: Location, new: str, name: str, fence: Fence) -> None:
    """On a local disk: rename `new` to `name`. No rename overwrites a directory with files."""
    target = trial / name
    old = None
    if target.exists():
        old = _free(name, _order(target), OLD, by_directory(trial))
        os.rename(target.path, (trial / old).path)
    try:
        os.rename((trial / new).path, target.path)
    except OSError:
        if old is not None:
            with suppress(OSError):
                os.rename((trial / old).path, target.path)
        raise
    target.parent.sync()
    fence()
    if old is not None and _order(trial / old) <= _order(target):
        _discard(trial, old, {old: (trial / old).tree()})


def _copy_into_place(new: Location, target: Location, files: Collection[str] | None = None) -> None:
    """Elsewhere: make `target` a copy of the original `new`, whose `files` may be known."""
    if files is None:
        files = new.files().keys() - {MANIFEST_NAME, INCOMPLETE_NAME}
    before: set[str] = set()
    together(lambda: before.update(target.files()), lambda: make_directories(target, files))
    gone = before - {*files, MANIFEST_NAME}
    together(
        *(partial((new / name).duplicate, target / name) for name in files),
        *((target / name).delete_file for name in gone),
    )
    (new / MANIFEST_NAME).duplicate(target / MANIFEST_NAME)


def _discard(trial: Location, path: str, listing: Listing) -> None:
    """Delete what was replaced, or was never complete; move what is damaged into the quarantine."""
    place, name, names = trial / path, target_of(path) or path, listing.pop(path)
    if trial.is_local and not place.exists():
        return  # It was moved into its place.
    worthless = not is_complete(file_sizes(names)) and path.endswith(NEW)
    if not worthless and not _is_whole(place, names, contents=name != "best"):
        # On a store another start may be deleting it.
        worthless = not trial.is_local and not (place / MANIFEST_NAME).exists()
        if not worthless:
            set_aside(trial, place, QUARANTINE, name.replace("/", "_"))
            return
    if trial.is_local:
        remove_checkpoint(place)
    else:  # Without its manifest it is no checkpoint.
        (place / MANIFEST_NAME).delete_file()
        place.delete_tree()


def _is_whole(place: Location, names: dict[str, Listed], *, contents: bool = False) -> bool:
    return check(place, contents=contents, present=file_sizes(names)).problem is None


def _lacks_files(place: Location, files: dict[str, int]) -> bool:
    """Whether files are missing that the manifest lists; False without a manifest to be trusted."""
    manifest = check(place, contents=False, present=files).manifest
    return manifest is not None and any(file.path not in files for file in manifest.files)


def _order(place: Location) -> tuple[int, int]:
    """Attempt and number of the replacement that is in `place` (of former versions: attempt and
    iteration); (-1, -1) if its manifest cannot be read."""
    try:
        manifest = read_manifest(place)
    except (FileNotFoundError, NotADirectoryError, ManifestError):
        return -1, -1
    return manifest.replacement or (manifest.attempt, manifest.iteration)


def _free(name: str, order: tuple[int, int], suffix: str, taken: Collection[str]) -> str:
    """A name for this replacement that is not taken."""
    mark = "{}-{}".format(*(max(0, number) for number in order))
    marks = itertools.chain([mark], (f"{mark}-{again}" for again in itertools.count(1)))
    return next(free for each in marks if (free := f"{name}.{each}{suffix}") not in taken)
