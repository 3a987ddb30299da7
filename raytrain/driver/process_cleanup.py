"""Processes of a local Ray instance that would outlive the program.

Ray ends its raylet and its GCS. Their workers and agents end once they miss the raylet, some of
them seconds later; until then they hold memory and the GPU.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

_SERVICES = ("raylet", "gcs_server")
_ENDING_S = 1.0


def own_services() -> dict[psutil.Process, str]:
    """The living services that this process has started, with their names."""
    children = [child for child in psutil.Process().children() if lives(child)]
    return {child: child.name() for child in children if child.name() in _SERVICES}


def lives(process: psutil.Process) -> bool:
    """Whether a process lives. A zombie, which nothing has waited for, does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


@contextmanager
def nothing_left(services: dict[psutil.Process, str] | None = None) -> Iterator[None]:
    """Around `ray.shutdown`: the processes of the local instance (of this process's, if none is
    given) have a second to end afterwards, and are then killed."""
    services = own_services() if services is None else services
    processes = list(services)
    for service in services:
        with suppress(psutil.Error):
            processes += service.children(recursive=True)
    yield
    deadline = time.monotonic() + _ENDING_S
    while time.monotonic() < deadline and any(lives(process) for process in processes):
        time.sleep(_ENDING_S / 50)
    for process in filter(lives, processes):
        with suppress(psutil.Error):
            process.kill()
