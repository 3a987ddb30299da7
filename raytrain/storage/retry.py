"""Trying again where a store does not answer.

    operation ── fails ──> pause 0.5 s ──> again ──> pause 1 s ──> ... 15 s ──> ... ──> the error
                 (passing)                                            after `PATIENCE_S`
                 or at once, if trying again cannot help (no such bucket, access denied)

A store that has never answered this process, or has been given up, is given `SHORT_PATIENCE_S` only: a
mistyped endpoint should not take minutes, nor a run's end on a store that is gone.

A request that fails now and then is nobody's concern. One that has failed for `TELL_AFTER_S` is told to
whoever has called `listen`: one sentence when the trouble begins, one when it is over, however many
requests and threads there are.
"""

from __future__ import annotations

import errno
import logging
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

from raytrain.storage.escapes import printable

PATIENCE_S = 180.0
SHORT_PATIENCE_S = 10.0
TELL_AFTER_S = 3.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0

# pyarrow raises an OSError without a number for all that a store says.
_PASSING = frozenset(
    {
        None,
        errno.EAGAIN,
        errno.EBUSY,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EIO,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EPIPE,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
_FINAL = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    InterruptedError,
)
# What a store will say again, however often it is asked.
_FINAL_WORDS = re.compile(
    "ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_SIGNATURE|EXPIRED_TOKEN"
    "|INVALID_CLIENT_TOKEN_ID|MISSING_AUTHENTICATION_TOKEN|UNRECOGNIZED_CLIENT|OPT_IN_REQUIRED"
    "|NO_SUCH_BUCKET|NO_SUCH_KEY|allow_bucket_creation"
)

logger = logging.getLogger(__name__)
_Operation = TypeVar("_Operation", bound=Callable[..., Any])


@dataclass(frozen=True)
class Times:
    """Clock, pause and chance, so that a test need not wait."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.Random().random  # its own: training's stays untouched


class Retries:
    """How the stores of this process answer. One for the process: see `STORE`."""

    def __init__(self, times: Times | None = None) -> None:
        self._times = times or Times()
        self._lock = threading.Lock()
        self._tell: Callable[[str], None] = logger.warning
        self._answers = False  # has it answered, and not been given up since?
        self._waiting = 0  # operations that have failed for so long that it was told
        self._since: float | None = None  # when the trouble that was told began

    @property
    def in_trouble(self) -> bool:
        """Has it been told that the storage does not answer, and not yet that it does again?"""
        return self._since is not None

    def listen(self, tell: Callable[[str], None]) -> None:
        """Have the two sentences told to `tell`, which may be called from any thread."""
        self._tell = tell

    def tried(self, operation: Callable[[], Any], where: object) -> Any:
        """The operation's result. Raises its last `OSError` when patience has ended."""
        began = self._times.now()
        pause, told = _FIRST_PAUSE_S, False
        while True:
            try:
                result = operation()
            except OSError as error:
                if not may_pass(error):
                    self._ended(told, answered=True)
                    raise
                waited = self._times.now() - began
                if waited + pause > self._limit():
                    self._ended(told, answered=False)
                    raise
                if not told and waited >= TELL_AFTER_S:
                    told = True
                    self._trouble(error, where, began)
                # Of many that wait, not all ask again at the same moment.
                self._times.sleep(pause * (0.5 + self._times.chance()))
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            else:
                self._ended(told, answered=True)
                return result

    def _limit(self) -> float:
        return PATIENCE_S if self._answers else SHORT_PATIENCE_S

    def _trouble(self, error: OSError, where: object, began: float) -> None:
        with self._lock:
            self._waiting += 1
            if self._since is not None:
                return
            self._since = began
            limit = self._limit()
        said = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        self._tell(
            printable(
                f"The storage does not answer ({where}: {said}). It is asked again with growing "
                f"pauses, for {limit:.0f} s at most."
            )
        )

    def _ended(self, told: bool, *, answered: bool) -> None:
        with self._lock:
            self._waiting -= told
            self._answers = answered
            if self._since is None or self._waiting or not answered:
                return
            since, self._since = self._since, None
        self._tell(f"The storage answers again, after {self._times.now() - since:.0f} s.")


def may_pass(error: OSError) -> bool:
    """Is this what a store says that is away, or has too much to do?"""
    return (
        not isinstance(error, _FINAL)
        and error.errno in _PASSING
        and not _FINAL_WORDS.search(str(error))
    )


STORE = Retries()


def patient(method: _Operation) -> _Operation:
    """Try a method of `Location` again while the store does not answer. A local disk is not asked
    twice: what it refuses, it has refused. The method must be fit to be done twice."""

    @wraps(method)
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        if self.is_local:
            return method(self, *arguments, **options)
        return STORE.tried(lambda: method(self, *arguments, **options), self)

    return cast(_Operation, call)
