"""Signals while the program imports itself. This module imports as little as can be, and is the first one."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def nothing_begun() -> Iterator[None]:
    """Within, a signal ends the process at once and without a word, with 128 and its number."""

    def end(number: int, frame: FrameType | None) -> None:
        os._exit(128 + number)

    numbers: tuple[signal.Signals, ...] = (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
    )
    usual = (signal.SIG_DFL, signal.default_int_handler)
    if threading.current_thread() is not threading.main_thread():
        numbers = ()
    before = {each: found for each in numbers if (found := signal.getsignal(each)) in usual}
    for each in before:
        signal.signal(each, end)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
