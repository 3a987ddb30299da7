"""A bar on stderr for work that takes longer than two seconds, at a terminal only.

    for entry in track(entries, "Checking"): ...          the number of items is known
    with busy("Writing ONNX"): ...                        it is unknown: a moving bar, and the time

Nothing appears before two seconds have passed, and nothing stays when the work is done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console

_T = TypeVar("_T")
DELAY_S = 2.0


@contextmanager
def _late_bar(
    what: str, total: int | None, console: Console | None, delay_s: float
) -> Iterator[Callable[[], None]]:
    """A progress bar that a timer shows after the delay. Yields the function that advances it."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *([MofNCompleteColumn()] if total is not None else []),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
    )
    task = bar.add_task(what, total=total)
    lock, ended = threading.Lock(), False

    def show() -> None:
        with lock:
            if not ended:
                bar.start()

    timer = threading.Timer(delay_s, show)
    timer.daemon = True
    timer.start()
    try:
        yield lambda: bar.advance(task)
    finally:
        timer.cancel()
        with lock:
            ended = True
            bar.stop()


def track(
    items: Iterable[_T],
    what: str,
    *,
    console: Console | None = None,
    delay_s: float = DELAY_S,
) -> Iterator[_T]:
    """The items, counted on a bar."""
    total = len(items) if isinstance(items, Sized) else None
    with _late_bar(what, total, console, delay_s) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def busy(what: str, *, console: Console | None = None, delay_s: float = DELAY_S) -> Iterator[None]:
    """A bar without an end, for work that cannot be counted."""
    with _late_bar(what, None, console, delay_s):
        yield
