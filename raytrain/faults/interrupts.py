"""Ctrl-C and SIGTERM on the driver.

The first signal only sets a flag: the driver's loop sees it, has every trial saved and leaves. A
second signal leaves at once; whatever was committed is on storage already.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedEarly(BaseException):
    """A signal came before there was anything to save."""


class Interrupts:
    """While active, SIGINT and SIGTERM are noted in `received` instead of ending the process."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._deferred = False
        self._before: dict[signal.Signals, object] = {}

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM."""
        return 128 + int(self.received or 0)

    def __enter__(self) -> Interrupts:
        self.install()
        return self

    def install(self) -> None:
        """Take the signals. Again after `ray.init`, which sets a SIGTERM handler of its own. Only the
        main thread may; a run in another thread is not interrupted by signals."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            before = signal.signal(number, self._note)
            self._before.setdefault(number, before)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, the first signal is only noted; somebody asks for `received` and saves."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def raise_early(self) -> None:
        """Raise `InterruptedEarly` if a signal was noted. For waits in Ray, which makes another error of what a
        handler raises within it: they are done in pieces within `deferred`, with this between."""
        if self.received is not None:
            raise InterruptedEarly

    def note_early(self, number: signal.Signals) -> NoReturn:
        """A signal that somebody else's handler took before there was anything to save."""
        self.received = number
        raise InterruptedEarly

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            sys.stderr.write("\nLeaving at once. What was committed is safe.\n")
            sys.stderr.flush()
            # Not sys.exit: nothing may wait for a trial or a lock here. The kernel ends our Ray processes.
            os._exit(128 + number)
        self.received = signal.Signals(number)
        if not self._deferred:
            raise InterruptedEarly
