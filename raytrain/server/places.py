"""Which paths a request may name: those below the storages and the config directories.

Symbolic links are resolved first, so a link does not lead out of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raytrain.server.problems import Refused
from raytrain.server.settings import ServerSettings
from raytrain.storage import Location


class Places:
    """The paths of one server. Methods raise `Refused` for others."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._storages = [Location.of(storage) for storage in settings.storages]

    def storage(self, wanted: str | None) -> Location:
        """A storage of this server; the first if none is wanted."""
        if wanted is None:
            return self._storages[0]
        found = next((each for each in self._storages if str(each) == wanted), None)
        if found is None and "://" not in wanted:
            _require_path(wanted)
            place = Location.of(wanted)
            found = next((each for each in self._storages if _same(each, place)), None)
        if found is None:
            raise Refused(
                403,
                f"{wanted} is not a storage of this server. It has: "
                f"{', '.join(map(str, self._storages))}. Give one of them as `storage`, or start "
                "`raytrain serve` with this one too.",
            )
        return found

    def below(self, path: str) -> Location:
        """A place below one of the storages."""
        _require_path(path)
        # A URI is compared before it is opened: opening one may send a request to its host.
        is_uri = "://" in path
        known = [str(storage).rstrip("/") + "/" for storage in self._storages]
        place = None
        if not is_uri or any(path.startswith(prefix) for prefix in known):
            place = Location.of(path)
        if place is None or not any(_is_below(place, storage) for storage in self._storages):
            raise Refused(
                403,
                f"{path} is not below a storage of this server (links are resolved). It has: "
                f"{', '.join(map(str, self._storages))}.",
            )
        return place

    def of_run(self, row: Mapping[str, Any]) -> Location:
        """The directory of a run that is there."""
        if row["gone_at"] is not None:
            raise Refused(
                410, f"{row['path']} was deleted, or moved; the history has its last state."
            )
        return self.below(row["path"])

    def checkpoint(self, place: Location, wanted: str) -> str:
        """A checkpoint of the run in `place`, as an argument of a command: `best`, `final`, a path
        below the run's directory, or a whole path."""
        if wanted in ("best", "final"):
            return f"{place}:{wanted}"
        path, _, fixed = wanted.rpartition(":")
        if fixed not in ("best", "final"):
            path, fixed = wanted, ""
        if "://" not in path and not path.startswith("/"):
            try:
                path = str(place / path)
            except ValueError:
                raise Refused(403, f"{wanted} does not lie below {place}.") from None
        return str(self.below(path)) + (f":{fixed}" if fixed else "")

    def from_checkpoint(self, wanted: str) -> str:
        """A checkpoint of any run."""
        path, _, fixed = wanted.rpartition(":")
        if fixed not in ("best", "final"):
            path, fixed = wanted, ""
        return str(self.below(path)) + (f":{fixed}" if fixed else "")

    def config(self, path: str) -> Path:
        """A config file below the config directories."""
        _require_path(path)
        file = Path(path).expanduser()
        candidates = [file] if file.is_absolute() else []
        if not candidates:
            candidates = [each / file for each in self._settings.config_dirs]
        for candidate in candidates:
            real = Path(os.path.realpath(candidate))
            roots = [Path(os.path.realpath(each)) for each in self._settings.config_dirs]
            if any(real.is_relative_to(root) for root in roots) and real.is_file():
                return real
        raise Refused(
            403,
            f"{path} is no file below the config directories of this server "
            f"({', '.join(map(str, self._settings.config_dirs))}; links are resolved).",
        )

    def configs(self) -> list[Path]:
        """The YAML files below the config directories, links that lead out of them left out."""
        found = []
        for root in self._settings.config_dirs:
            real = Path(os.path.realpath(root))
            for path in sorted(root.rglob("*.y*ml")):
                if path.suffix in (".yaml", ".yml") and path.is_file():
                    target = Path(os.path.realpath(path))
                    if target.is_relative_to(real):
                        found.append(path)
        return found

    def export(self, wanted: str) -> str:
        """Where an export is written: below the exports of this server, or a storage."""
        _require_path(wanted)
        if "://" in wanted or wanted.startswith(("/", "~")):
            return str(self.below(wanted))
        root = self._settings.exports
        real = Path(os.path.realpath(root / wanted))
        if not real.is_relative_to(os.path.realpath(root)):
            raise Refused(403, f"{wanted} does not lie below {root}.")
        return str(root / wanted)


def _require_path(text: str) -> None:
    if not text or "\0" in text:
        raise Refused(400, "A path is empty, or holds a NUL character.")


def _same(one: Location, other: Location) -> bool:
    return one.is_local == other.is_local and _real(one) == _real(other)


def _is_below(place: Location, storage: Location) -> bool:
    if place.is_local != storage.is_local:
        return False
    inner, outer = _real(place), _real(storage)
    return inner != outer and inner.startswith(outer.rstrip("/") + "/")


def _real(place: Location) -> str:
    if place.is_local:
        return os.path.realpath(place.path)
    if any(part in (".", "..") for part in place.path.split("/")):
        raise Refused(403, f"{place} has `.` or `..` in it.")
    return str(place)
