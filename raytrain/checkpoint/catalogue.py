"""The checkpoints of one trial: which exist, which are good, and which one to resume from.

    <trial>/checkpoint_000012/   periodic or interrupted
            error_000012/        post-mortem, never used on resume
            stages/<name>/  best/  final/
            quarantine/<name>[.k]/    damaged, as found

Storage is listed each time; only a manifest that has not changed since, by the listing, may be
remembered. Directories that are being written, or that a crash left half-written, are not
checkpoints and do not appear.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any

from raytrain.checkpoint.commit import (
    Fence,
    is_complete,
    nothing,
    remove_checkpoint,
    state_by_names,
)
from raytrain.checkpoint.file_names import (
    FIXED_NAMES,
    QUARANTINE,
    STAGES,
    by_directory,
    file_sizes,
    has_fixed_name,
    is_plain_name,
    numbered,
    order_of,
    target_of,
    versions_of,
)
from raytrain.checkpoint.manifest import MANIFEST_NAME, Manifest
from raytrain.checkpoint.replacement import set_aside, sweep, take_down
from raytrain.checkpoint.verify import check
from raytrain.errors import RaytrainError
from raytrain.storage.escapes import printable
from raytrain.storage.location import Listed, Location, in_parallel, storage_errors

# Also `checkpoint_000012.1` in quarantine.
_ONCE_NUMBERED = re.compile(r"(checkpoint|error)_(\d+)")
_KIND_OF_PLACE = {"checkpoint": "periodic", "error": "error", "best": "best", "final": "final"}
# Of several checkpoints of one iteration, the one written first is preferred.
_PREFERENCE = ("periodic", "final", "best", "stage", "error")


class NoGoodCheckpoint(RaytrainError):
    """There are checkpoints, and each of them is damaged."""

    may_retry = False

    def __init__(self, trial: Location, damaged: list[Entry]) -> None:
        lines = "".join(f"\n  {printable(entry.path)}: {entry.problem}" for entry in damaged)
        super().__init__(
            f"No good checkpoint is left in {trial}:{lines}\n"
            "Restore these files (from a backup or a snapshot of the storage), or start again with "
            "--fresh, which sets this directory aside."
        )


@dataclass(frozen=True)
class Entry:
    """One checkpoint directory.

    `path` is its name, relative to the trial, and `location` where it is: elsewhere than on a local
    disk `best`, `final` and stages are in an original of another name (see `replacement`).

    `good`: False is damaged or in quarantine (`problem` says why), True had every byte checked,
    None had only names and sizes checked. Without a readable manifest, `kind` and `iteration` are
    those of the directory's name (iteration -1 if it has none).
    """

    trial: Location
    path: str
    location: Location
    kind: str
    iteration: int
    good: bool | None
    problem: str | None
    manifest: Manifest | None
    size_bytes: int

    @property
    def timesteps(self) -> int | None:
        return self.manifest.timesteps if self.manifest else None

    @property
    def score(self) -> float | None:
        return self.manifest.score if self.manifest else None

    @property
    def weights_sha256(self) -> str | None:
        return self.manifest.weights_sha256 if self.manifest else None

    @property
    def good_manifest(self) -> Manifest:
        """The manifest, which every good checkpoint has."""
        assert self.manifest is not None, f"{self.path} is good, but has no manifest"
        return self.manifest

    @property
    def in_quarantine(self) -> bool:
        return self.path.startswith(QUARANTINE + "/")

    @property
    def is_periodic_place(self) -> bool:
        return self.path.startswith("checkpoint_")

    @property
    def is_disposable(self) -> bool:
        """Whether retention may delete it: a periodic or interrupted checkpoint."""
        return self.is_periodic_place and self.kind in ("periodic", "interrupted")

    def remove(self, fence: Fence = nothing) -> None:
        """Delete it. Raises `StorageError`, and what `fence` raises (see `remove_checkpoint`)."""
        with storage_errors(f"Deleting {self.path}", self.location):
            take_down(self.location)
            remove_checkpoint(self.location, fence)

    def as_dict(self) -> dict[str, Any]:
        """The keys of `raytrain checkpoints --json`."""
        keys = "path kind iteration timesteps score weights_sha256 good problem"
        return {key: getattr(self, key) for key in keys.split()}


@dataclass(frozen=True)
class Choice:
    """The newest good checkpoint, or None, and the damaged ones that are newer."""

    entry: Entry | None
    damaged: tuple[Entry, ...]


Remembered = MutableMapping[str, tuple[Listed, Manifest]]
"""Manifests by the checkpoint's path, with the file's entry in the listing when it was read."""


@dataclass(frozen=True)
class Catalogue:
    """The checkpoints in one trial directory. Methods raise `StorageError` if the storage cannot be
    read. With `remembered`, a manifest whose listing has not changed is not read again, except for
    `verify`, which reads every byte."""

    trial: Location
    remembered: Remembered | None = field(default=None, compare=False)

    def entries(self, verify: bool = False) -> list[Entry]:
        """All checkpoints by iteration, the quarantine last. With `verify` every byte is read,
        except in the quarantine."""
        return self._entries(_is_checkpoint_path, verify)

    def periodic(self) -> list[Entry]:
        """The entries in `checkpoint_*`, by iteration, names and sizes checked."""
        return self._entries(lambda path: path.startswith("checkpoint_"), False)

    def entry(self, path: str, verify: bool = False) -> Entry | None:
        """The checkpoint at `path` (relative to the trial), or None if there is none."""
        location = self.trial / path
        with storage_errors(f"Reading the checkpoint {path}", location):
            if has_fixed_name(path) and not (
                location.is_local and (location / MANIFEST_NAME).exists()
            ):
                listing = by_directory(self.trial)
                place = _places(listing, local=self.trial.is_local).get(path)
                return None if place is None else self._look_at(path, place, listing[place], verify)
            present = location.tree()
            if not present and not (location.is_local and location.is_dir()):
                return None
            return self._look_at(path, path, present, verify)

    def newest_good(self) -> Choice:
        """The newest checkpoint whose bytes are all right, without kind `error` and quarantine."""
        damaged: list[Entry] = []
        for candidate in sorted(self.entries(), key=_newest_first):
            if candidate.kind == "error" or candidate.in_quarantine:
                continue
            verified = candidate
            if candidate.good is None:
                # It may have been deleted since it was listed.
                verified = self.entry(candidate.path, verify=True) or candidate
            if verified.good:
                return Choice(verified, tuple(damaged))
            damaged.append(verified)
        return Choice(None, tuple(damaged))

    def choose_for_resume(self) -> Choice:
        """As `newest_good`. Raises `NoGoodCheckpoint` if there are only damaged checkpoints,
        including the quarantine."""
        choice = self.newest_good()
        if choice.entry is None:
            aside = [e for e in self.entries() if e.in_quarantine and e.kind != "error"]
            if choice.damaged or aside:
                raise NoGoodCheckpoint(self.trial, [*choice.damaged, *aside])
        return choice

    def quarantine(self, entry: Entry, fence: Fence = nothing) -> Location:
        """Move a damaged checkpoint into `quarantine/`, as it is; its new place."""

        def is_damaged(place: Location) -> bool:
            return check(place, contents=True).problem is not None

        name, place = entry.path.replace("/", "_"), entry.location
        with storage_errors(f"Setting aside {entry.path}", place):
            fence()
            return set_aside(self.trial, place, QUARANTINE, name, is_meant=is_damaged, fence=fence)

    def set_aside(
        self, entry: Entry, directory: str, name: str = "", fence: Fence = nothing
    ) -> Location:
        """Move a checkpoint, good or damaged, into a directory of the trial, under `name` or its
        own; its new place."""

        def is_the_same(place: Location) -> bool:
            return check(place, contents=False).manifest == entry.manifest

        name, place = name or entry.path, entry.location
        with storage_errors(f"Setting aside {entry.path}", place):
            fence()
            take_down(place)
            return set_aside(self.trial, place, directory, name, is_meant=is_the_same, fence=fence)

    def sweep(self, fence: Fence = nothing) -> list[str]:
        """Repair or delete what crashes left; only before the first commit of this process."""
        return sweep(self.trial, fence)

    def _entries(self, wanted: Callable[[str], bool], verify: bool) -> list[Entry]:
        with storage_errors("Listing the checkpoints", self.trial):
            listing = by_directory(self.trial)
            if self.remembered is not None:
                for gone in self.remembered.keys() - listing.keys():
                    del self.remembered[gone]
            places = _places(listing, local=self.trial.is_local)
            entries = in_parallel(
                lambda path: self._look_at(path, places[path], listing[places[path]], verify),
                filter(wanted, places),
                serial=self.trial.is_local,
            )
        present = [entry for entry in entries if entry is not None]
        return sorted(present, key=lambda e: (e.in_quarantine, e.iteration, e.path))

    def _look_at(
        self,
        path: str,
        place: str,
        present: dict[str, Listed],
        verify: bool,
        *,
        second_look: bool = False,
    ) -> Entry | None:
        """`place`: the directory of the checkpoint `path`; `present`: everything below it."""
        location = self.trial / place
        files = file_sizes(present)
        # Directories without files exist only on a local disk.
        names = present if location.is_local else files
        state = state_by_names(names, local=location.is_local)
        if state == "incomplete" or not (files or location.is_local):
            return None
        quarantined = path.startswith(QUARANTINE + "/")
        known = None if verify else self._known(place, present.get(MANIFEST_NAME))
        checked = check(location, contents=verify and not quarantined, present=files, known=known)
        if checked.problem is not None and has_fixed_name(path) and not second_look:
            # It may have been replaced while it was being read: look once more.
            listing = by_directory(self.trial)
            there = _places(listing, local=self.trial.is_local).get(path)
            if there is not None:
                return self._look_at(path, there, listing[there], verify, second_look=True)
        kind, iteration = _by_name(path)
        if checked.manifest:
            kind, iteration = checked.manifest.kind, checked.manifest.iteration
            if self.remembered is not None and not known:
                self.remembered[place] = present[MANIFEST_NAME], checked.manifest
        if quarantined and not checked.problem:
            checked = replace(checked, problem="set aside as damaged")
        return Entry(
            trial=self.trial,
            path=path,
            location=location,
            kind=kind,
            iteration=iteration,
            good=False if checked.problem else (True if verify else None),
            problem=checked.problem,
            manifest=checked.manifest,
            size_bytes=checked.size_bytes,
        )

    def _known(self, place: str, file: Listed | None) -> Manifest | None:
        if self.remembered is None or file is None or file.mtime_ns is None:
            return None
        before, manifest = self.remembered.get(place, (None, None))
        return manifest if before == file else None


def _places(listing: Mapping[str, dict[str, Listed]], *, local: bool) -> dict[str, str]:
    """The directory of each checkpoint, by the checkpoint's path."""
    places = {path: path for path in listing if _is_checkpoint_path(path)}
    for name in {name for path in listing if (name := target_of(path))}:
        complete = [p for p in versions_of(name, listing) if is_complete(file_sizes(listing[p]))]
        # On a local disk it is in its place, except for a moment and after a crash.
        if complete and not (local and MANIFEST_NAME in listing.get(name, ())):
            places[name] = max(complete, key=order_of)
    return places


def _is_checkpoint_path(path: str) -> bool:
    holder, _, name = path.rpartition("/")
    return is_plain_name(name) if holder else bool(numbered(name)) or name in FIXED_NAMES


def _by_name(path: str) -> tuple[str, int]:
    """Kind and iteration, as far as the directory's name says."""
    name = path.removeprefix(QUARANTINE + "/")
    match = _ONCE_NUMBERED.match(name)
    if match:
        return _KIND_OF_PLACE[match[1]], int(match[2])
    if path.startswith(STAGES + "/") or name.startswith(STAGES + "_"):
        return "stage", -1
    return _KIND_OF_PLACE.get(name.partition(".")[0], "periodic"), -1


def _newest_first(entry: Entry) -> tuple[int, int]:
    kind_of_place, _ = _by_name(entry.path)
    return -entry.iteration, _PREFERENCE.index(kind_of_place)
