"""Columns of text on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from raytrain.storage.escapes import printable

_WIDTH_OF_A_PIPE = 240


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The rows below their titles. In a pipe a cell stays on its line, however narrow that is."""
    made = Table(box=None, pad_edge=False)
    for title in titles:
        made.add_column(title)
    for row in rows:
        made.add_row(*(printable(cell) for cell in row))
    # A cell is text, whatever looks like markup or the name of an emoji in it.
    console = Console(
        width=None if sys.stdout.isatty() else _WIDTH_OF_A_PIPE,
        color_system=None,
        markup=False,
        emoji=False,
        highlight=False,
    )
    with console.capture() as captured:
        console.print(made)
    return captured.get().rstrip("\n")
