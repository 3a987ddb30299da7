"""The versions of the libraries that a run's numbers depend on."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

SAME_NUMBERS = {"0.1.0", "0.2.0"}
"""Versions of raytrain with which a run has the same numbers, bit for bit."""

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


def changed_versions(before: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The libraries that had another version, as (before, now), if that may change numbers."""
    now = versions()
    changed = {
        name: (before.get(name, "none"), now.get(name, "none"))
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    }
    if SAME_NUMBERS.issuperset(changed.get("raytrain", ())):
        changed.pop("raytrain", None)
    return changed


def changes_text(changed: Mapping[str, tuple[str, str]]) -> str:
    """`torch 2.12.0 -> 2.13.0, numpy 2.4.5 -> 2.4.6`"""
    return ", ".join(f"{name} {before} -> {now}" for name, (before, now) in changed.items())
