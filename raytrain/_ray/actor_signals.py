"""Signals to the processes of a local Ray instance that are meant for the driver.

`timeout`, systemd and Slurm's `scancel` send SIGTERM to every process of a run. The trial has to
live until it has saved, so the instance's processes are started with such signals blocked
(`raytrain._ray.local`). A process that the user's environment starts would inherit that, and could
not be terminated by the environment. So an actor unblocks the signals and handles them by doing
nothing; its children start without the handler, as another program does not inherit it.
"""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from types import FrameType

from raytrain._ray.local import KEPT_FROM_RAY


def spare_this_actor() -> None:
    """Unblock the signals that are blocked here, and do nothing on any of them. Where none is
    blocked (in a cluster that was started without raytrain, in the driver) nothing changes."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    if signal.SIGTERM not in blocked or threading.current_thread() is not threading.main_thread():
        return
    ours = [number for number in KEPT_FROM_RAY if number in blocked and number != signal.SIGINT]

    def nothing(number: int, frame: FrameType | None) -> None:
        pass

    block = partial(signal.pthread_sigmask, signal.SIG_BLOCK, ours)
    unblock = partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, ours)

    def default_in_fork() -> None:
        for number in ours:
            if signal.getsignal(number) is nothing:
                signal.signal(number, signal.SIG_DFL)
        unblock()

    for number in ours:
        signal.signal(number, nothing)
        signal.siginterrupt(number, False)  # The user's system calls are not interrupted.
    unblock()
    # For a fork that runs no other program, such as `multiprocessing`'s. Python loses a signal that
    # reaches its handler before the fork is complete, so they are blocked until it has gone.
    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=default_in_fork)
