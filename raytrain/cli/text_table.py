"""Columns of text on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from raytrain.storage.escapes import printable

_WIDTH_OF_A_PIPE = 240


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The rows below their titles. In a pipe, cells are not wrapped."""
    grid = Table(*titles, box=None, pad_edge=False)
    for row in rows:
        grid.add_row(*map(printable, row))
    # A cell is plain text, also if it looks like markup or contains the name of an emoji.
    console = Console(
        width=None if sys.stdout.isatty() else _WIDTH_OF_A_PIPE,
        color_system=None,
        markup=False,
        emoji=False,
        highlight=False,
    )
    with console.capture() as captured:
        console.print(grid)
    return captured.get().rstrip("\n")
