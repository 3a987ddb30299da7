"""A step that never returns: how long a fragment is waited for, and where the process stands then.

`RolloutTimeout` is the trial's part. By itself it learns how long fragments take:

    auto    five times the longest of the last fragments, but at least a minute; ten minutes before there
            is one
    number  so many seconds
    None    for ever

`StallReporter` is the env runner's part: a background thread that leaves word of where the process
stands, shortly before the trial's patience ends. It cannot where native code does not let Python run.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
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
        """Seconds that any other call may take, such as setting up a group; None without a limit."""
        return None if self._timeout_s is None else _SET_UP_S

    def add(self, seconds: float) -> None:
        """Record the duration of a fragment."""
        self._adaptive.add(seconds)


class StallReporter:
    """`report` gets one sentence when the body of `watching` takes too long. It is called in the
    background thread."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._wakes_at = math.inf
        self._thread_id = 0
        self._thread: threading.Thread | None = None

    @contextmanager
    def watching(self, patience_s: float | None) -> Iterator[None]:
        """Watch the body, which runs in the calling thread."""
        if patience_s is None:
            yield
            return
        self._set(time.monotonic() + patience_s)
        try:
            yield
        finally:
            self._set(None)

    def _set(self, deadline: float | None) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="raytrain-stall", daemon=True)
            self._thread.start()
        with self._changed:
            self._deadline, self._thread_id = deadline, threading.get_ident()
            # The thread sleeps on until the deadline of an earlier body: that saves a wake-up for each.
            if deadline is not None and deadline < self._wakes_at:
                self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while True:
                if self._deadline is None or self._deadline > time.monotonic():
                    self._wakes_at = math.inf if self._deadline is None else self._deadline
                    self._changed.wait(
                        None if self._deadline is None else self._wakes_at - time.monotonic()
                    )
                    continue
                self._deadline = None
                frame = sys._current_frames().get(self._thread_id)
                if frame is not None:
                    self._report(standing(frame))


def stall_key(actor_id: str, group: int) -> str:
    """The key under which an env runner reports where it stalls."""
    return f"stuck/{actor_id}/{group}"


def standing(frame: FrameType) -> str:
    """Where a thread stands: the environment's method, and the innermost line."""
    inner, each = frame, frame
    step: FrameType | None = None
    while each.f_back is not None and step is None:
        owner: Any = each.f_locals.get("self")
        if each.f_code.co_name in _METHODS and isinstance(owner, gym.Env):
            step = each
        each = each.f_back
    if step is None:
        return f"in {_line(inner)}"
    named = f"in {type(step.f_locals['self']).__name__}.{_line(step)}"
    return named if step is inner else f"{named}, there in {_line(inner)}"


def _line(frame: FrameType) -> str:
    place = os.path.basename(frame.f_code.co_filename)
    return f"{frame.f_code.co_name} ({place}, line {frame.f_lineno})"
