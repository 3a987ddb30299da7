"""The checkpoints of one trial: what there is, what is good, which one to continue from.

    <trial>/checkpoint_000012/   periodic or interrupted
            error_000012/        post-mortem, never used on resume
            stages/<name>/  best/  final/
            quarantine/<name>[.k]/    damaged, as found

Storage is asked each time; nothing is remembered. Directories that are being written, or that a
crash left half-written, are not checkpoints and do not appear.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from raytrain.checkpoint.commit import is_garbage, move_checkpoint
from raytrain.checkpoint.manifest import Manifest
from raytrain.checkpoint.storage import Location, in_parallel, storage_errors
from raytrain.checkpoint.swap import NEW, OLD, sweep
from raytrain.checkpoint.verify import check
from raytrain.errors import RaytrainError

QUARANTINE, STAGES = "quarantine", "stages"
_NUMBERED = re.compile(r"(checkpoint|error)_(\d+)")
_KIND_OF_PLACE = {"checkpoint": "periodic", "error": "error", "best": "best", "final": "final"}
# Of several checkpoints of one iteration, the one written first is preferred.
_PREFERENCE = ("periodic", "final", "best", "stage", "error")


class NoGoodCheckpoint(RaytrainError):
    """There are checkpoints, and each of them is damaged."""

    may_retry = False

    def __init__(self, trial: Location, damaged: list[Entry]) -> None:
        lines = "".join(f"\n  {entry.path}: {entry.problem}" for entry in damaged)
        super().__init__(
            f"No good checkpoint is left in {trial}:{lines}\n"
            "Restore the files named (from a backup or a snapshot of the storage), or start anew "
            "with --fresh, which sets this directory aside."
        )
        self.damaged = damaged


@dataclass(frozen=True)
class Entry:
    """One checkpoint directory.

    `path` is relative to the trial. `good`: False is damaged or in quarantine (`problem` says why),
    True had every byte checked, None had only names and sizes checked. Without a readable manifest,
    `kind` and `iteration` are what the directory's name says (iteration -1 if it says nothing).
    """

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
    def in_quarantine(self) -> bool:
        return self.path.startswith(QUARANTINE + "/")

    @property
    def is_periodic_place(self) -> bool:
        return self.path.startswith("checkpoint_")

    def as_dict(self) -> dict[str, Any]:
        """The keys of `raytrain checkpoints --json`."""
        keys = "path kind iteration timesteps score weights_sha256 good problem"
        return {key: getattr(self, key) for key in keys.split()}


@dataclass(frozen=True)
class Choice:
    """The newest good checkpoint, or None, and the damaged ones that were newer."""

    entry: Entry | None
    damaged: tuple[Entry, ...]


@dataclass(frozen=True)
class Catalogue:
    """The checkpoints in one trial directory. Methods raise `StorageError` if the storage cannot be
    read.
    """

    trial: Location

    def entries(self, verify: bool = False) -> list[Entry]:
        """All checkpoints by iteration, the quarantine last. With `verify` every byte is read, but
        in quarantine.
        """
        with storage_errors("Listing the checkpoints", self.trial):
            names = [n for n in self.trial.subdirectories() if _is_checkpoint_name(n)]
            for holder in (STAGES, QUARANTINE):
                below = (self.trial / holder).subdirectories()
                names += [f"{holder}/{n}" for n in below if _is_plain_name(n)]
            return self._look_at(names, verify)

    def periodic(self) -> list[Entry]:
        """The entries in `checkpoint_*`, by iteration, names and sizes checked."""
        with storage_errors("Listing the checkpoints", self.trial):
            names = self.trial.subdirectories()
            return self._look_at([n for n in names if n.startswith("checkpoint_")], False)

    def entry(self, path: str, verify: bool = False) -> Entry | None:
        """The checkpoint at `path` (relative to the trial), or None if there is none."""
        location = self.trial / path
        with storage_errors(f"Reading the checkpoint {path}", location):
            if not location.is_dir() or is_garbage(location):
                return None
            checked = check(location, contents=verify and not path.startswith(QUARANTINE + "/"))
        kind, iteration = _told_by_name(path)
        if checked.manifest:
            kind, iteration = checked.manifest.kind, checked.manifest.iteration
        found = Entry(
            path=path,
            location=location,
            kind=kind,
            iteration=iteration,
            good=False if checked.problem else (True if verify else None),
            problem=checked.problem,
            manifest=checked.manifest,
            size_bytes=checked.size_bytes,
        )
        if found.in_quarantine:
            return replace(found, good=False, problem=found.problem or "set aside as damaged")
        return found

    def newest_good(self) -> Choice:
        """The newest checkpoint of which every byte is right, kind `error` and the quarantine left
        out.
        """
        damaged: list[Entry] = []
        for candidate in sorted(self.entries(), key=_newest_first):
            if candidate.kind == "error" or candidate.in_quarantine:
                continue
            verified = candidate
            if candidate.good is None:
                # It may have gone since it was listed: then it was never there.
                verified = self.entry(candidate.path, verify=True) or candidate
            if verified.good:
                return Choice(verified, tuple(damaged))
            damaged.append(verified)
        return Choice(None, tuple(damaged))

    def choose_for_resume(self) -> Choice | None:
        """The newest good checkpoint and the damaged ones passed over; None if there never was a
        checkpoint.

        Raises `NoGoodCheckpoint` if there are only damaged ones, quarantine included.
        """
        choice = self.newest_good()
        if choice.entry:
            return choice
        aside = [e for e in self.entries() if e.in_quarantine and e.kind != "error"]
        if choice.damaged or aside:
            raise NoGoodCheckpoint(self.trial, [*choice.damaged, *aside])
        return None

    def quarantine(self, entry: Entry) -> Location:
        """Move a damaged checkpoint into `quarantine/`, as it is, under a free name; where it lies
        now.
        """
        name = entry.path.replace("/", "_")
        with storage_errors(f"Setting aside {entry.path}", entry.location):
            target, k = self.trial / QUARANTINE / name, 0
            while target.exists():
                k += 1
                target = self.trial / QUARANTINE / f"{name}.{k}"
            move_checkpoint(entry.location, target)
        return target

    def sweep(self) -> list[str]:
        """Repair and clear away what crashes left; only before the first commit of this process."""
        return sweep(self.trial)

    def _look_at(self, names: list[str], verify: bool) -> list[Entry]:
        found = in_parallel(lambda n: self.entry(n, verify), names, serial=self.trial.is_local)
        present = [entry for entry in found if entry is not None]
        return sorted(present, key=lambda e: (e.in_quarantine, e.iteration, e.path))


def _is_plain_name(name: str) -> bool:
    return not name.startswith(".") and not name.endswith((NEW, OLD))


def _is_checkpoint_name(name: str) -> bool:
    return bool(_NUMBERED.fullmatch(name)) or name in ("best", "final")


def _told_by_name(path: str) -> tuple[str, int]:
    name = path.removeprefix(QUARANTINE + "/")
    numbered = _NUMBERED.match(name)
    if numbered:
        return _KIND_OF_PLACE[numbered[1]], int(numbered[2])
    if path.startswith(STAGES + "/") or name.startswith(STAGES + "_"):
        return "stage", -1
    return _KIND_OF_PLACE.get(name.partition(".")[0], "periodic"), -1


def _newest_first(entry: Entry) -> tuple[int, int]:
    kind_of_place, _ = _told_by_name(entry.path)
    return -entry.iteration, _PREFERENCE.index(kind_of_place)
