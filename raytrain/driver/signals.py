"""Signals to the driver.

    SIGINT, SIGTERM, SIGHUP,    before training: it ends; in training: the driver's loop notices,
    SIGUSR1, SIGUSR2            has every trial saved, and leaves
    the same within a second    counts as the same request: `timeout`, systemd, Slurm and a terminal
                                that closes send it to the process and to its group
    another one later;          leaves at once; what was committed is on storage already
    SIGQUIT at any time

A SIGHUP that is ignored (`nohup`) stays ignored.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from raytrain._ray.local import KEPT_FROM_RAY

# While a user's code is tried, `os._exit` is another function (see `user_code.no_exit`).
_exit = os._exit

LEAVE = signal.SIGQUIT
SAME_REQUEST_S = 1.0
_SHOW_CURSOR = "\x1b[?25h"


class InterruptedEarly(BaseException):
    """A signal came before there was anything to save."""


class Interrupts:
    """While active, the signals of `KEPT_FROM_RAY` except SIGQUIT are stored in `received` and do
    not end the process."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, insist_after_s: float | None = None
    ) -> None:
        """`insist_after_s`: exit if the program has not ended so long after a signal that came
        before there was anything to save: an import, or a library's callback, may swallow the
        exception that a handler raises."""
        self._insist_after_s = insist_after_s
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._clock = clock
        self._deferred = False
        self._before: dict[signal.Signals, object] = {}

    @property
    def exit_code(self) -> int:
        """128 and the signal's number: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + int(self.received or 0)

    @property
    def early(self) -> bool:
        """Whether a signal has come while there was nothing to save: any exception follows from it.
        (Ray turns what a handler raises in it into a KeyboardInterrupt, or an error of its own.)"""
        return self.received is not None and not self._deferred

    def __enter__(self) -> Interrupts:
        self.install()
        return self

    def install(self) -> None:
        """Install the handlers; again after `ray.init`, which sets a SIGTERM handler of its own.
        Only the main thread may; a run in another thread is not interrupted by signals."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in KEPT_FROM_RAY:
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            before = signal.signal(number, self._note)
            self._before.setdefault(number, before)

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def ignore(self) -> None:
        """Ignore the signals from now on: the exit code is known, and the process ends."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, the first signal is only stored; the caller checks `received` and saves."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    def defer(self) -> None:
        """From now on the first signal is only stored: there is something to save, or to report."""
        self._deferred = True

    def raise_early(self) -> None:
        """Raise `InterruptedEarly` if a signal was stored. Ray turns what a handler raises within
        its waits into another error, so they are split up within `deferred`, with this between."""
        if self.received is not None:
            raise InterruptedEarly

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = self._clock()
        if number == LEAVE:
            _leave(number)
        if self.received is not None:
            if now - self._received_at < SAME_REQUEST_S:
                return
            _leave(number)
        self.received, self._received_at = signal.Signals(number), now
        if not self._deferred:
            if self._insist_after_s is not None:
                again = threading.Timer(self._insist_after_s, os.kill, (os.getpid(), number))
                again.daemon = True
                again.start()
            raise InterruptedEarly


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """Around `ray.init`, which sets a handler for SIGTERM: the one from before holds afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _leave(number: int) -> NoReturn:
    """End this process and its children now. Not by `sys.exit`, which could wait for a lock."""
    cursor = _SHOW_CURSOR if sys.stderr is not None and sys.stderr.isatty() else ""
    message = "Leaving at once: nothing more is saved. The checkpoints on storage are complete."
    with contextlib.suppress(OSError):  # The terminal may be gone.
        os.write(2, f"{cursor}\n{message}\n".encode())
    try:
        import psutil

        # The kernel ends the raylet with this process; its agents would wait a minute for the GCS.
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    finally:
        _exit(128 + number)
