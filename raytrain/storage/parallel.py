"""Work on many files at once, where waiting for the network dominates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

# Requests in flight at once. A checkpoint of the usual 26 files is one wait, not two.
REQUESTS = 32

_T = TypeVar("_T")
_R = TypeVar("_R")


def in_parallel(work: Callable[[_T], _R], items: Iterable[_T], *, serial: bool = False) -> list[_R]:
    """`work` on each item; the results in order. All are tried; the first failure is raised."""
    listed = list(items)
    if serial or len(listed) < 2:
        return [work(item) for item in listed]
    with ThreadPoolExecutor(min(REQUESTS, len(listed))) as pool:
        return [future.result() for future in [pool.submit(work, item) for item in listed]]


def together(*calls: Callable[[], object], serial: bool = False) -> None:
    """Make all calls at once and wait for all; raise the first failure, in the order given."""
    in_parallel(lambda call: call(), calls, serial=serial)
