"""Signals to the driver.

    SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2   before training: it ends; in training: the driver's loop
                                                sees it, has every trial saved and leaves
    the same within a second                    is the same request: `timeout`, systemd, Slurm and a
                                                terminal that closes send it to the process and to its group
    another one later; SIGQUIT at any time      leaves at once; what was committed is on storage already

A SIGHUP that is ignored (`nohup`) stays so.
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
from types import FrameType, TracebackType
from typing import NoReturn

# While a user's code is tried, `os._exit` is another function (see `user_code.no_exit`).
_exit = os._exit

SAVE_AND_LEAVE = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
LEAVE = (signal.SIGQUIT,)
_UNLESS_IGNORED = (signal.SIGHUP,)

SAME_REQUEST_S = 1.0
_SHOW_CURSOR = "\x1b[?25h"


class InterruptedEarly(BaseException):
    """A signal came before there was anything to save."""


class Interrupts:
    """While active, the signals of `SAVE_AND_LEAVE` are noted in `received` instead of ending the process."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, insist_after_s: float | None = None
    ) -> None:
        """`insist_after_s`: if the program has not ended so long after a signal that came before there was
        anything to save, leave at once. An import, or a library's callback, swallows what a handler raises.
        """
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
        """Whether a signal has come and there was nothing to save: whatever is raised from then on follows
        from it. (Ray makes a KeyboardInterrupt, or an error of its own, of what a handler raises in it.)"""
        return self.received is not None and not self._deferred

    def __enter__(self) -> Interrupts:
        self.install()
        return self

    def install(self) -> None:
        """Take the signals. Again after `ray.init`, which sets a SIGTERM handler of its own. Only the
        main thread may; a run in another thread is not interrupted by signals."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (*SAVE_AND_LEAVE, *LEAVE):
            if number in _UNLESS_IGNORED and signal.getsignal(number) is signal.SIG_IGN:
                continue
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

    def ignore(self) -> None:
        """From now on the signals do nothing: the exit code is known, and the process ends."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, the first signal is only noted; somebody asks for `received` and saves."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    def defer(self) -> None:
        """From now on the first signal is only noted: there is something to save, or to say of it."""
        self._deferred = True

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
        now = self._clock()
        if number in LEAVE:
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


def _leave(number: int) -> NoReturn:
    """End this process and all that it has started, now. Nothing may wait for a trial or a lock here, so it
    is not `sys.exit`."""
    cursor = _SHOW_CURSOR if sys.stderr is not None and sys.stderr.isatty() else ""
    said = f"{cursor}\nLeaving at once: nothing more is saved. The checkpoints on storage are complete.\n"
    with contextlib.suppress(OSError):  # The terminal may be gone.
        os.write(2, said.encode())
    try:
        import psutil

        # The kernel ends Ray's raylet with this process; its agents would look for the GCS for a minute.
        for each in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                each.kill()
    finally:
        _exit(128 + number)
