"""A bar on stderr for work that takes longer than two seconds, at a terminal only.

    for entry in track(entries, "Checking"): ...          the number of items is known
    with busy("Writing ONNX"): ...                        it is not: a bar that runs, and the time

Nothing appears before two seconds have passed, and nothing stays when the work is done.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_T = TypeVar("_T")
DELAY_S = 2.0


class _Late:
    """A rich progress bar that starts by itself after the delay, in whatever the work is then."""

    def __init__(self, what: str, total: int | None, console: Console, delay_s: float) -> None:
        counted = [MofNCompleteColumn()] if total is not None else []
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *counted,
            TimeElapsedColumn(),
            console=console,
            transient=True,
            redirect_stdout=False,
        )
        self._task = self._bar.add_task(what, total=total)
        self._lock = threading.Lock()
        self._ended = False
        self._timer = threading.Timer(delay_s, self._show)
        self._timer.daemon = True
        self._timer.start()

    def advance(self) -> None:
        self._bar.advance(self._task)

    def end(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._ended = True
            self._bar.stop()

    def _show(self) -> None:
        with self._lock:
            if not self._ended:
                self._bar.start()


def track(
    items: Iterable[_T],
    what: str,
    *,
    total: int | None = None,
    console: Console | None = None,
    delay_s: float = DELAY_S,
) -> Iterator[_T]:
    """The items, counted on a bar. `total` for items that have no length."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield from items
        return
    if total is None and isinstance(items, Sized):
        total = len(items)
    bar = _Late(what, total, console, delay_s)
    try:
        for item in items:
            yield item
            bar.advance()
    finally:
        bar.end()


@contextmanager
def busy(what: str, *, console: Console | None = None, delay_s: float = DELAY_S) -> Iterator[None]:
    """A bar without an end, for work that cannot be counted."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    bar = _Late(what, None, console, delay_s)
    try:
        yield
    finally:
        bar.end()
