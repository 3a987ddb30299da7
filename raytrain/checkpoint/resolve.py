"""From a path argument to a checkpoint.

    CHECKPOINT              that one
    TRIAL_DIR               its newest good checkpoint
    EXPERIMENT_DIR          the newest good checkpoint of its only trial
    TRIAL_DIR:best  EXPERIMENT_DIR:final          the checkpoint of that name

Each may be a local path or a URI. The checkpoint returned was verified byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from raytrain.checkpoint.catalogue import Catalogue, Entry, NoGoodCheckpoint
from raytrain.checkpoint.commit import DamagedCheckpoint, state_of
from raytrain.checkpoint.file_names import (
    FIXED_NAMES,
    QUARANTINE,
    STAGES,
    numbered,
    split,
    target_of,
)
from raytrain.checkpoint.verify import fetch
from raytrain.errors import BadInput
from raytrain.storage.location import Location, storage_errors
from raytrain.storage.scratch import scratch
from raytrain.storage.signing import signing_key

_GIVE = "Give the directory that `raytrain train` wrote (<storage_path>/<name>)."
_TRIAL_FILES = frozenset({"result.json", "params.json", "progress.csv"})


def trials(experiment: Location) -> list[Location]:
    """The trial directories of an experiment, by name; empty if it has none."""
    with storage_errors("Listing the trials", experiment):
        below = [experiment / name for name in experiment.subdirectories()]
        return [place for place in below if place.name[0] != "." and is_trial(place)]


def is_trial(place: Location) -> bool:
    """Whether there are checkpoints in it, or the results that Tune writes for a trial."""
    return any(
        name in _TRIAL_FILES
        or _is_checkpoint(name)
        or (name in (STAGES, QUARANTINE) and entry.is_dir)
        for name, entry in place.listed().items()
    )


def resolve(argument: str, *, damaged_too: bool = False) -> Entry:
    """The verified checkpoint that a path argument means.

    Raises:
        BadInput: it means none or several.
        DamagedCheckpoint: the one named is damaged. With `damaged_too` it is returned instead, and
            its `problem` says why.
        NoGoodCheckpoint: a trial has only damaged ones.
    """
    path, _, fixed = argument.rpartition(":")
    if fixed not in FIXED_NAMES or not path:
        path, fixed = argument, ""
    place = Location.of(path)
    with storage_errors("Looking for the checkpoint", place):
        if not place.is_dir():
            before, colon, name = argument.rpartition(":")
            if colon and not fixed and Location.of(before).is_dir():
                raise BadInput(
                    f"There is no name {name!r} for a checkpoint of {before}. After the colon "
                    f"write {' or '.join(FIXED_NAMES)}; give others by their directory, such as "
                    f"{before}/{STAGES}/NAME."
                )
            raise BadInput(
                f"There is no directory {place}. "
                "Give a checkpoint, a trial or an experiment directory."
            )
        if fixed:
            return _named(_only_trial(place) / fixed, damaged_too)
        if state_of(place) == "committed" or _is_checkpoint(place.name):
            return _named(place, damaged_too)
        if place.parent.name == STAGES and not is_trial(place):
            return _named(place, damaged_too)
        trial = _only_trial(place)
    choice = Catalogue(trial).newest_good()
    if choice.entry:
        return choice.entry
    if choice.damaged:
        raise NoGoodCheckpoint(trial, list(choice.damaged))
    raise BadInput(
        f"There is no checkpoint in {trial} yet. Wait for the first one, or name another directory."
    )


def _is_checkpoint(name: str) -> bool:
    return name in FIXED_NAMES or numbered(name) is not None


def _only_trial(place: Location) -> Location:
    if is_trial(place):
        return place
    candidates = trials(place)
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise BadInput(f"{place} is neither a checkpoint nor a trial nor an experiment. {_GIVE}")
    lines = "".join(f"\n  {trial}" for trial in candidates)
    raise BadInput(f"{place} has {len(candidates)} trials; name one of them:{lines}")


def _named(place: Location, damaged_too: bool) -> Entry:
    trial, path = split(place)
    entry = Catalogue(trial).entry(target_of(path) or path, verify=True)
    if entry is None:
        raise BadInput(
            f"There is no complete checkpoint at {place}. "
            f"`raytrain checkpoints {trial}` lists the existing ones."
        )
    if entry.good is False and not damaged_too:
        raise DamagedCheckpoint(place, entry.problem or "set aside as damaged")
    return entry


_POLICY_FILE = "policy.json"

Track = Callable[[list[Entry]], Iterable[Entry]]
"""Passes the checkpoints on, and may show progress."""


def require_directory(place: Location) -> None:
    """Raise `BadInput` unless there is a directory at `place`, where an experiment is expected."""
    if not place.is_dir():
        raise BadInput(f"There is no directory {place}. {_GIVE}")


def trials_at(argument: str) -> tuple[Location, list[Location]]:
    """The directory of an experiment or a trial, and its trials. Raises `BadInput` if
    it is neither."""
    place = Location.of(argument)
    with storage_errors("Looking for checkpoints", place):
        require_directory(place)
        below = [place] if is_trial(place) else trials(place)
    if not below:
        raise BadInput(f"{place} is neither an experiment nor a trial. {_GIVE}")
    return place, below


def entries_below(argument: str, track: Track = iter) -> list[Entry]:
    """Every checkpoint of an experiment or a trial, with every byte checked. Raises `BadInput` if
    `argument` is neither."""
    _, below = trials_at(argument)
    listed = [entry for trial in below for entry in Catalogue(trial).entries()]
    checked = [Catalogue(entry.trial).entry(entry.path, verify=True) for entry in track(listed)]
    return [entry for entry in checked if entry is not None]  # None: deleted since the listing


def entries_at(argument: str, track: Track = iter) -> list[Entry]:
    """The one checkpoint that `argument` is, damaged or not, or all below it."""
    place = Location.of(argument)
    with storage_errors("Looking for checkpoints", place):
        holds_several = place.is_dir() and (is_trial(place) or bool(trials(place)))
    if holds_several:
        return entries_below(argument, track)
    return [resolve(argument, damaged_too=True)]


@contextmanager
def local_policy_directory(argument: str) -> Iterator[Path]:
    """A local directory with the verified policy that `argument` means: an exported policy, or the
    checkpoint that `resolve` finds. Where signatures are checked, only a checkpoint, since an
    exported policy has no signature."""
    place = Location.of(argument)
    with_key = signing_key() is not None
    if place.is_local and place.is_dir() and (place / _POLICY_FILE).exists() and not with_key:
        yield place.local_path
        return
    entry = resolve(argument)
    if entry.location.is_local and not with_key:
        yield entry.location.local_path
        return
    with scratch("policy") as directory:
        yield fetch(entry.location, directory / "policy")
