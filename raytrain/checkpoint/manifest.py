"""`manifest.json`: what a checkpoint is, and the mark that it is complete.

The manifest is written after every other file of its checkpoint. It is strict JSON. Its keys are:

    format             1
    kind               periodic | stage | best | final | interrupted | error
    experiment, trial_id, run_id
    attempt            which start of the trial wrote it; grows by one with each restart
    iteration, timesteps, episodes
    stage              name of the curriculum stage, or null
    score              a number, or null (none yet, or not a finite number)
    metrics            the result of the iteration, for a resume from this checkpoint
    config_digest, weights_sha256
    parent             null, or {experiment, trial, checkpoint, weights_sha256} of the fork's origin
    exact              true, or false with
    exact_lost         null, or {why, since_iteration}
    snapshot_strategy  how the environments' states were saved, or null
    versions           {"raytrain": ..., "ray": ..., "torch": ...}
    code               {"files": {"my_env.py": its SHA-256, ...}, "packages": {"mujoco": "3.3.0"}},
                       see `config.run_code`; not in manifests of earlier versions
    created_at         ISO 8601 with offset
    files              [{path, size, sha256}, ...]; paths relative to the checkpoint, with "/"
    replacement        only in best, final and stages: [attempt, number] of the replacement that put
                       it there, each higher than the one that it replaced (see `replacement`)
    arithmetic         what computed it: {"settings": {threads, hash_seed, portable}, and for
                       "learner", "env_runner" and "evaluation_runner": {"fingerprint": text,
                       "machine": {...} (see `arithmetic.machine`)}}; absent in manifests of
                       raytrain 0.1
    signature          only where a signing key is set, see `signing`

JSON has no NaN and no infinity. Inside `metrics` they are written {"$float": "nan" | "inf" |
"-inf"}; to keep that unambiguous, a metric's own name that starts with "$" is written with one more
"$". So metrics come back as they were, except that tuples and arrays are lists and NumPy scalars
are Python numbers.
"""

from __future__ import annotations

import json
import math
import os
import posixpath
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, TypeAlias

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    InstanceOf,
    StrictBool,
    StrictFloat,
    StrictInt,
    TypeAdapter,
)

from raytrain.errors import RaytrainError
from raytrain.storage.json import Moment, Text, parse_json, require_bounds, validated
from raytrain.storage.signing import signed, unsigned

FORMAT = 1
MANIFEST_NAME = "manifest.json"
INCOMPLETE_NAME = ".incomplete"
# What a kill within `Location.write_atomic` leaves on a local disk.
HALF_WRITTEN_NAME = f".{MANIFEST_NAME}.tmp"
KINDS = ("periodic", "stage", "best", "final", "interrupted", "error")


class ManifestError(RaytrainError):
    """A manifest that cannot be read or may not be written; the message names the key."""


def _inner_path(path: str) -> str:
    """Refuse a path that leads out of the checkpoint, or to a file of the protocol."""
    outside = path.startswith(("/", "../")) or path == ".."
    if outside or posixpath.normpath(path) != path or path == "." or "\\" in path or "\0" in path:
        raise ValueError(f"{path!r} is not a plain path inside the checkpoint")
    os.fsencode(path)  # A UnicodeEncodeError, which is a ValueError, if no file can have this name.
    if path in (MANIFEST_NAME, INCOMPLETE_NAME):
        raise ValueError(f"{path!r} is the protocol's own file")
    return path


def _listed_once(files: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
    if len({file.path for file in files}) != len(files):
        raise ValueError("a path is listed twice")
    return files


_Count: TypeAlias = Annotated[int, Field(strict=True, ge=0)]
_Kind: TypeAlias = Annotated[str, Field(strict=True, pattern=f"^({'|'.join(KINDS)})$")]
_SHA256: TypeAlias = Annotated[str, Field(strict=True, pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class FileEntry:
    __pydantic_config__ = ConfigDict(extra="forbid")

    path: Annotated[Text, AfterValidator(_inner_path)]
    size: _Count
    sha256: _SHA256


@dataclass(frozen=True)
class Parent:
    """Where a fork began."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    experiment: Text
    trial: Text
    checkpoint: Text
    weights_sha256: _SHA256


@dataclass(frozen=True)
class ExactLost:
    __pydantic_config__ = ConfigDict(extra="forbid")

    why: Text
    since_iteration: _Count


@dataclass(frozen=True)
class Code:
    __pydantic_config__ = ConfigDict(extra="forbid")

    files: Mapping[Text, Text]
    packages: Mapping[Text, Text]


@dataclass(frozen=True, eq=False)
class Manifest:
    """See the module's docstring. `files` is empty until the commit has hashed them.

    The types are checked when a manifest is read, and before it is written. Two manifests are equal
    if the same is written for both: a metric that is NaN is equal to itself, and an array to the
    list of its values.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    kind: _Kind
    experiment: Text
    trial_id: Text
    run_id: Text
    attempt: _Count
    iteration: _Count
    timesteps: _Count
    episodes: _Count
    stage: Text | None
    score: StrictFloat | None
    metrics: Annotated[Mapping[str, Any], InstanceOf()]
    config_digest: Text
    weights_sha256: _SHA256
    parent: Parent | None
    exact: StrictBool
    exact_lost: ExactLost | None
    snapshot_strategy: Text | None
    versions: Mapping[str, Text]
    created_at: Moment
    files: Annotated[tuple[FileEntry, ...], AfterValidator(_listed_once)] = ()
    replacement: tuple[_Count, _Count] | None = None
    arithmetic: Annotated[Mapping[str, Any], InstanceOf()] | None = None
    code: Code | None = None
    format: StrictInt = FORMAT

    @property
    def stage_number(self) -> tuple[int, int] | None:
        """Which stage of how many `stage` is, counted from 1; None without a curriculum."""
        curriculum = self.metrics.get("curriculum")
        if self.stage is None or not isinstance(curriculum, Mapping):
            return None
        number, of = curriculum.get("stage"), curriculum.get("stages")
        return (number, of) if isinstance(number, int) and isinstance(of, int) else None

    @property
    def stage_text(self) -> str | None:
        """The stage as it is shown: `strong (2 of 3)`."""
        number = self.stage_number
        return self.stage if number is None else f"{self.stage} ({number[0]} of {number[1]})"

    @property
    def time_s(self) -> float:
        """Seconds of training until then."""
        return float(self.metrics.get("time_total_s", 0.0))

    def with_files(self, files: tuple[FileEntry, ...], *, kind: str | None = None) -> Manifest:
        return replace(self, files=files, kind=kind or self.kind)

    def to_json(self) -> bytes:
        """Raises `ManifestError` for a value that would not come back from `from_json`."""
        plain = self._plain()
        _read(plain, "The manifest to be written")
        plain = signed("manifest", plain)
        # A line for each key. (`indent` would do without json's encoder in C: 5 ms a manifest.)
        lines = (
            f"{json.dumps(key)}: {json.dumps(plain[key], sort_keys=True, allow_nan=False)}"
            for key in sorted(plain)
        )
        data = ("{" + ",\n ".join(lines) + "}\n").encode()
        try:
            require_bounds(data)
        except ValueError as error:
            raise ManifestError(f"The manifest to be written: {error}") from None
        return data

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Manifest:
        """`where` is named in errors. Raises `ManifestError`, naming the key and what was found."""
        try:
            plain = parse_json(data, parse_constant=_no_constant)
        except ValueError as error:
            raise ManifestError(f"{where} is not valid JSON: {error}") from error
        if not isinstance(plain, dict):
            raise ManifestError(f"{where} is a JSON {type(plain).__name__}, not an object")
        try:
            content = unsigned("manifest", plain)
        except ValueError as error:
            raise ManifestError(f"{where} is not trusted: {error}") from None
        return _read(content, where)

    def __eq__(self, other: object) -> bool:
        return self._plain() == other._plain() if isinstance(other, Manifest) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.run_id, self.trial_id, self.attempt, self.iteration, self.created_at))

    def _plain(self) -> dict[str, Any]:
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        for optional in _OPTIONAL:
            if plain[optional] is None:
                del plain[optional]
        if self.code is not None:
            plain["code"] = asdict(self.code)
        score = self.score
        plain["score"] = None if score is None or not math.isfinite(score) else float(score)
        plain["metrics"] = _encode(self.metrics, "metrics")
        plain["versions"] = dict(self.versions)
        plain["files"] = [asdict(f) for f in self.files]
        plain["parent"] = asdict(self.parent) if self.parent else None
        plain["exact_lost"] = asdict(self.exact_lost) if self.exact_lost else None
        return plain


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# -- metrics: any nesting of numbers, strings, lists and mappings --------------------------------


def _encode(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        encoded = {}
        for name, item in value.items():
            if not isinstance(name, str):
                raise ManifestError(f"{key} has the name {name!r}; names must be strings")
            encoded["$" + name if name.startswith("$") else name] = _encode(item, f"{key}.{name}")
        return encoded
    if value is None or isinstance(value, bool | int | str):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, list | tuple):
        return [_encode(item, f"{key}[{i}]") for i, item in enumerate(value)]
    if hasattr(value, "tolist"):  # NumPy and torch, scalars and arrays
        return _encode(value.tolist(), key)
    raise ManifestError(
        f"{key} is a {type(value).__name__}; metrics must be numbers, strings, lists or mappings"
    )


def _decode(value: Any, key: str) -> Any:
    if isinstance(value, list):
        return [_decode(item, key) for item in value]
    if not isinstance(value, dict):
        return value
    if "$float" in value:
        if len(value) != 1 or value["$float"] not in ("nan", "inf", "-inf"):
            raise ManifestError(f"{key}: {value!r} is not a number")
        return float(value["$float"])
    decoded = {}
    for name, item in value.items():
        plain = name[1:] if name.startswith("$") else name
        decoded[plain] = _decode(item, f"{key}.{plain}")
    return decoded


# -- reading ---------------------------------------------------------------------------------------

_SCHEMA = TypeAdapter(Manifest)
_OPTIONAL = {"replacement", "arithmetic", "code"}
_REQUIRED = {field.name for field in fields(Manifest)} - _OPTIONAL


def _read(plain: Mapping[str, Any], where: str) -> Manifest:
    if plain.get("format", FORMAT) != FORMAT:
        versions = plain.get("versions")
        writer = versions.get("raytrain", "unknown") if isinstance(versions, Mapping) else "unknown"
        raise ManifestError(
            f"{where} has the format {plain['format']!r}, written by raytrain {writer}; this "
            f"raytrain reads format {FORMAT}. Use raytrain {writer} or newer for this run."
        )
    try:
        if missing := _REQUIRED - plain.keys():
            raise ValueError(f"the key {min(missing)!r} is missing")
        manifest = validated(_SCHEMA, plain)
        if manifest.exact == (manifest.exact_lost is not None):
            raise ValueError("exact_lost must say why exactly if exact is false")
    except ValueError as error:
        raise ManifestError(f"{where}: {error}") from error
    return replace(manifest, metrics=_decode(manifest.metrics, f"{where}: metrics"))
