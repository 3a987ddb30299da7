"""Replacing a checkpoint that has a fixed name (`best`, `final`, a stage) by another one.

    1. NAME.new   is written in full and committed with a manifest of its own
    2. local disk:  NAME -> NAME.old (rename)  ──>  NAME.new -> NAME (rename)  ──>  delete NAME.old
       elsewhere:   NAME/.incomplete  ──>  delete NAME/manifest.json  ──>  copy the files of NAME.new
                    over those of NAME, delete those it does not have  ──>  copy the manifest
                    ──>  delete NAME.new and NAME/.incomplete

At every point NAME, NAME.new or NAME.old is a committed checkpoint. `repair_swaps` finishes a swap
whose NAME.new was committed and undoes one whose was not. Files are copied, never hard-linked:
damage to one must not spread to another. NAME.new needs no marker on the way: nobody takes it for a
checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

from raytrain.checkpoint.commit import (
    Fence,
    Source,
    State,
    move_checkpoint,
    nothing,
    read_manifest,
    remove_checkpoint,
    staged,
    state_by_names,
    state_of,
    write_checkpoint,
)
from raytrain.checkpoint.layout import NEW, OLD, QUARANTINE, by_directory, is_passing_name
from raytrain.checkpoint.manifest import INCOMPLETE_NAME, MANIFEST_NAME, Manifest
from raytrain.checkpoint.parallel import together
from raytrain.checkpoint.storage import Location, make_directories, storage_errors


def replace(
    source: Location,
    target: Location,
    *,
    kind: str,
    fence: Fence | None = None,
    files: Location | None = None,
    manifest: Manifest | None = None,
) -> Manifest:
    """Make `target` a full copy of the checkpoint `source`, with the manifest's kind set to `kind`.

    `files` holds the same files nearer by (the staging directory), if there is such a place, and
    `manifest` is the source's, if it is known. What is read is checked against it: raises
    `DamagedCheckpoint` and leaves `target` as it was if they differ; `ManifestError`, `StorageError`.
    """
    with storage_errors(f"Copying {source.name} to {target.name}", target):
        manifest = manifest or read_manifest(source)
        place = files or source
        sources = [Source(f.path, place / f.path, expected=f) for f in manifest.files]
        return _write_and_swap(sources, target, manifest.with_files((), kind=kind), fence)


def commit_replacing(
    staging: Path,
    target: Location,
    manifest: Manifest,
    *,
    fence: Fence | None = None,
    before_manifest: Callable[[], None] = nothing,
) -> Manifest:
    """Like `commit`, and what is at `target` is replaced once the new checkpoint is complete."""
    with storage_errors(f"Writing the checkpoint {target.name}", target):
        return _write_and_swap(staged(staging), target, manifest, fence, before_manifest)


def repair_swaps(trial: Location) -> None:
    """Finish or undo every replacement in the trial directory that a crash cut short."""
    with storage_errors("Repairing an interrupted replacement", trial):
        _repair_all(trial, by_directory(trial))


def sweep(trial: Location) -> list[str]:
    """Repair what crashes left in a trial directory; the names of what was deleted.

    Call it before the first commit of a process, never while a commit is running. Deletes only what
    never was a checkpoint, or was already given up.
    """
    swept = []
    with storage_errors("Clearing away what a crash left", trial):
        found = by_directory(trial)
        if _repair_all(trial, found):
            found = by_directory(trial)
        for path, names in found.items():
            state = state_by_names(names)
            if is_passing_name(path.rpartition("/")[2]):
                (trial / path).delete_tree()
            elif state == "incomplete":
                remove_checkpoint(trial / path)
            else:
                if state == "committed" and INCOMPLETE_NAME in names:
                    # A kill between the manifest and the removal of the marker leaves both.
                    (trial / path / INCOMPLETE_NAME).delete_file()
                continue
            swept.append(path)
    return swept


def _repair_all(trial: Location, found: Collection[str]) -> bool:
    """Whether there was anything to repair."""
    cut = {
        path[: -len(NEW)]
        for path in found
        if path.endswith((NEW, OLD)) and not path.startswith((QUARANTINE, ".")) and "/." not in path
    }
    for path in sorted(cut):
        _repair(trial / path)
    return bool(cut)


def _write_and_swap(
    sources: Sequence[Source],
    target: Location,
    manifest: Manifest,
    fence: Fence | None,
    before_manifest: Callable[[], None] = nothing,
) -> Manifest:
    _repair(target, fence or nothing)
    new = _beside(target, NEW)
    complete = write_checkpoint(sources, new, manifest, fence, before_manifest, marked=False)
    _finish(target, [each.path for each in complete.files])
    return complete


def _beside(target: Location, suffix: str) -> Location:
    return target.parent / (target.name + suffix)


def _finish(target: Location, files: Collection[str] | None = None) -> None:
    """NAME.new is committed: put it in place, whatever NAME and NAME.old are. `files` are those of
    NAME.new, if they are known."""
    new, old = _beside(target, NEW), _beside(target, OLD)
    if not target.is_local:
        _copy_over(new, target, files)
        return
    if target.exists():
        remove_checkpoint(old)
        os.rename(target.path, old.path)
    os.rename(new.path, target.path)
    target.parent.sync()
    remove_checkpoint(old)


def _copy_over(new: Location, target: Location, files: Collection[str] | None) -> None:
    if files is None:
        files = new.files().keys() - {MANIFEST_NAME, INCOMPLETE_NAME}
    before: set[str] = set()
    together(lambda: before.update(target.files()), lambda: make_directories(target, files))
    (target / INCOMPLETE_NAME).write_bytes(b"")
    (target / MANIFEST_NAME).delete_file()
    gone = before - {*files, MANIFEST_NAME, INCOMPLETE_NAME}
    together(
        *(partial((new / name).duplicate, target / name) for name in files),
        *((target / name).delete_file for name in gone),
    )
    (new / MANIFEST_NAME).duplicate(target / MANIFEST_NAME)
    together(lambda: _drop(new), (target / INCOMPLETE_NAME).delete_file)


def _drop(new: Location) -> None:
    """Delete what nobody takes for a checkpoint without its manifest."""
    (new / MANIFEST_NAME).delete_file()
    new.delete_tree()


def _repair(target: Location, fence: Fence = nothing) -> None:
    """Finish or undo a replacement that was cut short; afterwards NAME.new and NAME.old are not there.
    `fence` is called before anything is touched."""
    new, old = _beside(target, NEW), _beside(target, OLD)
    states: dict[str, State] = {}

    def look(place: Location) -> None:
        states[place.path] = state_of(place)

    together(fence, partial(look, new), partial(look, old), serial=target.is_local)
    if states[new.path] == "committed":
        _finish(target)
    elif states[new.path] != "missing":
        remove_checkpoint(new)
    if states[old.path] == "missing":
        return
    if state_of(target) == "committed":
        remove_checkpoint(old)
    elif state_of(target) == "missing" and states[old.path] == "committed":
        move_checkpoint(old, target)
