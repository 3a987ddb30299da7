"""What a node of a cluster says of itself. This runs on the nodes, and is sent to them by value.

`look` imports the standard library alone, so it also runs where raytrain is missing or is another one.
The others import raytrain, once the versions are known to agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Envoy:
    """The actor on a node. Ray would start a worker or two for each function that was sent as a task."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


def look(packages: tuple[str, ...]) -> dict[str, Any]:
    """Versions of Python and of `packages` (None: not installed), the digest of raytrain's source
    files, and the clock in seconds."""
    import hashlib
    import importlib.util
    import platform
    from importlib.metadata import PackageNotFoundError, version
    from pathlib import Path

    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    spec = importlib.util.find_spec("raytrain")
    source = None
    if spec is None or spec.origin is None:
        found["raytrain"] = None
    else:
        digest = hashlib.sha256()
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\n" + path.read_bytes())
        source = digest.hexdigest()[:12]
    return {"versions": found, "source": source, "clock": time.time()}


def write(directory: str, name: str, text: str) -> str | None:
    """Write a file; why it could not be written, or None."""
    from raytrain.storage import Location

    place = Location.of(directory)
    try:
        place.make()
        (place / name).write_bytes(text.encode())
    except OSError as error:
        return error.strerror or str(error)
    return None


def read(directory: str, expected: dict[str, str], patience_s: float) -> dict[str, str]:
    """Read the files that the nodes have written: what is wrong, by name. A network file system may
    show a new file late, so each is waited for."""
    from raytrain.storage import Location

    place = Location.of(directory)
    deadline = time.monotonic() + patience_s
    wrong = {}
    for name, text in expected.items():
        while (problem := _read_one(place / name, text)) and time.monotonic() < deadline:
            time.sleep(0.2)
        if problem:
            wrong[name] = problem
    return wrong


def _read_one(place: Any, text: str) -> str | None:
    try:
        found = place.read_bytes().decode(errors="replace")
    except OSError as error:
        return error.strerror or str(error)
    return None if found == text else "it reads something else there"


def remove(directory: str) -> None:
    """Remove the files again, where the storage turned out not to be shared."""
    from raytrain.storage import Location

    Location.of(directory).delete_tree()
