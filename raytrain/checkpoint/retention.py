"""Which checkpoints of a trial are kept, and the deletion of the others.

Only periodic and interrupted checkpoints in `checkpoint_*` directories are ever deleted. Stages,
best, final, error checkpoints, the quarantine, and everything damaged are left alone: damage is
evidence, and does not count as kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raytrain.checkpoint.catalogue import Catalogue, Entry
from raytrain.checkpoint.commit import Fence, nothing
from raytrain.storage.parallel import in_parallel

_DISPOSABLE = frozenset({"periodic", "interrupted"})


@dataclass(frozen=True)
class RetentionPolicy:
    """Keep the good checkpoints of the newest `num_to_keep` iterations; all of them if it is None."""

    num_to_keep: int | None

    def __post_init__(self) -> None:
        if self.num_to_keep is not None and self.num_to_keep < 1:
            raise ValueError(
                f"num_to_keep is {self.num_to_keep}; keep at least 1, or None to keep all"
            )


def surplus(entries: Sequence[Entry], policy: RetentionPolicy) -> list[Entry]:
    """The entries to delete, the oldest first."""
    if policy.num_to_keep is None:
        return []
    good = [
        entry
        for entry in entries
        if entry.is_periodic_place and entry.kind in _DISPOSABLE and entry.good is not False
    ]
    kept = sorted({entry.iteration for entry in good})[-policy.num_to_keep :]
    return sorted((e for e in good if e.iteration < kept[0]), key=lambda e: e.iteration)


def prune(
    catalogue: Catalogue,
    policy: RetentionPolicy,
    fence: Fence | None = None,
    off_the_line: Callable[[Entry], bool] = lambda entry: False,
    spared: Callable[[Entry], bool] = lambda entry: False,
) -> list[Entry]:
    """Delete the surplus of a trial; what was deleted. Raises `StorageError`, and what `fence` raises: it
    is called between the look and the deletion. What is `off_the_line` of the run is left alone, and does
    not count as kept; what is `spared` stays beside those that are kept.
    """
    if policy.num_to_keep is None:
        return []
    own = [entry for entry in catalogue.periodic() if not off_the_line(entry)]
    deleted = [entry for entry in surplus(own, policy) if not spared(entry)]
    fence = fence or nothing
    if deleted:
        fence()
    in_parallel(lambda entry: entry.remove(fence), deleted, serial=catalogue.trial.is_local)
    return deleted
