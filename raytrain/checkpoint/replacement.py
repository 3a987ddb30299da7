"""Replacing a checkpoint that has a fixed name (`best`, `final`, a stage) by another one.

    1. ORIGINAL   NAME.ATTEMPT-NUMBER.new is written in full and committed with a manifest of its own
    2. local disk:  NAME ─> NAME.ATTEMPT-NUMBER.old (rename)  ─>  ORIGINAL ─> NAME (rename)
                    ─> fence() ─> delete what was replaced
       elsewhere:   fence() ─> delete the older originals ─> copy the files of ORIGINAL over those of NAME,
                    the manifest last

ATTEMPT is that of the writer, and NUMBER is higher than that of whatever it replaces; both are in the
manifest (`replacement`). So what was there before never passes for newer than what was chosen in its place,
though it may be of a later iteration, and no two writers use one name.

Elsewhere than on a local disk the original stays: it is the checkpoint, since nobody but its writer ever
writes to it, and NAME is a copy for programs that know nothing of this. A writer that was stopped in the
middle and goes on when another has taken over spoils that copy at most, until the next replacement.

At every point NAME or one of NAME.*.new, NAME.*.old is a committed checkpoint, and the one with the
highest attempt and number counts. `repair` brings it into its place. No rename overwrites anything,
and what is deleted is older than what counts. Files are copied, never hard-linked: damage to one must not
spread to another.
"""

from __future__ import annotations

import dataclasses
import errno
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
    staged,
    state_by_names,
    write_checkpoint,
)
from raytrain.checkpoint.file_names import (
    NEW,
    OLD,
    OUTGOING,
    QUARANTINE,
    STAGES,
    by_directory,
    file_sizes,
    has_fixed_name,
    is_passing_name,
    numbered,
    order_of,
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
"""The last number that this process took for a replacement, by its place."""

Listing = dict[str, dict[str, Listed]]
"""What is below each directory of a trial in which a checkpoint may lie (`by_directory`)."""


def replace(
    source: Location,
    target: Location,
    *,
    kind: str,
    fence: Fence | None = None,
    files: Location | None = None,
    manifest: Manifest | None = None,
    attempt: int | None = None,
) -> Manifest:
    """Make `target` a full copy of the checkpoint `source`, with the manifest's kind set to `kind`.

    `files` holds the same files nearer by (the staging directory), if there is such a place, and
    `manifest` is the source's, if it is known. `attempt` is that of the writer, if it is not the
    source's. What is read is checked against the manifest: raises `DamagedCheckpoint` and leaves
    `target` as it was if they differ; `ManifestError`, `StorageError`.
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
    fence: Fence | None = None,
    before_manifest: Callable[[], None] = nothing,
    take: bool = True,
) -> Manifest:
    """Like `commit`, and what is at `target` is replaced once the new checkpoint is complete. Unless it may
    `take` them, the staged files stay."""
    with storage_errors(f"Writing the checkpoint {target.name}", target):
        sources = staged(staging, take=take)
        return _write_and_swap(sources, target, manifest, fence, before_manifest=before_manifest)


def sweep(trial: Location, fence: Fence = nothing) -> list[str]:
    """Repair what crashes left in a trial directory; the names of what was deleted.

    Call it before the first commit of a process, never while a commit is running. Deletes only what
    never was a checkpoint, or was already given up. `fence` is called after the look at the storage.
    """
    swept = []
    with storage_errors("Clearing away what a crash left", trial):
        found = by_directory(trial)
        fence()
        if bring_back(trial, found):
            found = by_directory(trial)
        for path, names in found.items():
            files = file_sizes(names)
            state = state_by_names(names if trial.is_local else files, local=trial.is_local)
            in_quarantine = path.startswith(f"{QUARANTINE}/")
            if is_passing_name(path.rpartition("/")[2]):
                if _put_back(trial, path, names):
                    continue
                _delete_whole(trial / path)
            elif state == "incomplete" and in_quarantine and not trial.is_local:
                # The marker came late; what is beside it is evidence.
                (trial / path / INCOMPLETE_NAME).delete_file()
                continue
            elif state == "incomplete" and not target_of(path):
                if not trial.is_local and files.keys() == {INCOMPLETE_NAME}:
                    continue  # It stays, see `remove_checkpoint`.
                remove_checkpoint(trial / path)
            else:
                if state == "committed" and INCOMPLETE_NAME in names:
                    evidence = trial.is_local or in_quarantine
                    if not evidence and _is_cleared_away(trial / path, files):
                        # The manifest came when a start, which was killed, had cleared some of the files away.
                        remove_checkpoint(trial / path)
                        swept.append(path)
                        continue
                    # A kill between the manifest and the removal of the marker leaves both.
                    (trial / path / INCOMPLETE_NAME).delete_file()
                if state == "committed" and HALF_WRITTEN_NAME in names:
                    (trial / path / HALF_WRITTEN_NAME).delete_file()
                continue
            swept.append(path)
        for name in sorted({name for path in found if (name := target_of(path))}):
            _repair(trial, name, found, fence)
    return swept


def _put_back(trial: Location, path: str, names: dict[str, Listed]) -> bool:
    """On a local disk: give a checkpoint its name again that a kill left on its way out, before anything of it
    was deleted: all newer ones may be damaged. Whether this is one, and its name was free."""
    name = path.removeprefix(".").removesuffix(OUTGOING)
    if not (path.endswith(OUTGOING) and numbered(name) and _is_whole(trial / path, names)):
        return False
    with suppress(CheckpointExists, FileNotFoundError):
        rename(trial / path, trial / name)
        return True
    return False


def _delete_whole(place: Location) -> None:
    """Delete a directory on its way. On a local disk its writer may be about to give it its name, and gets all
    of it or nothing."""
    if not place.is_local:
        place.delete_tree()
        return
    doomed = place.parent / f".{uuid.uuid4().hex}{OUTGOING}"
    with suppress(FileNotFoundError):
        os.rename(place.path, doomed.path)
    doomed.delete_tree()


def repair(trial: Location, name: str, fence: Fence = nothing) -> None:
    """Finish or undo a replacement of the checkpoint `name` that was cut short."""
    with storage_errors(f"Repairing an interrupted replacement of {name}", trial):
        found = by_directory(trial)
        fence()
        _repair(trial, name, found, fence)


def take_down(place: Location) -> None:
    """Delete the copy of an original that is to be deleted or moved away itself."""
    trial, path = _split(place)
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
    """Move what lies in `place` into a directory of the trial, as it is, under `name`, with a number if there
    is one already; where it lies now. To be called after the fence.

    On a local disk another may have put something else there meanwhile. What is not what `is_meant` goes back:
    raises what `fence` raises, or `CheckpointExists`, after which one looks again. After a kill in between,
    `bring_back` undoes the move.
    """
    was_in = place
    if place.is_local:
        place = was_in.parent / way_aside(was_in.name)
        rename(was_in, place)
        if not is_meant(place):
            rename(place, was_in)
            fence()
            raise CheckpointExists(
                f"{was_in} was replaced while it was looked at.",
                path=str(was_in),
                errno=errno.EEXIST,
            )
    target = (trial / directory).first_free(with_numbers(name))
    move_checkpoint(place, target)
    return target


def bring_back(trial: Location, found: Iterable[str]) -> bool:
    """On a local disk: whether any of these was on its way aside. It lies where it was now, or aside if there
    is another."""
    lost = {path: name for path in found if (name := taken_from(path))}
    for path, name in lost.items():
        with suppress(FileNotFoundError):  # Who moved it is alive, and moved it on.
            try:
                rename(trial / path, trial / name)
            except CheckpointExists:
                set_aside(trial, trial / path, QUARANTINE, name.replace("/", "_"))
    return bool(lost)


def _write_and_swap(
    sources: Sequence[Source],
    target: Location,
    manifest: Manifest,
    fence: Fence | None,
    *,
    before_manifest: Callable[[], None] = nothing,
    attempt: int | None = None,
) -> Manifest:
    fence = fence or nothing
    trial, name = _split(target)
    found = by_directory(trial)
    fence()
    if trial.is_local:
        _repair(trial, name, found, fence)
    there = [_order(target), *(order_of(path)[:2] for path in versions_of(name, found))]
    # A number that was tried and failed is not taken again: a file of it may still come.
    number = 1 + max(0, _TRIED.get(target, 0), *(n for _, n in there))
    _TRIED[target] = number
    order = (manifest.attempt if attempt is None else attempt, number)
    new = _free(trial, name, order, NEW, found)
    manifest = dataclasses.replace(manifest, replacement=order)
    complete = write_checkpoint(
        sources, trial / new, manifest, fence, before_manifest, marked=False
    )
    fence()
    if trial.is_local:
        _rename_into_place(trial, new, name, fence)
    else:
        together(*(partial(_discard, trial, old, found) for old in versions_of(name, found)))
        _copy_into_place(trial / new, target, [each.path for each in complete.files])
        if not has_fixed_name(name):  # No reader looks for an original of it.
            (trial / new).delete_tree()
    return complete


def _repair(trial: Location, name: str, found: Listing, fence: Fence) -> None:
    complete = []
    for path in versions_of(name, found):
        if is_complete(file_sizes(found[path])):
            complete.append(path)
        else:
            _discard(trial, path, found)
    if not complete:
        return
    # Files of the newest may have been cleared away before its manifest arrived.
    newest = max(complete, key=lambda path: (_is_whole(trial / path, found[path]), order_of(path)))
    in_place = _order(trial / name) >= order_of(newest)[:2]
    if trial.is_local:
        # As it is now: it may have been replaced since the listing.
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
        if not in_place or not _is_whole(trial / name, found.get(name, {})):
            _copy_into_place(trial / newest, trial / name)
        gone = [path for path in complete if path != newest]
    for path in gone:
        _discard(trial, path, found)


def _rename_into_place(trial: Location, new: str, name: str, fence: Fence) -> None:
    """On a local disk: `new` takes the place of `name`. A rename overwrites no directory with files."""
    target = trial / name
    old = None
    if target.exists():
        old = _free(trial, name, _order(target), OLD, by_directory(trial))
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
    """Elsewhere: make `target` a copy of the original `new`. `files` are those of `new`, if they are known."""
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


def _discard(trial: Location, path: str, found: Listing) -> None:
    """Delete what has been replaced, or was never complete. What is damaged is kept, in the quarantine."""
    place, name, names = trial / path, target_of(path) or path, found.pop(path)
    if trial.is_local and not place.exists():
        return  # It was brought into its place.
    worthless = not is_complete(file_sizes(names)) and path.endswith(NEW)
    if not worthless and not _is_whole(place, names, contents=name != "best"):
        # On a store another start may be deleting it.
        worthless = not trial.is_local and not (place / MANIFEST_NAME).exists()
        if not worthless:
            set_aside(trial, place, QUARANTINE, name.replace("/", "_"))
            return
    if trial.is_local:
        remove_checkpoint(place)
    else:  # Without its manifest nobody takes it for a checkpoint.
        (place / MANIFEST_NAME).delete_file()
        place.delete_tree()


def _is_whole(place: Location, names: dict[str, Listed], *, contents: bool = False) -> bool:
    return check(place, contents=contents, present=file_sizes(names)).problem is None


def _is_cleared_away(place: Location, files: dict[str, int]) -> bool:
    """Whether files are missing that the manifest lists. Without a manifest that can be trusted nobody knows."""
    manifest = check(place, contents=False, present=files).manifest
    return manifest is not None and any(each.path not in files for each in manifest.files)


def _split(target: Location) -> tuple[Location, str]:
    """The trial, and the checkpoint's name in it."""
    if target.parent.name == STAGES:
        return target.parent.parent, f"{STAGES}/{target.name}"
    return target.parent, target.name


def _order(place: Location) -> tuple[int, int]:
    """Attempt and number of what was put there (former versions: attempt and iteration); less than any if it
    has no manifest that can be read."""
    try:
        manifest = read_manifest(place)
    except (FileNotFoundError, NotADirectoryError, ManifestError):
        return -1, -1
    return manifest.replacement or (manifest.attempt, manifest.iteration)


def _free(
    trial: Location, name: str, order: tuple[int, int], suffix: str, found: Collection[str]
) -> str:
    """A name of this kind that nothing has."""
    mark, again = "{}-{}".format(*(max(0, each) for each in order)), 0
    free = f"{name}.{mark}{suffix}"
    while free in found:
        again += 1
        free = f"{name}.{mark}-{again}{suffix}"
    return free
