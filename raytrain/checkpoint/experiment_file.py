"""`experiment.json`: what an experiment is, for every process that works on it and for its continuation.

    {"format": 1, "name": ..., "run_id": ..., "config": {...}, "config_digest": ...,
     "snapshot": {"strategy": ..., "exact": ..., "reason": ..., ...}, "parent": null,
     "fork": null, "versions": {"raytrain": ..., "ray": ..., "torch": ..., ...},
     "first_start": "2026-01-01T00:00:00+00:00", "signature": ... (see `signing`)}

It is written before Ray starts, replaced atomically, and holds all that is needed to build the Tuner
anew if Tune's own files are gone. `config` is that of the last start: what may differ on continuing
(stop, checkpoint, failure, ...) is taken from here by the trials. `parent` and `fork` say where a fork
began (see `lineage`).
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import UnionType
from typing import Any

from raytrain.errors import BadInput
from raytrain.storage.json import moment, read_json
from raytrain.storage.location import Location, storage_errors
from raytrain.storage.signing import KEY_VARIABLE, SIGNATURE, signed, signing_key, unsigned

EXPERIMENT_FILE = "experiment.json"
FORMAT = 1


class ExperimentFileError(BadInput):
    """`experiment.json` is missing or damaged. Or not for this process, if `is_damage` is False: it is signed with
    another key, or of another format."""

    def __init__(self, message: str, *, is_damage: bool = True) -> None:
        super().__init__(message)
        self.is_damage = is_damage


@dataclass(frozen=True)
class ExperimentFile:
    """See the module's docstring."""

    name: str
    run_id: str
    config: Mapping[str, Any]
    config_digest: str
    snapshot: Mapping[str, Any]
    versions: Mapping[str, str]
    first_start: str
    parent: Mapping[str, str] | None = None
    fork: Mapping[str, Any] | None = None
    was_signed: bool = False
    """Whether the file that was read has a signature, checked or not."""

    def write(self, experiment: Location) -> None:
        """Put it into the experiment's directory, atomically."""
        with storage_errors("Writing experiment.json", experiment):
            experiment.make()
            plain = {name: value for name, value in asdict(self).items() if name != "was_signed"}
            data = json.dumps(signed("experiment", {"format": FORMAT, **plain}), indent=1)
            experiment.write_atomic(EXPERIMENT_FILE, data.encode())

    @classmethod
    def read(cls, experiment: Location) -> ExperimentFile | None:
        """The file of an experiment's directory, or None if there is none.

        Raises:
            ExperimentFileError: it is damaged, of another format, or not signed with this process's
                key.
        """
        place = experiment / EXPERIMENT_FILE
        try:
            with storage_errors("Reading experiment.json", place):
                try:
                    plain = read_json(place)
                except FileNotFoundError:
                    return None
            if plain.get("format") != FORMAT:
                raise ExperimentFileError(
                    f"{place} has format {plain.get('format')!r}; this raytrain reads {FORMAT}.",
                    is_damage=False,
                )
            was_signed = SIGNATURE in plain
            plain = _trusted(plain, place)
            # Files of before there were forks have no such key.
            plain.setdefault("fork", None)
            _require_types(plain)
            return cls(
                **{f.name: plain[f.name] for f in fields(cls) if f.name != "was_signed"},
                was_signed=was_signed,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ExperimentFileError(
                f"{place} is damaged ({type(error).__name__}: {error}). Delete it and run "
                "`raytrain train CONFIG` with the experiment's config; checkpoints are not affected."
            ) from None


_TYPES: Mapping[str, type | UnionType] = {
    "name": str,
    "run_id": str,
    "config": dict,
    "config_digest": str,
    "snapshot": dict,
    "versions": dict,
    "first_start": str,
    "parent": dict | None,
    "fork": dict | None,
}
_PARENT = ("experiment", "trial", "checkpoint", "weights_sha256")


def _require_types(plain: Mapping[str, Any]) -> None:
    """Raise `TypeError`, `ValueError` or `KeyError`, naming what is wrong."""
    for key, wanted in _TYPES.items():
        if not isinstance(plain[key], wanted):
            raise TypeError(f"{key} is {plain[key]!r:.100}")
    moment(plain["first_start"])
    if plain["parent"] is not None:
        _require_generation("parent", plain["parent"])
    for each in (plain["fork"] or {}).get("ancestors", ()):
        _require_generation("fork.ancestors", each)


def _require_generation(where: str, found: Mapping[str, Any]) -> None:
    counts = {key: found[key] for key in ("iteration", "timesteps") if key in found}
    texts = {key: found[key] for key in _PARENT}
    for wanted, values in ((int, counts), (str, texts)):
        for key, value in values.items():
            if not isinstance(value, wanted):
                raise TypeError(f"{where}: {key} is {value!r:.100}")


def _trusted(plain: Mapping[str, Any], place: Location) -> dict[str, Any]:
    try:
        return unsigned("experiment", plain)
    except ValueError as error:
        raise ExperimentFileError(
            f"{place} is not trusted: {error}. Use the key that the run was started with; if the "
            "directory was never signed, run without the key, or train under another --name.",
            is_damage=False,
        ) from None


def require_key(experiment: ExperimentFile, place: Location) -> None:
    """Raise `BadInput` in a process without a key that is about to write into a signed run: its
    checkpoints would be refused by all others."""
    if experiment.was_signed and signing_key() is None:
        raise BadInput(
            f"{place} is signed, but {KEY_VARIABLE} is not set on this machine ({socket.gethostname()}). "
            "Set it there, in the environment in which Ray is started."
        )
