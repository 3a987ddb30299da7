"""A step that never returns: how long to wait for a fragment, and where the process stalls.

`RolloutTimeout` is used by the trial. With "auto" it learns how long fragments take:

    auto    five times the longest of the last fragments, but at least a minute; ten minutes before
            the first fragment
    number  that many seconds
    None    no limit

`reporting_stalls` is used by the env runner, which reports where it stalls shortly before that
limit. It cannot while native code holds Python's interpreter lock.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import gymnasium as gym

from raytrain.cluster.adaptive_timeout import AdaptiveTimeout

_FACTOR, _FLOOR_S, _REMEMBERED = 5.0, 60.0, 50
_SET_UP_S = 300.0
_METHODS = ("step", "reset", "__init__")


class RolloutTimeout:
    """`timeout_s`: "auto", seconds, or None."""

    def __init__(self, timeout_s: float | str | None) -> None:
        self._timeout_s = timeout_s
        self._adaptive = AdaptiveTimeout(_FACTOR, _FLOOR_S, window=_REMEMBERED, statistic=max)

    def limit_s(self) -> float | None:
        """Seconds that the next fragment may take; None without a limit."""
        if self._timeout_s is None:
            return None
        return self._adaptive.limit_s if self._timeout_s == "auto" else float(self._timeout_s)

    def set_up_limit_s(self) -> float | None:
        """Seconds that any other call may take, such as setting up a group; None
        without a limit."""
        return None if self._timeout_s is None else _SET_UP_S

    def add(self, seconds: float) -> None:
        """Record the duration of a fragment."""
        self._adaptive.add(seconds)


@contextmanager
def reporting_stalls(report: Callable[[str], None], after_s: float | None) -> Iterator[None]:
    """If the body takes more than `after_s` seconds, call `report` once in another thread, with the
    position of the body: "in Maze.step (maze.py, line 12)". None: never."""
    if after_s is None:
        yield
        return
    thread_id = threading.get_ident()
    timer = threading.Timer(after_s, lambda: report(position(sys._current_frames()[thread_id])))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def stall_key(actor_id: str, group: int) -> str:
    """The key under which an env runner reports where it stalls."""
    return f"stuck/{actor_id}/{group}"


def position(frame: FrameType) -> str:
    """Where a thread is: the environment's method, and the innermost line."""
    outer = frame
    while outer.f_back is not None:
        owner: Any = outer.f_locals.get("self")
        if outer.f_code.co_name in _METHODS and isinstance(owner, gym.Env):
            method = f"in {type(owner).__name__}.{_line(outer)}"
            return method if outer is frame else f"{method}, there in {_line(frame)}"
        outer = outer.f_back
    return f"in {_line(frame)}"


def _line(frame: FrameType) -> str:
    file = os.path.basename(frame.f_code.co_filename)
    return f"{frame.f_code.co_name} ({file}, line {frame.f_lineno})"
