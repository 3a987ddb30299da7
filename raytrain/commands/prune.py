"""`raytrain prune`: delete checkpoints that are not needed any more.

Each trial keeps the newest `keep` checkpoints whose every byte is right, `best`, `final`, every
stage, and damaged checkpoints outside of the quarantine. It also keeps checkpoints of another run,
and those that an attempt wrote after a later one had taken over; the next start sets both aside, so
they do not count. Quarantine and diverged states (`error_*`) are deleted only with their options.

Making a plan changes nothing. To prune, the experiment and each trial are locked, so no process
writes there, and the plan is made again under the locks. A checkpoint loses its name or its
manifest first (see `commit`), so a kill leaves no half checkpoint; the next start tidies up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from raytrain.checkpoint import Catalogue, Entry, ExperimentFile, is_of_run
from raytrain.checkpoint.resolve import trials_at
from raytrain.errors import BadInput
from raytrain.storage import DirectoryLock, Location, in_parallel
from raytrain.trial.fencing import FencingToken

_LOCK_WAIT_S = 1.0  # a process that looks at a lock holds it for a moment
_SHOWN = ("kind", "iteration", "size_bytes")


@dataclass(frozen=True)
class Plan:
    """What a prune in the directory `place` deletes, and what it keeps."""

    place: Location
    delete: tuple[Entry, ...]
    keep: tuple[Entry, ...]

    @property
    def frees_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.delete)

    def path(self, entry: Entry) -> str:
        """The path of a checkpoint, relative to `place`."""
        return entry.location.path.removeprefix(self.place.path.rstrip("/") + "/")

    def to_dict(self) -> dict[str, Any]:
        delete = [
            {"path": self.path(entry), **{key: getattr(entry, key) for key in _SHOWN}}
            for entry in self.delete
        ]
        keep = [self.path(entry) for entry in self.keep]
        return {"delete": delete, "keep": keep, "frees_bytes": self.frees_bytes}


@dataclass(frozen=True)
class Rule:
    """What is deleted: all but the newest `keep` good periodic checkpoints; and, if set, the
    quarantine and diverged states."""

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
        BadInput: the directory is neither.
    """
    place, chosen = trials_at(argument)
    return _plan(place, chosen, rule)


def prune(
    argument: str,
    rule: Rule,
    track: Callable[[list[Entry]], Iterable[Entry]] = iter,
    tell: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Delete, and return what was deleted. `tell` gets a message if a lock has to be waited for.

    Raises:
        BadInput: the directory is neither an experiment nor a trial.
        Locked: a run is writing there. Nothing was deleted.
        StorageError: the storage failed; checkpoints that were deleted before are gone.
    """
    place, chosen = trials_at(argument)
    with ExitStack() as locks:
        experiment = place if place not in chosen else place.parent
        if ExperimentFile.read(experiment) is not None:
            locks.enter_context(DirectoryLock(experiment, wait=_LOCK_WAIT_S, tell=tell))
        # It takes a minute to find out whether the holder of a lease lives: ask for all at once.
        held = in_parallel(
            lambda trial: locks.enter_context(DirectoryLock(trial, wait=_LOCK_WAIT_S)),
            chosen,
            serial=place.is_local,
        )
        for trial in chosen:
            Catalogue(trial).sweep()
        locked_plan = _plan(place, chosen, rule)
        for entry in track(list(locked_plan.delete)):
            for lock in held:
                lock.check()
            entry.remove()
    return locked_plan


def _plan(place: Location, chosen: list[Location], rule: Rule) -> Plan:
    delete: list[Entry] = []
    keep: list[Entry] = []
    for trial in chosen:
        catalogue = Catalogue(trial)
        entries = catalogue.entries()
        counts = _counts(trial)
        own = [entry for entry in entries if counts(entry)]
        kept = _newest(catalogue, own, rule.keep)
        old = [entry for entry in own if entry.path not in kept and _deletable(entry, rule)]
        delete += old
        keep += [entry for entry in entries if entry not in old]
    return Plan(place, tuple(delete), tuple(keep))


def _counts(trial: Location) -> Callable[[Entry], bool]:
    """Whether a checkpoint counts as one of this run at the next start."""
    experiment = ExperimentFile.read(trial.parent)
    attempts = FencingToken(trial, DirectoryLock(trial))
    attempts.look()

    def counts(entry: Entry) -> bool:
        own = True
        if entry.manifest is not None and experiment is not None and not entry.in_quarantine:
            own = is_of_run(entry.manifest, experiment.run_id, trial)
        return own and not attempts.is_off_the_line(entry)

    return counts


def _newest(catalogue: Catalogue, entries: list[Entry], count: int) -> set[str]:
    """The paths of the newest `count` periodic checkpoints whose every byte is right, and of
    damaged ones that are newer than the last of them: damage is evidence."""
    paths: set[str] = set()
    good = 0
    for entry in sorted(entries, key=lambda entry: -entry.iteration):
        if good == count:
            break
        if entry.is_disposable:
            verified = catalogue.entry(entry.path, verify=True)
            good += verified is not None and bool(verified.good)
            paths.add(entry.path)
    return paths


def _deletable(entry: Entry, rule: Rule) -> bool:
    if entry.in_quarantine:
        return rule.quarantine
    if entry.path.startswith("error_"):
        return rule.errors
    return entry.is_disposable and entry.good is not False
