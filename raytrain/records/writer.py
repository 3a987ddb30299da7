"""A trial's records: result.json, progress.csv and TensorBoard, every iteration once and in order.

The trial itself writes them, in this order:

    iteration k ends         append(row k)        in the files, not yet durable
    before checkpoint k is   flush(durable=True)  every row up to k survives the loss of power
    committed
    the process is killed
    checkpoint k is restored TrialRecords(directory, resume_from=k) cuts everything after k

Training goes on exactly, so the rows after k are produced again. A disk that is full or has become
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
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from raytrain.checkpoint.commit import Fence, nothing
from raytrain.errors import RaytrainError
from raytrain.records.append_file import sync_and_close, sync_directory
from raytrain.records.row_files import ProgressCsv, ResultJson, Row, decode_row, encode_row
from raytrain.records.tensorboard import EventFiles
from raytrain.storage.escapes import printable

logger = logging.getLogger(__name__)

# Rows not yet durable are in memory. Without a checkpoint in that many, they are made durable.
_MOST_NOT_DURABLE = 1000


class RecordsError(RaytrainError):
    """Rows cannot be made durable; what depends on them has to wait."""


class _Sink(Protocol):
    def open(self, upto: int) -> None: ...
    def write(self, row: Row) -> None: ...
    def descriptor(self) -> int | None: ...
    def close(self) -> None: ...


class _Queue:
    """One file and the rows that it has not taken yet."""

    def __init__(self, sink: _Sink, resume_from: int) -> None:
        self._sink = sink
        self._resume_from = resume_from
        self._is_open = False
        self.rows: deque[Row] = deque()

    def drain(self) -> None:
        """Raises OSError; the rows not written stay, in order."""
        if not self._is_open:
            self._sink.open(self._resume_from)
            self._is_open = True
        while self.rows:
            self._sink.write(self.rows[0])
            self.rows.popleft()

    def start_again(self, resume_from: int, rows: Iterable[Row]) -> None:
        """Let the next `drain` cut the file to `resume_from` and write `rows`."""
        self._sink.close()
        self._is_open = False
        self._resume_from = resume_from
        self.rows = deque(rows)

    def descriptor(self) -> int | None:
        return self._sink.descriptor()

    def close(self) -> None:
        self._sink.close()


class TrialRecords:
    """Open the records of a trial that continues after iteration `resume_from` (0: a new one).

    `starts_after` is the iteration that a fork began from: rows up to it belong to the parent and
    are not missed here. `fence` raises if another writer has taken over. `warnings` holds what a person
    should know, each thing once.
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
        self._last = resume_from
        self._durable = resume_from
        self._not_durable: list[bytes] = []  # the lines in result.json of the rows after that
        self._suspect: OSError | None = None  # why written ones among these may be lost
        self._failing = False
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordsError(
                f"cannot create the trial's directory {directory}: {error}. "
                "Make the place writable, or give another storage_path."
            ) from error
        results = ResultJson(directory, fence)
        sinks: tuple[_Sink, ...] = (
            results,
            ProgressCsv(directory, results, fence),
            EventFiles(directory, results, fence=fence),
        )
        self._queues = [_Queue(sink, resume_from) for sink in sinks]
        problem = self._drain()
        if problem is None and results.last < resume_from and resume_from > starts_after:
            self._warn(
                f"{results.path} holds rows up to iteration {results.last}, but the run continues "
                f"after iteration {resume_from}. The rows between are lost; training is unaffected."
            )

    def append(self, result: Mapping[str, Any]) -> str | None:
        """Write one iteration's result. Never raises for the disk's sake.

        Returns a warning when the disk begins to refuse rows (not again for the rows after that).
        Raises ValueError for an iteration that is not after the last one. `result` may be nested
        and hold numpy's numbers; "config" costs time and is best left out.
        """
        row = encode_row(result)
        with self._lock:
            if row.iteration <= self._last:
                raise ValueError(
                    f"iteration {row.iteration} was reported after iteration {self._last}; "
                    "every iteration is recorded once and in order"
                )
            self._last = row.iteration
            self._not_durable.append(row.line)
            for queue in self._queues:
                queue.rows.append(row)
            known = len(self.warnings)
            self._drain()
            overdue = len(self._not_durable) % _MOST_NOT_DURABLE == 0
            warning = self.warnings[-1] if len(self.warnings) > known else None
        if overdue and not self._syncing.locked():
            try:
                self.flush(durable=True)
            except RecordsError as error:
                # The rows stay in memory, and as many rows later it is tried again.
                logger.warning(printable(str(error)))
        return warning

    def flush(self, durable: bool = False) -> None:
        """Write what waits; with `durable`, return only once every row so far survives power loss.

        Raises RecordsError, with `durable` only, if that is not possible now. The rows are kept.
        """
        if not durable:
            with self._lock:
                self._drain()
            return
        # One at a time: the kernel reports a failed write to one fsync only, and not to the next.
        with self._syncing:
            with self._lock:
                problem = self._drain()
                # Not while the disk still refuses rows: it would only hold fewer of them then.
                if problem is None and self._suspect is not None:
                    problem = self._write_again()
                if problem is not None:
                    raise self._error(problem)
                # The fsync of a slow disk is not to hold up `append`: it works on duplicates.
                descriptors = [queue.descriptor() for queue in self._queues]
                last, rows = self._last, len(self._not_durable)
            try:
                sync_and_close(each for each in descriptors if each is not None)
                sync_directory(self.directory)
            except OSError as error:
                self._suspect = error
                raise self._error(error) from error
            with self._lock:
                if self._suspect is not None:  # `append` was told meanwhile, and so fsync was not
                    raise self._error(self._suspect)
                self._durable = last
                del self._not_durable[:rows]

    def _write_again(self) -> OSError | None:
        self._suspect = None
        rows = [row for line in self._not_durable if (row := decode_row(line)) is not None]
        for queue in self._queues:
            queue.start_again(self._durable, rows)
        return self._drain()

    def close(self) -> None:
        """Write what can be written and close the files; rows that cannot be written are lost."""
        with self._lock:
            self._drain()
            for queue in self._queues:
                queue.close()

    def _drain(self) -> OSError | None:
        """Let every file take its rows. A file that refuses does not keep the others waiting."""
        problem: OSError | None = None
        for queue in self._queues:
            try:
                queue.drain()
            except OSError as error:
                problem = problem or error
        if problem is not None and not self._failing:
            self._warn(
                f"records cannot be written in {self.directory}: {problem}. Training goes on and "
                "the rows are kept in memory; free space or make the place writable again."
            )
        self._failing = problem is not None
        self._suspect = problem or self._suspect
        return problem

    def _error(self, problem: OSError) -> RecordsError:
        return RecordsError(
            f"the trial's records in {self.directory} cannot be made durable: {problem}. "
            "The rows are kept in memory; free space or make the place writable again."
        )

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        logger.warning(printable(text))
