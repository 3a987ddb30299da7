"""The versions that a run's bits depend on."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("raytrain", "ray", "torch", "gymnasium", "numpy", "numba")


@cache
def versions() -> dict[str, str]:
    """Version of raytrain, of Python, and of each library that the numbers come from."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
