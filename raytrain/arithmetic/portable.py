"""Portable arithmetic: the same bits on every x86-64 CPU with AVX2."""

from __future__ import annotations

VARIABLES: dict[str, str] = {}


def variables(is_portable: bool) -> dict[str, str]:
    """Environment variables of every process of a run."""
    return VARIABLES if is_portable else {}
