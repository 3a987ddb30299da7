"""Checks that run on the nodes of a cluster, and are sent to them by value.

`look` imports the standard library alone, so it also runs where raytrain is missing or another
version. The others import raytrain, once the versions are known to be the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class NodeActor:
    """The actor on a node. Ray would start a worker or two for each function sent as a task."""

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

    installed: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = None
    spec = importlib.util.find_spec("raytrain")
    source = None
    if spec is None or spec.origin is None:
        installed["raytrain"] = None
    else:
        digest = hashlib.sha256()
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\n" + path.read_bytes())
        source = digest.hexdigest()[:12]
    return {"versions": installed, "source": source, "clock": time.time()}


def write(directory: str, name: str, text: str) -> str | None:
    """Write a file. Returns why it could not be written, or None."""
    from raytrain.storage import Location

    place = Location.of(directory)
    try:
        place.make()
        (place / name).write_bytes(text.encode())
    except OSError as error:
        return error.strerror or str(error)
    return None


def read(directory: str, expected: dict[str, str], timeout_s: float) -> dict[str, str]:
    """Read the files that the nodes have written. Returns what is wrong, by file name. A network
    file system may show a new file late, so `timeout_s` seconds are waited for all of them."""
    from raytrain.storage import Location

    place = Location.of(directory)
    deadline = time.monotonic() + timeout_s
    wrong = {}
    for name, text in expected.items():
        while (problem := _read_one(place / name, text)) and time.monotonic() < deadline:
            time.sleep(0.2)
        if problem:
            wrong[name] = problem
    return wrong


def compute() -> tuple[str, dict[str, str]]:
    """The fingerprint of what NumPy and the C library compute here, and the machine."""
    from raytrain.arithmetic.fingerprint import Fingerprint, add_libraries
    from raytrain.arithmetic.machine import describe_machine

    fingerprint = Fingerprint()
    add_libraries(fingerprint)
    return fingerprint.text(), describe_machine()


def _read_one(place: Any, text: str) -> str | None:
    try:
        content = place.read_bytes().decode(errors="replace")
    except OSError as error:
        return error.strerror or str(error)
    return None if content == text else "the file has other content there"


def remove(directory: str) -> None:
    """Remove the files again, where the storage turned out not to be shared."""
    from raytrain.storage import Location

    Location.of(directory).delete_tree()
