"""A trial's records: result.json, progress.csv and TensorBoard, every iteration once and in order.

The trial itself writes them, in this order:

    iteration k ends         append(row k)        in the files, not yet durable
    before checkpoint k is   flush()              every row up to k survives a power loss
    committed
    the process is killed
    checkpoint k is restored TrialRecords(directory, resume_from=k) cuts everything after k

The resumed run is exact, so it produces the rows after k again. A disk that is full or has become
read-only does not stop training: rows wait in memory and are written in order as soon as the disk
takes them. Only a checkpoint has to wait, for its rows come first.

After an fsync or a write that failed, nobody knows which of the bytes since the last good fsync are
on the disk, and the kernel reports the failure once: the next fsync may succeed without them. So
every row is kept in memory until it is durable. After a failure, the next durable flush cuts all
files to the last durable row, as a restart would, and writes the rows after it again.

`append` may run in one thread and `flush` in another.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from raytrain.checkpoint.commit import Fence, nothing
from raytrain.errors import RaytrainError
from raytrain.records.row_files import ProgressCsv, ResultJson, Row, RowFile, encode_row
from raytrain.records.tensorboard import EventFiles
from raytrain.storage.escapes import printable
from raytrain.storage.location import fsync

logger = logging.getLogger(__name__)

_MOST_NOT_DURABLE = 1000
"""Rows in memory that are not durable yet. As many without a checkpoint are made durable."""


class RecordsError(RaytrainError):
    """Rows cannot be made durable; the checkpoint that needs them has to wait."""


class TrialRecords:
    """Open the records of a trial that continues after iteration `resume_from` (0: a new one).

    `starts_after` is the iteration that a fork began from: rows up to it belong to the parent, and
    there is no warning that they are missing. `fence` raises if another writer has taken over.
    `warnings` are sentences for the user, each problem once.
    """

    def __init__(
        self,
        directory: Path,
        resume_from: int = 0,
        *,
        starts_after: int = 0,
        fence: Fence = nothing,
    ) -> None:
        self.directory = directory
        self.warnings: list[str] = []
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._durable = resume_from
        self._rows: list[Row] = []  # those after `_durable`
        self._suspect: OSError | None = None  # why rows among these that were written may be lost
        self._failing = False
        self._left_out: set[str] = set()
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordsError(
                f"cannot create the trial's directory {directory}: {error}. "
                "Make the place writable, or give another storage_path."
            ) from error
        results = ResultJson(directory, fence)
        self._files: list[RowFile] = [
            results,
            ProgressCsv(directory, results, fence),
            EventFiles(directory, results, fence),
        ]
        problem = self._drain()
        if problem is None and results.last < resume_from and resume_from > starts_after:
            self._warn(
                f"{results.path} holds rows up to iteration {results.last}, but the run continues "
                f"after iteration {resume_from}. The rows between are lost; training is unaffected."
            )

    def append(self, result: Mapping[str, Any]) -> str | None:
        """Write one iteration's result. A disk that refuses the row raises nothing.

        Returns a warning when the disk begins to refuse rows (not again for the rows after that),
        and when a metric is too large to be recorded.
        Raises ValueError for an iteration that is not after the last one. `result` may be nested
        and hold NumPy numbers; "config" costs time and is best left out.
        """
        row = encode_row(result)
        with self._lock:
            last = self._rows[-1].iteration if self._rows else self._durable
            if row.iteration <= last:
                raise ValueError(
                    f"iteration {row.iteration} was reported after iteration {last}; "
                    "every iteration is recorded once and in order"
                )
            self._rows.append(row)
            known = len(self.warnings)
            self._tell_of(row.left_out)
            self._drain()
            overdue = len(self._rows) % _MOST_NOT_DURABLE == 0
            warning = self.warnings[-1] if len(self.warnings) > known else None
        if overdue and not self._syncing.locked():
            try:
                self.flush()
            except RecordsError as error:
                # The rows stay in memory; the next try is as many rows later.
                logger.warning(printable(str(error)))
        return warning

    def flush(self) -> None:
        """Return once every row so far survives a power loss.

        Raises RecordsError if that is not possible now. The rows are kept.
        """
        # One at a time: the kernel reports a failed write to one fsync only, and not to the next.
        with self._syncing:
            try:
                # Without the lock, as they are last: a slow disk must not hold up `append`.
                with ExitStack() as fsyncs, self._lock:
                    problem = self._drain()
                    # Not while the disk still refuses rows: it would only hold fewer of them.
                    if problem is None and self._suspect is not None:
                        self._suspect = None
                        self._close_files()  # So that the files are cut to the durable rows.
                        problem = self._drain()
                    if problem is not None:
                        raise self._error(problem)
                    written = list(self._rows)
                    for file in self._files:
                        file.sync_at_exit(fsyncs)
                fsync(self.directory)
            except OSError as error:
                self._suspect = error
                raise self._error(error) from error
            with self._lock:
                # `append` may have been given the failure meanwhile, and then fsync was not.
                if self._suspect is not None:
                    raise self._error(self._suspect)
                if written:
                    self._durable = written[-1].iteration
                    del self._rows[: len(written)]

    def close(self) -> None:
        """Write what can be written and close the files; rows that cannot be written are lost."""
        with self._lock:
            self._drain()
            self._close_files()
            self._files = []

    def _close_files(self) -> None:
        for file in self._files:
            file.close()

    def _drain(self) -> OSError | None:
        """Write the rows to every file. A file that refuses does not hold up the others."""
        problem: OSError | None = None
        for file in self._files:
            try:
                file.catch_up(self._durable, self._rows)
            except OSError as error:
                problem = problem or error
        if problem is not None and not self._failing:
            self._warn(
                f"records cannot be written in {self.directory}: {problem}. Training continues and "
                "the rows are kept in memory; free space or make the place writable again."
            )
        self._failing = problem is not None
        self._suspect = problem or self._suspect
        return problem

    def _tell_of(self, left_out: Iterable[str]) -> None:
        new = [key for key in left_out if key not in self._left_out]
        self._left_out.update(new)
        if new:
            self._warn(
                f"{', '.join(new)}: an image or a video is not recorded among the metrics, only "
                "its number of values. Write it to a file in the callback."
            )

    def _error(self, problem: OSError) -> RecordsError:
        return RecordsError(
            f"the trial's records in {self.directory} cannot be made durable: {problem}. "
            "The rows are kept in memory; free space or make the place writable again."
        )

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        logger.warning(printable(text))
