"""`manifest.json`: what a checkpoint is, and the mark that it is complete.

The manifest is written after every other file of its checkpoint. It is strict JSON with exactly
these keys:

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
    created_at         ISO 8601 with offset
    files              [{path, size, sha256}, ...]; paths relative to the checkpoint, "/" between
    parts
    replacement        only in best, final and stages: [attempt, number] of the replacement that put it
                       there, each with a higher one than what it replaced (see `replacement`)
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
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, cast

from raytrain.errors import RaytrainError
from raytrain.storage.json import moment, parse_json, require_bounds
from raytrain.storage.signing import signed, unsigned

FORMAT = 1
MANIFEST_NAME = "manifest.json"
INCOMPLETE_NAME = ".incomplete"
HALF_WRITTEN_NAME = (
    f".{MANIFEST_NAME}.tmp"  # by `Location.write_atomic`; a kill leaves it on a local disk
)
KINDS = ("periodic", "stage", "best", "final", "interrupted", "error")

_SHA256 = re.compile(r"[0-9a-f]{64}")


class ManifestError(RaytrainError):
    """A manifest that cannot be read or may not be written; the message names the key."""


@dataclass(frozen=True)
class FileEntry:
    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Parent:
    """Where a fork began."""

    experiment: str
    trial: str
    checkpoint: str
    weights_sha256: str


@dataclass(frozen=True)
class ExactLost:
    why: str
    since_iteration: int


@dataclass(frozen=True, eq=False)
class Manifest:
    """See the module's docstring. `files` is empty until the commit has hashed them. Two are equal if the
    same is written for both: a metric that is NaN is equal to itself, and an array to the list of its values."""

    kind: str
    experiment: str
    trial_id: str
    run_id: str
    attempt: int
    iteration: int
    timesteps: int
    episodes: int
    stage: str | None
    score: float | None
    metrics: Mapping[str, Any]
    config_digest: str
    weights_sha256: str
    parent: Parent | None
    exact: bool
    exact_lost: ExactLost | None
    snapshot_strategy: str | None
    versions: Mapping[str, str]
    created_at: str
    files: tuple[FileEntry, ...] = ()
    replacement: tuple[int, int] | None = None
    format: int = field(default=FORMAT)

    @property
    def stage_number(self) -> tuple[int, int] | None:
        """Which stage of how many `stage` is, counted from 1; None without a curriculum."""
        said = self.metrics.get("curriculum")
        if self.stage is None or not isinstance(said, Mapping):
            return None
        number, of = said.get("stage"), said.get("stages")
        return (number, of) if isinstance(number, int) and isinstance(of, int) else None

    @property
    def stage_told(self) -> str | None:
        """The stage for a person: `strong (2 of 3)`."""
        number = self.stage_number
        return self.stage if number is None else f"{self.stage} ({number[0]} of {number[1]})"

    def with_files(self, files: tuple[FileEntry, ...], *, kind: str | None = None) -> Manifest:
        return replace(self, files=files, kind=kind or self.kind)

    def to_json(self) -> bytes:
        """Raises `ManifestError` for a value that would not come back from `from_json`."""
        plain = self._plain()
        _read(plain, "the manifest to be written")
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
            raise ManifestError(f"the manifest to be written: {error}") from None
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
        return cls(**_read(content, where))

    def __eq__(self, other: object) -> bool:
        return self._plain() == other._plain() if isinstance(other, Manifest) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.run_id, self.trial_id, self.attempt, self.iteration, self.created_at))

    def _plain(self) -> dict[str, Any]:
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.replacement is None:
            del plain["replacement"]
        plain["score"] = _finite_or_none(self.score)
        plain["metrics"] = _encode(self.metrics, "metrics")
        plain["versions"] = dict(self.versions)
        plain["files"] = [asdict(f) for f in self.files]
        plain["parent"] = asdict(self.parent) if self.parent else None
        plain["exact_lost"] = asdict(self.exact_lost) if self.exact_lost else None
        return plain


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite_or_none(score: float | None) -> float | None:
    if score is None or not math.isfinite(score):
        return None
    return float(score)


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


# -- strict reading: one check a key -------------------------------------------------------------


def _of(*types: type, least: float | None = None) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        wrong_bool = isinstance(value, bool) and bool not in types
        if wrong_bool or not isinstance(value, types):
            wanted = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            raise ValueError(f"expected {wanted}, found {type(value).__name__} {value!r}")
        if least is not None and cast(float, value) < least:
            raise ValueError(f"expected at least {least}, found {value!r}")
        return value

    return check


def _kind(value: Any) -> str:
    if value not in KINDS:
        raise ValueError(f"expected one of {', '.join(KINDS)}, found {value!r}")
    return str(value)


def _sha256(value: Any) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"expected 64 hexadecimal digits, found {value!r}")
    return value


def _moment(value: Any) -> str:
    moment(_of(str)(value))
    return str(value)


def _inner_path(value: Any) -> str:
    """A file path that stays inside the checkpoint, whatever the manifest says."""
    path = _of(str)(value)
    outside = posixpath.isabs(path) or path.split("/")[0] == ".."
    if outside or posixpath.normpath(path) != path or path == "." or "\\" in path or "\0" in path:
        raise ValueError(f"{path!r} is not a plain path inside the checkpoint")
    os.fsencode(path)  # A UnicodeEncodeError, which is a ValueError, if no file can have this name.
    if path in (MANIFEST_NAME, INCOMPLETE_NAME):
        raise ValueError(f"{path!r} is the protocol's own file")
    return str(path)


def _versions(value: Any) -> dict[str, str]:
    return {name: _of(str)(version) for name, version in _of(dict)(value).items()}


def _files(value: Any) -> tuple[FileEntry, ...]:
    checks = {"path": _inner_path, "size": _of(int, least=0), "sha256": _sha256}
    files = tuple(FileEntry(**_record(item, checks)) for item in _of(list)(value))
    if len({f.path for f in files}) != len(files):
        raise ValueError("a path is listed twice")
    return files


def _replacement(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"expected an attempt and a number, found {value!r}")
    attempt, number = (_of(int, least=0)(each) for each in value)
    return attempt, number


def _parent(value: Any) -> Parent | None:
    text = _of(str)
    checks = {"experiment": text, "trial": text, "checkpoint": text, "weights_sha256": _sha256}
    return None if value is None else Parent(**_record(value, checks))


def _exact_lost(value: Any) -> ExactLost | None:
    checks = {"why": _of(str), "since_iteration": _of(int, least=0)}
    return None if value is None else ExactLost(**_record(value, checks))


def _record(value: Any, checks: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    record = _of(dict)(value)
    missing, unknown = checks.keys() - record.keys(), record.keys() - checks.keys()
    if missing:
        raise ValueError(f"the key {min(missing)!r} is missing")
    if unknown:
        raise ValueError(f"the key {min(unknown)!r} is unknown")
    read = {}
    for name, check in checks.items():
        try:
            read[name] = check(record[name])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return read


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "format": _of(int),
    "kind": _kind,
    "experiment": _of(str),
    "trial_id": _of(str),
    "run_id": _of(str),
    "attempt": _of(int, least=0),
    "iteration": _of(int, least=0),
    "timesteps": _of(int, least=0),
    "episodes": _of(int, least=0),
    "stage": _of(str, type(None)),
    "score": _of(int, float, type(None)),
    "metrics": _of(dict),
    "config_digest": _of(str),
    "weights_sha256": _sha256,
    "parent": _parent,
    "exact": _of(bool),
    "exact_lost": _exact_lost,
    "snapshot_strategy": _of(str, type(None)),
    "versions": _versions,
    "created_at": _moment,
    "files": _files,
    "replacement": _replacement,
}


def _read(plain: Mapping[str, Any], where: str) -> dict[str, Any]:
    if plain.get("format", FORMAT) != FORMAT:
        versions = plain.get("versions")
        writer = versions.get("raytrain", "unknown") if isinstance(versions, Mapping) else "unknown"
        raise ManifestError(
            f"{where} has the format {plain['format']!r}, written by raytrain {writer}; this "
            f"raytrain reads format {FORMAT}. Use raytrain {writer} or newer for this run."
        )
    try:
        read = _record({"replacement": None, **plain}, _CHECKS)
    except ValueError as error:
        raise ManifestError(f"{where}: {error}") from error
    if read["exact"] == (read["exact_lost"] is not None):
        raise ManifestError(f"{where}: exact_lost: exactly when exact is false it says why")
    read["metrics"] = _decode(read["metrics"], f"{where}: metrics")
    return read
