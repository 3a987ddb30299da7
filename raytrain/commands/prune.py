"""`raytrain prune`: delete checkpoints that nobody needs any more.

For each trial are kept: the newest `keep` checkpoints of which every byte is right, `best`, `final`,
every stage, whatever is damaged where it lies, and what is of another run, or was written by an attempt
after a later one had taken over (the next start sets these aside, so they do not count). The quarantine and
the states kept for a post-mortem (`error_*`) go only if that is asked for.

A plan is made without touching anything. To carry it out, the experiment and each trial are locked,
so nobody is writing there; the plan is made anew under the locks. A checkpoint loses its name or its
manifest first (see `commit`), so a kill in the middle leaves no half checkpoint, and what it leaves is
cleared away by the next prune or the next start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from raytrain.checkpoint import Catalogue, Entry, ExperimentFile, is_of_run
from raytrain.checkpoint.resolve import trials_at
from raytrain.errors import BadInput
from raytrain.storage import DirectoryLock, Location, in_parallel
from raytrain.trial.fencing import FencingToken

_LOOKERS_S = 1.0  # somebody who looks at a lock holds it for a moment


@dataclass(frozen=True)
class Victim:
    """A checkpoint to delete; `path` is relative to the directory that was asked for."""

    path: str
    kind: str
    iteration: int
    size_bytes: int


@dataclass(frozen=True)
class Plan:
    """What a prune deletes, and the paths of what it keeps."""

    delete: tuple[Victim, ...]
    keep: tuple[str, ...]

    @property
    def frees_bytes(self) -> int:
        return sum(each.size_bytes for each in self.delete)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "frees_bytes": self.frees_bytes}


@dataclass(frozen=True)
class Rule:
    """What may go: all but the newest `keep` good periodic checkpoints; the rest only if asked for."""

    keep: int = 1
    quarantine: bool = False
    errors: bool = False

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise BadInput(
                f"--keep {self.keep}: the newest good checkpoint is always kept; give 1 or more"
            )


def plan(argument: str, rule: Rule) -> Plan:
    """What would be deleted in an experiment's or a trial's directory.

    Raises:
        BadInput: there is neither.
    """
    place, chosen = trials_at(argument)
    return _as_plan(place, [_sorted_out(trial, rule) for trial in chosen])


def prune(
    argument: str,
    rule: Rule,
    track: Callable[[list[Entry]], Iterable[Entry]] = iter,
    tell: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Delete; what was deleted. `tell` hears of it when that has to wait.

    Raises:
        BadInput: there is neither an experiment nor a trial.
        Locked: a run is writing there. Nothing was deleted.
        StorageError: the storage refused; what was deleted before that is gone.
    """
    place, chosen = trials_at(argument)
    with ExitStack() as locks:
        experiment = place if place not in chosen else place.parent
        if ExperimentFile.read(experiment) is not None:
            locks.enter_context(DirectoryLock(experiment, wait=_LOOKERS_S, tell=tell))
        # Whether the holder of a lease lives takes a minute to find out: of all at once.
        held = in_parallel(
            lambda trial: locks.enter_context(DirectoryLock(trial, wait=_LOOKERS_S)),
            chosen,
            serial=place.is_local,
        )
        for trial in chosen:
            Catalogue(trial).sweep()
        sorted_out = [_sorted_out(trial, rule) for trial in chosen]
        for entry in track([entry for delete, _ in sorted_out for entry in delete]):
            for lock in held:
                lock.check()
            entry.remove()
    return _as_plan(place, sorted_out)


def _sorted_out(trial: Location, rule: Rule) -> tuple[list[Entry], list[Entry]]:
    """What goes and what stays, of one trial."""
    catalogue = Catalogue(trial)
    entries = catalogue.entries()
    counts = _counts(trial)
    own = [entry for entry in entries if counts(entry)]
    kept = _looked_at(catalogue, own, rule.keep)
    delete = [entry for entry in own if entry.path not in kept and _may_go(entry, rule)]
    return delete, [entry for entry in entries if entry not in delete]


def _counts(trial: Location) -> Callable[[Entry], bool]:
    """Whether the next start would take a checkpoint for one of this run."""
    experiment = ExperimentFile.read(trial.parent)
    attempts = FencingToken(trial, DirectoryLock(trial))
    attempts.look()

    def counts(entry: Entry) -> bool:
        if entry.manifest is not None and experiment is not None and not entry.in_quarantine:
            own = is_of_run(entry.manifest, experiment.run_id, trial)
        else:
            own = True
        return own and not attempts.is_off_the_line(entry)

    return counts


def _looked_at(catalogue: Catalogue, entries: list[Entry], count: int) -> set[str]:
    """The paths of the newest `count` periodic checkpoints of which every byte was read and is right,
    and of the damaged ones that were met on the way: damage is evidence."""
    paths: set[str] = set()
    good = 0
    for entry in sorted(entries, key=lambda each: -each.iteration):
        if good == count:
            break
        if entry.is_disposable:
            verified = catalogue.entry(entry.path, verify=True)
            good += verified is not None and bool(verified.good)
            paths.add(entry.path)
    return paths


def _may_go(entry: Entry, rule: Rule) -> bool:
    if entry.in_quarantine:
        return rule.quarantine
    if entry.path.startswith("error_"):
        return rule.errors
    return entry.is_disposable and entry.good is not False


def _as_plan(place: Location, sorted_out: list[tuple[list[Entry], list[Entry]]]) -> Plan:
    start = place.path.rstrip("/") + "/"

    def path(entry: Entry) -> str:
        return entry.location.path.removeprefix(start)

    delete = tuple(
        Victim(path(entry), entry.kind, entry.iteration, entry.size_bytes)
        for gone, _ in sorted_out
        for entry in gone
    )
    return Plan(delete, tuple(path(entry) for _, kept in sorted_out for entry in kept))
