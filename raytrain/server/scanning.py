"""The thread that keeps the history equal to storage while the server runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from raytrain.errors import RaytrainError
from raytrain.server.history.scanner import Scanner
from raytrain.server.problems import LOG

_EVERY_S = 2.0
_EVERY_REMOTE_S = 15.0
_SHARE = 10
"""A pause is this many times as long as the scan before it, so scans take a tenth of one core."""


class Scanning:
    """Scans again and again, and at once when `now` is called."""

    def __init__(self, scanner: Scanner, *, remote: bool, also: Callable[[], None]) -> None:
        """`also`: what is done after each scan."""
        self._scanner = scanner
        self._also = also
        self._every_s = _EVERY_REMOTE_S if remote else _EVERY_S
        self._one = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._scan, name="raytrain-scan", daemon=True)
        self.last: dict[str, Any] = {"at": None, "seconds": None, "problems": []}

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._ending.set()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def now(self) -> None:
        """Scan, and return when it is done. Raises `RaytrainError`."""
        with self._one:
            begin = time.monotonic()
            report = self._scanner.scan()
            self._also()
            self.last = {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": time.monotonic() - begin,
                "problems": list(report.problems),
            }

    def _scan(self) -> None:
        told = ""
        while True:
            try:
                self.now()
                told = ""
            except RaytrainError as error:
                if str(error) != told:
                    LOG.warning("%s", error)
                told = str(error)
            pause = max(self._every_s, _SHARE * (self.last["seconds"] or 0.0))
            if self._ending.wait(pause):
                return
