"""The package that a job takes to a cluster: its resolved config and the environment's files.

    raytrain-run.yaml      the config with every --set, --name and --storage-path in it
    my_envs.py, ...        everything beside the YAML file, if a module in the config is there

It is one zip file, with the same bytes for the same content, so Ray uploads it once and keeps it by
its hash. It becomes the working directory of the job and of its workers, where the environment's
module is found as it is found beside the YAML file. An environment of Gymnasium, or of an installed
package, needs no files: then the package holds the config alone.

Excluded: results, virtual environments, version control, caches, `.env` files (secrets), links to
directories, and what `.gitignore` and `.rayignore` name.
"""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from raytrain._ray.cluster import ignore_rules
from raytrain.config import NOT_YAML_KEYS, ExperimentConfig
from raytrain.config.own_code import own_code_modules
from raytrain.config.yaml_lines import dump_yaml
from raytrain.errors import BadInput

CONFIG_FILE = "raytrain-run.yaml"
LIMIT = 100 << 20
"""Bytes. Ray holds a package in the memory of the head's GCS, and refuses 500 MiB."""

_NEVER = frozenset(
    {".git", ".hg", ".svn", ".venv", "venv", ".env", "__pycache__", "node_modules", ".tox"}
    | {".mypy_cache", ".ruff_cache", ".pytest_cache", ".ipynb_checkpoints", ".DS_Store"}
)
_NOT_SOURCE = ("pyvenv.cfg", "experiment.json")  # A directory with one of these has no source.
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of zip files: times must not change the bytes

Rule = Callable[[Path], bool]


@dataclass(frozen=True)
class Package:
    """A zip file: the number of files in it, their bytes, and the excluded names."""

    archive: Path
    files: int
    size: int
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        size = f"{self.size / 1e6:.1f} MB" if self.size >= 1e5 else f"{self.size / 1e3:.1f} kB"
        text = f"{self.files} file{'s' * (self.files != 1)}, {size}"
        return f"{text}; left out: {', '.join(self.left_out)}" if self.left_out else text


def needs_files(config: ExperimentConfig) -> bool:
    """Whether a module of the user's, that of the environment or another, is beside the YAML
    file."""
    if config.import_path is None:
        return False
    module, colon, _ = config.environment.env.partition(":")
    modules = [*([module] if colon else []), *own_code_modules(config)]
    beside = [Path(config.import_path, module.split(".")[0]) for module in modules]
    return any(path.is_dir() or path.with_suffix(".py").is_file() for path in beside)


def submitted(config: Path) -> str | None:
    """The command that continues the run of a packed config, whose file is on the cluster only;
    None for any other config."""
    return "the same `raytrain submit` command" if config.name == CONFIG_FILE else None


def config_text(config: ExperimentConfig) -> str:
    """The resolved config as a YAML file that `raytrain train` reads."""
    values = {key: value for key, value in config.to_dict().items() if key not in NOT_YAML_KEYS}
    return dump_yaml(values)


def pack(config: ExperimentConfig, archive: Path) -> Package:
    """Write the package of a run to `archive`, whose name ends in `.zip`.

    Raises:
        BadInput: it is larger than `LIMIT`, or a file in it cannot be read.
    """
    files: dict[str, Path] = {}
    left_out: list[str] = []
    if needs_files(config) and config.import_path is not None:
        root = Path(config.import_path)
        for path, is_packed in _walk(root, Path(config.storage_path), []):
            name = path.relative_to(root).as_posix()
            if is_packed:
                files[name] = path
            elif path.name != "__pycache__":
                left_out.append(name + "/" * path.is_dir())
        files.pop(CONFIG_FILE, None)
    text = config_text(config).encode()
    size = len(text) + _size(files)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as package:
        with _add(package, CONFIG_FILE, 0o644) as sink:
            sink.write(text)
        for name in sorted(files):
            try:
                mode = files[name].stat().st_mode
                with files[name].open("rb") as source, _add(package, name, mode) as sink:
                    shutil.copyfileobj(source, sink)
            except OSError as error:
                raise BadInput(
                    f"{files[name]} cannot be packed: {error.strerror}. Make it readable, or name "
                    "it in a .rayignore file beside the YAML file."
                ) from None
    return Package(archive, len(files) + 1, size, tuple(sorted(left_out)))


def _add(package: zipfile.ZipFile, name: str, mode: int) -> IO[bytes]:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = (stat.S_IMODE(mode) | stat.S_IFREG) << 16
    return package.open(info, "w")


def _walk(directory: Path, results: Path, above: list[Rule]) -> Iterator[tuple[Path, bool]]:
    """Every file below (True), and every file or directory that is excluded (False)."""
    rules = [*above, *ignore_rules(directory)]
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.name in _NEVER or path == results or any(rule(path) for rule in rules):
            yield path, False
        elif not entry.is_dir(follow_symlinks=False):
            yield path, entry.is_file()  # not a socket, a broken link, a link to a directory
        elif any((path / name).exists() for name in _NOT_SOURCE):
            yield path, False
        else:
            yield from _walk(path, results, rules)


def _size(files: dict[str, Path]) -> int:
    sizes = {name: path.stat().st_size for name, path in files.items()}
    total = sum(sizes.values())
    if total > LIMIT:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        named = ", ".join(f"{name} ({sizes[name] / 1e6:.0f} MB)" for name in largest)
        raise BadInput(
            f"The files beside the YAML file have {total / 1e6:.0f} MB, and the limit for a "
            f"cluster is {LIMIT / 1e6:.0f} MB. The largest: {named}. Name what the environment "
            "does not need in a .rayignore file (written as .gitignore is); put large data on "
            "storage that the nodes share."
        )
    return total
