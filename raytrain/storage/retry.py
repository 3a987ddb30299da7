"""Retries of what a store does not answer.

    operation ── fails ──> pause 0.5 s ──> again ──> pause 1 s ──> ... 15 s ──> ... ──> the error
                 (passing)                                            after `PATIENCE_S`
                 or at once, if a retry cannot help (no such bucket, access denied)

A store that has never answered this process, or was given up, is retried for `SHORT_PATIENCE_S`
only: neither a mistyped endpoint nor the end of a run without its store should take minutes.

Requests that fail now and then are not reported. A request that has failed for `TELL_AFTER_S` is an
outage: one message when it begins and one when it is over go to the callbacks of `listen`,
however many requests and threads fail.
"""

from __future__ import annotations

import errno
import logging
import random
import re
import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from raytrain.storage.escapes import printable

PATIENCE_S = 180.0
SHORT_PATIENCE_S = 10.0
TELL_AFTER_S = 3.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0

_BUSY = {errno.EAGAIN, errno.EBUSY, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
_UNREACHABLE = {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
_CUT_OFF = {errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE}
# None: pyarrow raises an OSError without a number for every answer of a store.
_PASSING = frozenset({None, *_BUSY, *_UNREACHABLE, *_CUT_OFF})
_FINAL = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    InterruptedError,
)
# Errors of a store that no retry helps against.
_FINAL_WORDS = re.compile(
    "ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_SIGNATURE|EXPIRED_TOKEN"
    "|INVALID_CLIENT_TOKEN_ID|MISSING_AUTHENTICATION_TOKEN|UNRECOGNIZED_CLIENT|OPT_IN_REQUIRED"
    "|NO_SUCH_BUCKET|NO_SUCH_KEY|allow_bucket_creation"
)

logger = logging.getLogger(__name__)
_Operation = TypeVar("_Operation", bound=Callable[..., Any])
_T = TypeVar("_T")


class Retries:
    """How the stores of this process answer. There is one for the process: `STORE`.

    Clock, pause and randomness are parameters, so that tests need not wait."""

    def __init__(
        self,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.Random().random,  # apart from training's generator
    ) -> None:
        self._now, self._sleep, self._chance = now, sleep, chance
        self._lock = threading.Lock()
        self._report: Callable[[str], None] = logger.warning
        self._answers = False  # It has answered, and was not given up since.
        self._waiting = 0  # operations that are part of a reported outage
        self._since: float | None = None  # when the reported outage began

    @property
    def in_trouble(self) -> bool:
        """Whether an outage was reported that is not over yet."""
        return self._since is not None

    def listen(self, report: Callable[[str], None]) -> None:
        """Pass the two messages to `report`, which may be called from any thread."""
        self._report = report

    def call(self, operation: Callable[[], _T], where: object) -> _T:
        """The operation's result. Raises its last `OSError` after the last retry."""
        began = self._now()
        pause, reported = _FIRST_PAUSE_S, False
        while True:
            try:
                result = operation()
            except OSError as error:
                if not may_pass(error):
                    self._ended(reported, answered=True)
                    raise
                waited = self._now() - began
                if waited + pause > self._limit():
                    self._ended(reported, answered=False)
                    raise
                if not reported and waited >= TELL_AFTER_S:
                    reported = True
                    self._outage(error, where, began)
                # Jitter: many threads that wait do not ask again at the same moment.
                self._sleep(pause * (0.5 + self._chance()))
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            else:
                self._ended(reported, answered=True)
                return result

    def _limit(self) -> float:
        return PATIENCE_S if self._answers else SHORT_PATIENCE_S

    def _outage(self, error: OSError, where: object, began: float) -> None:
        with self._lock:
            self._waiting += 1
            if self._since is not None:
                return
            self._since = began
            limit = self._limit()
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        self._report(
            printable(
                f"The storage does not answer ({where}: {reason}). Requests are retried with "
                f"growing pauses, for {limit:.0f} s at most."
            )
        )

    def _ended(self, reported: bool, *, answered: bool) -> None:
        with self._lock:
            self._waiting -= reported
            self._answers = answered
            if self._since is None or self._waiting or not answered:
                return
            since, self._since = self._since, None
        self._report(f"The storage answers again, after {self._now() - since:.0f} s.")


def may_pass(error: OSError) -> bool:
    """Whether the error may come from a store that is away or overloaded."""
    return (
        not isinstance(error, _FINAL)
        and error.errno in _PASSING
        and not _FINAL_WORDS.search(str(error))
    )


STORE = Retries()


def patient(method: _Operation) -> _Operation:
    """Retry a method of `Location` while the store does not answer. Nothing is retried on a local
    disk: its errors are final. The method must be fit to be run twice."""

    @wraps(method)
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        if self.is_local:
            return method(self, *arguments, **options)
        return STORE.call(lambda: method(self, *arguments, **options), self)

    return cast(_Operation, call)
