"""The directories of a trial that may hold a checkpoint, from one listing of the storage.

<trial>/NAME                   checkpoint_000012, error_000012, best, final
<trial>/stages/NAME  <trial>/quarantine/NAME
NAME.ATTEMPT                   elsewhere than on a local disk: checkpoint_000012.2, of attempt 2
NAME.ATTEMPT-NUMBER[-K].new    best, final or a stage, complete, on its way into its place
NAME.ATTEMPT-NUMBER[-K].old    what it replaces, on a local disk
.NAME.ATTEMPT-ITERATION.incoming  .NAME.outgoing  .NAME.TOKEN.aside
                               on its way in, out, or into the quarantine, on a local disk
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping

from raytrain.storage.location import Listed, Location

QUARANTINE, STAGES = "quarantine", "stages"
ATTEMPTS = "attempts"  # the writers and their records: `trial.fencing`, `records.remote_copy`
NEW, OLD = ".new", ".old"
INCOMING, OUTGOING, ASIDE = ".incoming", ".outgoing", ".aside"
FIXED_NAMES = ("best", "final")

_NUMBERED = re.compile(r"(checkpoint|error)_(\d+)(?:\.\d+)?")
# Former versions wrote no numbers.
_IN_PASSING = re.compile(r"(.+?)(?:\.(\d+)-(\d+)(?:-(\d+))?)?\.(?:new|old)")
_ON_ITS_WAY_ASIDE = re.compile(r"((?:.+/)?)\.([^/]+)\.[0-9a-f]+\.aside")


def by_directory(trial: Location) -> dict[str, dict[str, Listed]]:
    """Every directory in these places, whatever it is, with everything below it."""
    directories: dict[str, dict[str, Listed]] = {}
    for path, listed in trial.tree().items():
        parts = path.split("/")
        depth = 2 if parts[0] in (QUARANTINE, STAGES) else 1
        inner = "/".join(parts[depth:])
        if inner:
            directories.setdefault("/".join(parts[:depth]), {})[inner] = listed
        elif len(parts) == depth and listed.is_dir:
            directories.setdefault(path, {})
    return directories


def split(place: Location) -> tuple[Location, str]:
    """The trial of a checkpoint's directory, and its path relative to the trial."""
    holder = place.parent
    if holder.name in (STAGES, QUARANTINE):
        return holder.parent, f"{holder.name}/{place.name}"
    return holder, place.name


def file_sizes(listing: Mapping[str, Listed]) -> dict[str, int]:
    """The files of a listing, with their sizes."""
    return {name: entry.size for name, entry in listing.items() if not entry.is_dir}


def numbered(name: str) -> tuple[str, int] | None:
    """`("checkpoint", 12)` for `checkpoint_000012`, of any attempt; None for another name."""
    match = _NUMBERED.fullmatch(name)
    return None if match is None else (match[1], int(match[2]))


def own_name(trial: Location, name: str, attempt: int) -> str:
    """The name under which a checkpoint is written. A numbered one includes the attempt, so
    that no other attempt writes there. On a local disk a rename ensures that; attempt 1 has
    none before it."""
    if trial.is_local or attempt <= 1 or not numbered(name):
        return name
    return f"{name}.{attempt}"


def has_fixed_name(path: str) -> bool:
    """Whether this is `best`, `final` or a stage, which are replaced."""
    return path in FIXED_NAMES or path.startswith(STAGES + "/")


def versions_of(path: str, directories: Iterable[str]) -> list[str]:
    """Those of the directories that were written to become `path`, or were it."""
    return [directory for directory in directories if target_of(directory) == path]


def target_of(path: str) -> str | None:
    """`best` for `best.2-17.new`; None if this is not a checkpoint on its way."""
    match = _IN_PASSING.fullmatch(path)
    return match[1] if match and has_fixed_name(match[1]) else None


def order_of(path: str) -> tuple[int, int, int]:
    """Attempt and number of a checkpoint on its way, and how often the same name was taken."""
    match = _IN_PASSING.fullmatch(path)
    if match is None or match[2] is None:
        return -1, -1, 0
    return int(match[2]), int(match[3]), int(match[4] or 0)


def is_passing_name(name: str) -> bool:
    """Whether this is a directory on its way in or out, on a local disk."""
    return name.startswith(".") and name.endswith((INCOMING, OUTGOING))


def way_aside(name: str) -> str:
    """The name of a checkpoint on its way into the quarantine, in the directory where it was."""
    return f".{name}.{uuid.uuid4().hex}{ASIDE}"


def taken_from(path: str) -> str | None:
    """The former path of a checkpoint on its way aside at `path`; None if it is not on its way."""
    match = _ON_ITS_WAY_ASIDE.fullmatch(path)
    return match[1] + match[2] if match else None


def is_plain_name(name: str) -> bool:
    """Whether this is not a directory on its way."""
    return not name.startswith(".") and not name.endswith((NEW, OLD))
