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

    before = {}
    if threading.current_thread() is threading.main_thread():
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            if signal.getsignal(each) in (signal.SIG_DFL, signal.default_int_handler):
                before[each] = signal.signal(each, end)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
