"""`experiment.json`: what an experiment is, for every process that works on it and for resuming it.

    {"format": 1, "name": ..., "run_id": ..., "config": {...}, "config_digest": ...,
     "snapshot": {"strategy": ..., "exact": ..., "reason": ..., ...}, "parent": null,
     "fork": null, "versions": {"raytrain": ..., "ray": ..., "torch": ..., ...},
     "code": {"files": {"my_env.py": ..., ...}, "packages": {"mujoco": "3.3.0", ...}},
     "first_start": "2026-01-01T00:00:00+00:00",
     "arithmetic": {"settings": {"threads": {...}, "hash_seed": ..., "portable": ...},
                    "computed_by": [see `manifest`, ...]}, "signature": ... (see `signing`)}

It is written before Ray starts, replaced atomically, and holds all that is needed to rebuild the
Tuner if Tune's own files are gone. `config` is that of the last start: the trials take from here
what may change on a resume (stop, checkpoint, failure, ...). `parent` and `fork` say where a fork
began (see `lineage`). `versions` and `code` (see `config.run_code`; null: an earlier version wrote
the file) are those of the last start.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import InstanceOf, StrictInt, TypeAdapter

from raytrain.arithmetic.settings import ArithmeticSettings
from raytrain.errors import BadInput
from raytrain.storage.json import Moment, Text, read_json, validated
from raytrain.storage.location import Location, storage_errors
from raytrain.storage.signing import KEY_VARIABLE, SIGNATURE, signed, signing_key, unsigned

EXPERIMENT_FILE = "experiment.json"
FORMAT = 1
WRITTEN_CODE = "code"
"""The directory of an experiment for modules that were written for it (see `migrate`)."""


class ExperimentFileError(BadInput):
    """`experiment.json` is missing or damaged; with `is_damage` False it is signed with another
    key, or has another format."""

    def __init__(self, message: str, *, is_damage: bool = True) -> None:
        super().__init__(message)
        self.is_damage = is_damage


@dataclass(frozen=True)
class _Generation:
    """What is checked of a generation (see `lineage`), which may hold more."""

    experiment: Text
    trial: Text
    checkpoint: Text
    weights_sha256: Text
    iteration: StrictInt = 0
    timesteps: StrictInt = 0


_Object: TypeAlias = Annotated[Mapping[str, Any], InstanceOf()]


@dataclass(frozen=True)
class ExperimentFile:
    """See the module's docstring. The types are checked when the file is read."""

    name: Text
    run_id: Text
    config: _Object
    config_digest: Text
    snapshot: _Object
    versions: _Object
    first_start: Moment
    parent: _Object | None = None
    fork: _Object | None = None
    arithmetic: _Object | None = None
    code: Mapping[Text, Mapping[Text, Text]] | None = None
    was_signed: bool = False
    """Whether the file that was read has a signature, checked or not."""

    def write(self, experiment: Location) -> None:
        """Put it into the experiment's directory, atomically."""
        with storage_errors("Writing experiment.json", experiment):
            experiment.make()
            plain = asdict(self)
            del plain["was_signed"]
            data = json.dumps(signed("experiment", {"format": FORMAT, **plain}), indent=1)
            experiment.write_atomic(EXPERIMENT_FILE, data.encode())

    @classmethod
    def read(cls, experiment: Location) -> ExperimentFile | None:
        """The file of an experiment's directory, or None if there is none.

        Raises:
            ExperimentFileError: it is damaged, of another format, or not signed with this key.
        """
        place = experiment / EXPERIMENT_FILE
        try:
            with storage_errors("Reading experiment.json", place):
                try:
                    plain = read_json(place)
                except FileNotFoundError:
                    return None
            if not isinstance(plain, dict):
                raise ValueError(f"it is a JSON {type(plain).__name__}, not an object")
            if plain.get("format") != FORMAT:
                raise ExperimentFileError(
                    f"{place} has format {plain.get('format')!r}; this raytrain reads format "
                    f"{FORMAT}. Use the version of raytrain that wrote it.",
                    is_damage=False,
                )
            try:
                content = unsigned("experiment", plain)
            except ValueError as error:
                raise ExperimentFileError(
                    f"{place} is not trusted: {error}. Use the key that the run was started with. "
                    "If the directory was never signed, run without the key, or train under "
                    "another --name.",
                    is_damage=False,
                ) from None
            experiment_file = validated(_SCHEMA, {**content, "was_signed": SIGNATURE in plain})
            if experiment_file.arithmetic is not None:
                ArithmeticSettings.read(experiment_file.arithmetic.get("settings"))
            parent, fork = experiment_file.parent, experiment_file.fork or {}
            for generation in [*([] if parent is None else [parent]), *fork.get("ancestors", ())]:
                validated(_GENERATION, generation)
            return _with_own_code(experiment_file, experiment)
        except (TypeError, ValueError) as error:
            raise ExperimentFileError(
                f"{place} is damaged ({error}). Delete it and run `raytrain train CONFIG` with the "
                "experiment's config; checkpoints are not affected."
            ) from None

    @classmethod
    def existing(cls, experiment: Location) -> ExperimentFile:
        """As `read`, and `ExperimentFileError` if there is none."""
        experiment_file = cls.read(experiment)
        if experiment_file is None:
            raise ExperimentFileError(
                f"{experiment} holds no {EXPERIMENT_FILE}, so it is not an experiment's directory. "
                "Give the directory that `raytrain train` printed; `raytrain list STORAGE` lists "
                "experiments. If the file was lost, `raytrain train CONFIG` writes it again."
            )
        return experiment_file


_SCHEMA, _GENERATION = TypeAdapter(ExperimentFile), TypeAdapter(_Generation)


def _with_own_code(experiment_file: ExperimentFile, place: Location) -> ExperimentFile:
    """Modules that were written into the directory are looked for in it, wherever it is now."""
    import_path = Path(str(experiment_file.config.get("import_path") or ""))
    if import_path.name != WRITTEN_CODE or not place.is_local:
        return experiment_file
    here = place.local_path / WRITTEN_CODE
    if not here.is_dir():
        return experiment_file
    return replace(experiment_file, config={**experiment_file.config, "import_path": str(here)})


def require_key(experiment: ExperimentFile, place: Location) -> None:
    """Raise `BadInput` in a process without a key that is about to write into a signed run: all
    others would refuse its checkpoints."""
    if experiment.was_signed and signing_key() is None:
        raise BadInput(
            f"{place} is signed, but {KEY_VARIABLE} is not set on this machine "
            f"({socket.gethostname()}). Set it there, in the environment in which Ray is started."
        )
