"""The code that a run's numbers depend on: SHA-256 of users' files, versions of installed packages.

    files      my_env.py, lib/helper.py     modules, as Python finds them (see `imports`)
               prices.csv                   a file beside the config that the environment reads
               levels/                      a directory: of the names and digests in it
               environment.env_config.data  what this key names, if it lies elsewhere
    packages   mujoco: 3.3.0                what the environment imports and `versions` leaves out
               numexpr: none                a module that it would import if it were installed

The config names users' code (`environment.env`, and what `own_code` lists). What it imports is
found in its source; what an environment imports by a name that it computes, and which files it
reads, is seen while it is tried in a fresh process (`env_snapshots.witness`). Nothing else of this
process counts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from raytrain.config.environment import entry_modules
from raytrain.config.imports import file_of, imported_by
from raytrain.config.own_code import own_code_modules
from raytrain.config.schema import ExperimentConfig
from raytrain.versions import versions

NONE = "none"
"""In the place of a digest or version: there is no such file or module."""

LARGE = 256 << 20
"""Bytes of a file that is read by the driver only."""
_SLOW = 2 << 30
"""Bytes of a file that takes seconds to read."""
_MOST_NAMED = 3
_EXPERIMENT = "experiment.json"  # `checkpoint.experiment_file`, which is above this package
_MOST_FILES = 10_000
"""In a directory; one with more is taken for something else than the environment's data."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunCode:
    """See the module's docstring."""

    files: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, plain: Mapping[str, Any] | None) -> RunCode:
        """The code in an experiment's file or in a manifest, which may be of an earlier version."""
        plain = plain or {}
        return cls(dict(plain.get("files", {})), dict(plain.get("packages", {})))

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {name: dict(sorted(part.items())) for name, part in asdict(self).items()}

    def changes(self, now: RunCode) -> list[str]:
        """What is another now, each as half a sentence. What only one of them knows does not count:
        a module is new only if another one changed, or if it was missing, which is known."""
        changed = [
            f"{key} {_what_happened(before, now.files[key])}"
            for key, before in self.files.items()
            if now.files.get(key, before) != before
        ]
        return changed + [
            f"{name} {before} -> {now.packages[name]}"
            for name, before in self.packages.items()
            if now.packages.get(name, before) != before
        ]

    def keys(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of the files and of the packages."""
        return tuple(sorted(self.files)), tuple(sorted(self.packages))

    def seen_by(self, here: RunCode) -> RunCode:
        """These, with what another process found; what it cannot see there is as it was here."""
        return RunCode(_seen(self.files, here.files), _seen(self.packages, here.packages))


def named(changes: Sequence[str]) -> str:
    """The first of the changes, and how many there are more."""
    more = len(changes) - _MOST_NAMED
    return ", ".join(changes[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class ProcessCode:
    """The code that every process of a run should have imported, some of it from `import_path`."""

    code: RunCode
    import_path: str | None

    def changes_here(self) -> list[str]:
        """What this process has imported otherwise. Looked up once in a process: a file may change
        after it was imported."""
        return self.code.changes(self.code.seen_by(code_here(*self.code.keys(), self.import_path)))


def code_of(
    config: ExperimentConfig,
    proofs: Mapping[str, Any],
    known: RunCode,
    say: Say,
    *,
    values_before: Mapping[str, Any] | None = None,
) -> RunCode:
    """The code as it is now. `proofs`: `snapshot` of experiment.json. `known`: what was recorded at
    an earlier start, whose keys are kept.

    A file that a value of the config names counts if the value is new; `values_before`: the config
    of the last start. A file that has come since is one that the run has written itself.
    """
    values = config.to_dict()
    seen = [proofs, *proofs.get("stages", {}).values()]
    modules = [
        *entry_modules(config),
        *own_code_modules(config),
        *(name for proof in seen for name in proof.get("imports", ())),
    ]
    imported = imported_by(modules)
    before = _named_paths(values_before or {})
    new = {
        _key_of_named(key, path, config): path
        for key, text in _named_paths(values).items()
        if before.get(key) != text and (path := _named(text, config)) is not None
    }
    read = {key for proof in seen for key in proof.get("reads", ())}
    paths: dict[str, Path | None] = {key: _path(key, values, config) for key in known.files}
    paths |= {key: _path(key, values, config) for key in read} | new | imported.files
    packages = dict.fromkeys(imported.missing, NONE) | dict(_distributions(imported.installed))
    return RunCode(
        {key: sha for key, path in paths.items() if (sha := _digest(key, path, say)) is not None},
        packages | {name: _version(name) for name in known.packages},
    )


@cache
def code_here(keys: tuple[str, ...], packages: tuple[str, ...], import_path: str | None) -> RunCode:
    """The modules and files of these keys when this process first asked, `NONE` for one that it
    does not see. Large files, directories, and what only the config names, are left out."""
    paths = {key: file_of(key, import_path) for key in keys}
    return RunCode(
        {
            key: NONE if path is None else _sha256(path)
            for key, path in paths.items()
            if path is None or (path.is_file() and path.stat().st_size <= LARGE)
        },
        {name: _version(name) for name in packages},
    )


def beside_config(paths: Iterable[str], config: ExperimentConfig) -> list[str]:
    """Those of these files that lie beside the config or below, as keys; without results and hidden
    files, which may hold secrets."""
    beside = config.import_path
    if beside is None:
        return []
    below = [Path(path) for path in paths if Path(path).is_relative_to(beside)]
    keys = [path.relative_to(beside) for path in below if not _holds_results(path, config)]
    return [key.as_posix() for key in keys if not any(part[0] == "." for part in key.parts)]


def _what_happened(before: str, now: str) -> str:
    if now == NONE:
        return "is gone"
    return "is new" if before == NONE else "changed"


def _seen(mine: Mapping[str, str], there: Mapping[str, str]) -> dict[str, str]:
    return {**mine, **{key: value for key, value in there.items() if value != NONE}}


# -- packages ------------------------------------------------------------------------------------


def _distributions(modules: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The distributions of installed modules, with their versions; without those that `versions`
    has. Most have the name of their module. A module that belongs to none stands for itself."""
    for module in set(modules) - versions().keys():
        try:
            yield module, version(module)
        except PackageNotFoundError:
            names = _distributions_by_module().get(module, [module])
            yield from ((name, _version(name)) for name in names)


@cache
def _distributions_by_module() -> Mapping[str, list[str]]:
    return packages_distributions()  # This takes up to a second.


def _version(name: str) -> str:
    """The version of a distribution; of a module without one, whether it is there."""
    try:
        return version(name)
    except PackageNotFoundError:
        found = imported_by([name])
        return NONE if name in found.missing else "found"


# -- files ---------------------------------------------------------------------------------------


def _named_paths(values: Mapping[str, Any]) -> dict[str, str]:
    """The texts in the arguments of the environments, by their dotted keys."""
    texts: dict[str, str] = {}

    def collect(value: Any, key: str) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                collect(inner, f"{key}.{name}")
        elif isinstance(value, list | tuple):
            for index, inner in enumerate(value):
                collect(inner, f"{key}[{index}]")
        elif isinstance(value, str):
            texts[key] = value

    collect(values.get("environment", {}).get("env_config"), "environment.env_config")
    overrides = values.get("evaluation", {}).get("evaluation_config", {})
    collect(overrides.get("env_config"), "evaluation.evaluation_config.env_config")
    for stage in values.get("curriculum", ()):
        arguments = stage.get("environment", {}).get("env_config")
        collect(arguments, f"curriculum.{stage.get('name')}.environment.env_config")
    return texts


def _named(text: str, config: ExperimentConfig) -> Path | None:
    """The file or directory that a text names, for this process or beside the config."""
    if not text or len(text) > 4096 or "\0" in text:
        return None
    for root in (".", config.import_path or "."):
        path = Path(root, Path(text).expanduser()).absolute()
        if path.is_file() or (path.is_dir() and not _holds_results(path, config)):
            return path
    return None


def _holds_results(path: Path, config: ExperimentConfig) -> bool:
    """Whether it is a directory of results, of this run or of others: they change as runs go on."""
    results = Path(config.storage_path).absolute()
    if results.is_relative_to(path) or path.is_relative_to(results):
        return True
    return any(next(path.glob(each), None) for each in (_EXPERIMENT, f"*/{_EXPERIMENT}"))


def _key_of_named(key: str, path: Path, config: ExperimentConfig) -> str:
    """Its path, if it lies beside the config, so that it is found on another machine; else the key
    of the config: a path would tell the user's name."""
    beside = config.import_path
    if beside is None or not path.is_relative_to(beside) or path == Path(beside):
        return key
    return path.relative_to(beside).as_posix() + "/" * path.is_dir()


def _path(key: str, values: Mapping[str, Any], config: ExperimentConfig) -> Path | None:
    named = _named_paths(values).get(key)
    return file_of(key, config.import_path) if named is None else _named(named, config)


def _digest(key: str, path: Path | None, say: Say) -> str | None:
    """`NONE` without a path; None for a directory that is too large."""
    if path is None:
        return NONE
    if path.is_file():
        if path.stat().st_size > _SLOW:
            gigabytes = path.stat().st_size / 1e9
            say(f"Reading {key} ({gigabytes:.1f} GB), whose content is a part of the run.")
        return _sha256(path)
    digest = hashlib.sha256()
    for count, file in enumerate(_files_below(path)):
        if count == _MOST_FILES:
            say(
                f"{key} has more than {_MOST_FILES:,} files, so its content is not recorded: the "
                "run will not notice if a file in it changes."
            )
            return None
        digest.update(f"{file.relative_to(path).as_posix()}\0{_sha256(file)}\n".encode())
    return digest.hexdigest()


def _files_below(directory: Path) -> Iterator[Path]:
    """In a fixed order; hidden ones and what Python compiles are left out."""
    for path, directories, files in os.walk(directory):
        directories[:] = sorted(
            name for name in directories if not name.startswith(".") and name != "__pycache__"
        )
        yield from (Path(path, name) for name in sorted(files) if not name.startswith("."))


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return NONE
