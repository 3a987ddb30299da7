"""Signals while the program is imported. This module is imported first, and imports very little."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def nothing_begun() -> Iterator[None]:
    """In the body, a signal ends the process silently, with exit code 128 + its number."""

    def end(number: int, frame: FrameType | None) -> None:
        os._exit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
