"""Processes of a local Ray instance that would outlive the program.

Ray ends its raylet and its GCS; their workers and agents end by themselves once they miss the raylet, but
some of them seconds later, and who has stopped a run wants its memory and its GPU back.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

_SERVICES = ("raylet", "gcs_server")
_ENDING_S = 1.0


def own_services() -> dict[psutil.Process, str]:
    """Name of each process of the instance that this process has started. One that has died, of an instance
    that did not come up, is nobody's: Ray does not wait for it."""
    children = {each: each.name() for each in psutil.Process().children() if lives(each)}
    return {each: name for each, name in children.items() if name in _SERVICES}


def lives(process: psutil.Process) -> bool:
    """Whether a process lives. One that nobody has waited for (an init that reaps nothing) does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


@contextmanager
def nothing_left(services: dict[psutil.Process, str] | None = None) -> Iterator[None]:
    """Around `ray.shutdown`: the processes of the local instance (that of this process, if none is given) are
    given a second to end by themselves afterwards, and are killed then."""
    services = own_services() if services is None else services
    processes = list(services)
    for service in services:
        with suppress(psutil.Error):
            processes += service.children(recursive=True)
    yield
    deadline = time.monotonic() + _ENDING_S
    while any(lives(each) for each in processes):
        if time.monotonic() > deadline:
            for each in processes:
                with suppress(psutil.Error):
                    each.kill()
            return
        time.sleep(_ENDING_S / 50)
