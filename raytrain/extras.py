"""Packages that only some commands need, and the pip command that adds them."""

from __future__ import annotations

from importlib.util import find_spec

from raytrain.errors import BadInput


class MissingExtra(BadInput):
    """A command needs packages that are not installed."""


def require(extra: str, *modules: str, what: str) -> None:
    """Raise `MissingExtra` unless all `modules` can be imported. `what` begins the message."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingExtra(
            f"{what} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            f'installed. Install with: pip install "raytrain[{extra}]"'
        )
