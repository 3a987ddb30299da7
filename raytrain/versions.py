"""The versions of the libraries that a run's numbers depend on."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("raytrain", "ray", "torch", "gymnasium", "numpy", "numba")


@cache
def versions() -> dict[str, str]:
    """Version of Python, raytrain and each such library, by name; "unknown" if not installed."""
    by_name = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            by_name[package] = version(package)
        except PackageNotFoundError:
            by_name[package] = "unknown"
    return by_name
