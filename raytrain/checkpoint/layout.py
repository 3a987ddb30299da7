"""The directories of a trial in which a checkpoint may lie, from one listing of the storage.

<trial>/NAME                   checkpoint_000012, error_000012, best, final
<trial>/stages/NAME  <trial>/quarantine/NAME
NAME.new  NAME.old             a replacement on its way
.NAME.incoming .NAME.outgoing  a checkpoint on its way in or out, on a local disk
"""

from __future__ import annotations

from raytrain.checkpoint.storage import Listed, Location

QUARANTINE, STAGES = "quarantine", "stages"
NEW, OLD = ".new", ".old"


def by_directory(trial: Location) -> dict[str, dict[str, Listed]]:
    """Every directory at these places, whatever it is, and all that is below it."""
    found: dict[str, dict[str, Listed]] = {}
    for path, listed in trial.tree().items():
        parts = path.split("/")
        depth = 2 if parts[0] in (QUARANTINE, STAGES) else 1
        inner = "/".join(parts[depth:])
        if inner:
            found.setdefault("/".join(parts[:depth]), {})[inner] = listed
        elif len(parts) == depth and listed.is_dir:
            found.setdefault(path, {})
    return found


def is_passing_name(name: str) -> bool:
    """Is this the name of a directory on its way in or out, on a local disk?"""
    return name.startswith(".") and name.endswith((".incoming", ".outgoing"))


def is_plain_name(name: str) -> bool:
    """Is this no directory that is on its way?"""
    return not name.startswith(".") and not name.endswith((NEW, OLD))
