"""Replacing a checkpoint that has a fixed name (`best`, `final`, a stage) by another one.

    1. NAME.new   is written in full and committed with a manifest of its own
    2. local disk:  NAME -> NAME.old (rename)  ──>  NAME.new -> NAME (rename)  ──>  delete NAME.old
       elsewhere:   delete NAME                ──>  copy NAME.new to NAME      ──>  delete NAME.new

At every point NAME, NAME.new or NAME.old is a committed checkpoint. `repair_swap` finishes a swap
whose NAME.new was committed and undoes one whose was not. Files are copied, never hard-linked:
damage to one must not spread to another.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from raytrain.checkpoint.commit import (
    Fence,
    Source,
    is_passing_name,
    move_checkpoint,
    read_manifest,
    remove_checkpoint,
    staged,
    state_of,
    write_checkpoint,
)
from raytrain.checkpoint.manifest import INCOMPLETE_NAME, Manifest
from raytrain.checkpoint.storage import Location, storage_errors

NEW, OLD = ".new", ".old"


def replace(
    source: Location,
    target: Location,
    *,
    kind: str,
    fence: Fence | None = None,
    files: Location | None = None,
) -> Manifest:
    """Make `target` a full copy of the checkpoint `source`, with the manifest's kind set to `kind`.

    `files` holds the same files nearer by (the staging directory), if there is such a place. What is
    read is checked against the source's manifest: raises `DamagedCheckpoint` and leaves `target` as it
    was if they differ; `ManifestError`, `StorageError`.
    """
    with storage_errors(f"Copying {source.name} to {target.name}", target):
        manifest = read_manifest(source)
        place = files or source
        sources = [Source(f.path, place / f.path, expected=f) for f in manifest.files]
        return _write_and_swap(sources, target, manifest.with_files((), kind=kind), fence)


def commit_replacing(
    staging: Path, target: Location, manifest: Manifest, *, fence: Fence | None = None
) -> Manifest:
    """Like `commit`, and what is at `target` is replaced once the new checkpoint is complete."""
    with storage_errors(f"Writing the checkpoint {target.name}", target):
        return _write_and_swap(staged(staging), target, manifest, fence)


def repair_swaps(trial: Location) -> None:
    """Finish or undo every replacement in the trial directory that a crash cut short."""
    with storage_errors("Repairing an interrupted replacement", trial):
        for holder in (trial, trial / "stages"):
            names = holder.subdirectories()
            cut = {n[: -len(NEW)] for n in names if n.endswith((NEW, OLD)) and n[0] != "."}
            for name in sorted(cut):
                _repair(holder / name)


def sweep(trial: Location) -> list[str]:
    """Repair what crashes left in a trial directory; the names of what was deleted.

    Call it before the first commit of a process, never while a commit is running. Deletes only what
    never was a checkpoint, or was already given up.
    """
    repair_swaps(trial)
    swept = []
    with storage_errors("Clearing away what a crash left", trial):
        for holder in (trial, trial / "stages", trial / "quarantine"):
            for name in holder.subdirectories():
                place = holder / name
                if is_passing_name(name):
                    place.delete_tree()
                elif state_of(place) == "incomplete":
                    remove_checkpoint(place)
                else:
                    _drop_stale_marker(place)
                    continue
                swept.append(f"{holder.name}/{name}" if holder != trial else name)
    return swept


def _write_and_swap(
    sources: Sequence[Source], target: Location, manifest: Manifest, fence: Fence | None
) -> Manifest:
    _repair(target)
    complete = write_checkpoint(sources, _beside(target, NEW), manifest, fence)
    _finish(target)
    return complete


def _beside(target: Location, suffix: str) -> Location:
    return target.parent / (target.name + suffix)


def _finish(target: Location) -> None:
    """NAME.new is committed: put it in place, whatever NAME and NAME.old are."""
    new, old = _beside(target, NEW), _beside(target, OLD)
    if not target.is_local:
        remove_checkpoint(target)
        move_checkpoint(new, target)
        return
    if target.exists():
        remove_checkpoint(old)
        os.rename(target.path, old.path)
    os.rename(new.path, target.path)
    target.parent.sync()
    remove_checkpoint(old)


def _repair(target: Location) -> None:
    new, old = _beside(target, NEW), _beside(target, OLD)
    if state_of(new) == "committed":
        _finish(target)
    else:
        remove_checkpoint(new)
    if not old.exists():
        return
    if state_of(target) == "committed":
        remove_checkpoint(old)
    elif state_of(target) == "missing" and state_of(old) == "committed":
        move_checkpoint(old, target)


def _drop_stale_marker(place: Location) -> None:
    """A kill between the manifest and the removal of the marker leaves both."""
    if state_of(place) == "committed":
        (place / INCOMPLETE_NAME).delete_file()
