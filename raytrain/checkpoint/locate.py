"""From a person's path argument to checkpoints: for commands that look at many, and for policies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from raytrain.checkpoint.catalogue import Catalogue, Entry
from raytrain.checkpoint.resolve import is_trial, resolve, trials
from raytrain.checkpoint.verify import fetch
from raytrain.errors import BadInput
from raytrain.storage.location import Location, storage_errors
from raytrain.storage.scratch import scratch
from raytrain.storage.signing import signing_key

_POLICY_FILE = "policy.json"


Track = Callable[[list[tuple[Location, str]]], Iterable[tuple[Location, str]]]
"""Passes the checkpoints on, by trial and path, and may show how many are done."""


def trials_at(argument: str) -> tuple[Location, list[Location]]:
    """An experiment's or a trial's directory, and the trials of it.

    Raises:
        BadInput: there is neither at `argument`.
    """
    place = Location.of(argument)
    with storage_errors("Looking for checkpoints", place):
        if not place.is_dir():
            raise BadInput(
                f"There is no directory {place}. Give an experiment's directory, as `raytrain train` "
                "printed it."
            )
        found = [place] if is_trial(place) else trials(place)
    if not found:
        raise BadInput(
            f"{place} is neither an experiment nor a trial: nothing in it is a checkpoint. Give the "
            "directory that `raytrain train` wrote (<storage_path>/<name>)."
        )
    return place, found


def entries_below(argument: str, track: Track = iter) -> list[tuple[Location, Entry]]:
    """Every checkpoint of an experiment's or a trial's directory, every byte checked, with its trial.

    Raises:
        BadInput: there is neither at `argument`.
    """
    _, found = trials_at(argument)
    listed = [(trial, entry.path) for trial in found for entry in Catalogue(trial).entries()]
    checked = [(trial, Catalogue(trial).entry(path, verify=True)) for trial, path in track(listed)]
    # One may have been deleted since it was listed.
    return [(trial, entry) for trial, entry in checked if entry is not None]


def entries_at(argument: str, track: Track = iter) -> list[tuple[Location, Entry]]:
    """The one checkpoint that `argument` is, damaged or not, or all below it."""
    place = Location.of(argument)
    with storage_errors("Looking for checkpoints", place):
        holds_several = place.is_dir() and (is_trial(place) or bool(trials(place)))
    if holds_several:
        return entries_below(argument, track)
    entry = resolve(argument, damaged_too=True)
    trial = entry.location
    for _ in entry.path.split("/"):
        trial = trial.parent
    return [(trial, entry)]


@contextmanager
def local_policy_directory(argument: str) -> Iterator[Path]:
    """A local directory with the verified policy that `argument` means: an exported policy, or what
    `resolve` makes of it. Where signatures are checked, only a checkpoint: what was exported has
    none."""
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
