"""The history of finished episodes: `episodes/*.parquet`, each episode once, also after a crash.

    <trial>/episodes/part-00000001-00000010.parquet      the episodes that ended in iterations 1..10

    episode     int64   running number from 0: by iteration, then group, then order of finishing
    iteration   int64   in which it ended
    timestep    int64   env steps sampled over the lifetime at the end of that iteration
    group       int64   env group; `runner` is the same number under RLlib's name for it
    env_index   int64   environment within the group
    return      double  undiscounted
    length      int64   env steps
    stage       string  curriculum stage, or null
    custom/*    double  metrics of the environment, null where an episode has none

A part appears under its name only when it is complete and on the disk. From the trial's second
attempt on the name has the number of the attempt that wrote it (part-00000001-00000010.2.parquet),
so no two attempts write to one name, and an attempt never deletes a part of its successor.

A part is superseded if all of its iterations are within another part that is not of an earlier
attempt. A crash leaves such parts of a merge (the small parts) and of a cut (the shortened copy).
Readers ignore them; the next start deletes them. If parts of two attempts have the same iteration,
the later attempt's rows count.

`raytrain.records.read_episodes` follows these rules: each episode once, every custom column.
`pyarrow.parquet.read_table(<trial>/episodes)` works too, but it takes the columns of the first part
for all (a metric that came later is missing), reads superseded parts as well, and may meet a merge
half way.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raytrain.checkpoint.commit import Fence, nothing
from raytrain.records.append_file import replace_file
from raytrain.records.recent_episodes import CUSTOM
from raytrain.records.writer import RecordsError
from raytrain.storage import Location
from raytrain.storage.escapes import printable
from raytrain.storage.location import fsync

logger = logging.getLogger(__name__)

_DIRECTORY = "episodes"
_NAME = re.compile(r"part-(\d+)-(\d+)(?:\.(\d+))?\.parquet")
_COLUMNS = pa.schema(
    [
        ("episode", pa.int64()),
        ("iteration", pa.int64()),
        ("timestep", pa.int64()),
        ("group", pa.int64()),
        ("env_index", pa.int64()),
        ("runner", pa.int64()),
        ("return", pa.float64()),
        ("length", pa.int64()),
        ("stage", pa.string()),
    ]
)
_MERGE_ABOVE = 64  # parts
_LARGE = 1_000_000  # rows: a part of that size is not merged again


@dataclass(frozen=True, order=True)
class _Part:
    first: int
    last: int
    attempt: int
    place: Location = field(compare=False)

    @property
    def path(self) -> Path:
        return self.place.local_path

    def covers(self, other: _Part) -> bool:
        within = self.first <= other.first and other.last <= self.last
        return self != other and within and self.attempt >= other.attempt


def _listed(directory: Path | Location) -> list[_Part]:
    place = Location.of(directory)
    matches = [match for name in place.listed() if (match := _NAME.fullmatch(name))]
    return sorted(
        _Part(int(match[1]), int(match[2]), int(match[3] or 1), place / match[0])
        for match in matches
    )


def _valid(parts: list[_Part]) -> list[_Part]:
    """Without superseded parts."""
    return [part for part in parts if not any(other.covers(part) for other in parts)]


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    custom = sorted({name for row in rows for name in row if name.startswith(CUSTOM)})
    schema = pa.schema([*_COLUMNS, *((name, pa.float64()) for name in custom)])
    return pa.Table.from_pylist(rows, schema=schema)


def _read(
    parts: Iterable[_Part], among: Iterable[_Part], columns: Sequence[str] | None = None
) -> pa.Table:
    """The rows of `parts`, without iterations that later attempts in `among` have."""
    # One file at a time: a dataset would take the columns of the first file for all of them.
    tables = [_rows(part, among, columns) for part in parts]
    empty = _COLUMNS.empty_table()
    if columns is not None:
        empty = empty.select([name for name in _COLUMNS.names if name in columns])
    return pa.concat_tables([empty, *tables], promote_options="default")


def _rows(part: _Part, among: Iterable[_Part], columns: Sequence[str] | None) -> pa.Table:
    file = pq.ParquetFile(part.place.path, filesystem=part.place.fs)
    wanted = None if columns is None else [*columns]
    table, iteration = file.read(columns=wanted), pc.field("iteration")
    for other in among:
        if other.attempt > part.attempt and other.first <= part.last and part.first <= other.last:
            table = table.filter((iteration < other.first) | (iteration > other.last))
    return table


def read_episodes(
    trial_directory: Path | Location, columns: Sequence[str] | None = None
) -> pa.Table:
    """All episodes of a trial, sorted by number; may be called while the trial is running.

    With `columns`, only these, of those that there are; `episode` and `iteration` are in any case.

    Raises OSError or pyarrow.ArrowInvalid for a damaged part.
    """
    directory = Location.of(trial_directory) / _DIRECTORY
    if columns is not None:
        columns = ["episode", "iteration", *columns]
    while True:
        parts = _valid(_listed(directory))
        try:
            table = _read(parts, among=parts, columns=columns).sort_by("episode")
        except FileNotFoundError:
            # Merged or cut between the listing and the reading: its replacement exists already.
            if _valid(_listed(directory)) == parts:
                raise
            continue
        # A listing is not atomic: during a merge it may miss the new part and the old ones alike.
        if _valid(_listed(directory)) == parts:
            return table


class EpisodeHistory:
    """The writing side. `directory` is the trial's; parts are cut to iteration `resume_from`.

    `next_episode` is the number of the next episode according to the checkpoint; without it,
    numbers continue after those in the files. `starts_after` is the iteration that a fork began
    from: earlier episodes belong to the parent, and there is no warning that they are missing.
    `attempt` is the writer's number, and `fence` raises if another has taken over. `append` may run
    in one thread, `flush` in another.
    """

    def __init__(
        self,
        directory: Path,
        resume_from: int = 0,
        next_episode: int | None = None,
        *,
        starts_after: int = 0,
        attempt: int = 1,
        fence: Fence = nothing,
    ) -> None:
        self.directory = directory / _DIRECTORY
        self._attempt = attempt
        self._fence = fence
        # Of its own: a replaced writer that is stopped before it deletes what it left must find
        # no file of its successor.
        self._temporary = f"part.{uuid.uuid4().hex[:8]}"
        self.warnings: list[str] = []
        self._covered = resume_from  # by parts: the iterations up to here are in them
        self._waiting: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        try:
            found = self._open()
        except OSError as error:
            raise RecordsError(
                f"the episode history in {self.directory} cannot be opened: {error}. "
                "Free space or make the place writable, and start again."
            ) from error
        self._next = found if next_episode is None else next_episode
        if self._next != found and resume_from > starts_after:
            self._warn(
                f"the episode history in {self.directory} counts {found} episodes, but the "
                f"checkpoint of iteration {resume_from} counts {self._next}. Some are missing; "
                "numbers continue as in the checkpoint and training is not affected."
            )

    def append(
        self, iteration: int, timestep: int, stage: str | None, rows: Iterable[Mapping[str, Any]]
    ) -> None:
        """Number the episodes of one iteration and keep them until `flush`.

        One call per iteration, with the rows of all groups (see `fast_sampling.episode_rows`);
        within a group in the order of finishing.
        """
        ordered = sorted(rows, key=lambda row: int(row["group"]))
        with self._lock:
            last = self._waiting[-1]["iteration"] if self._waiting else self._covered
            if ordered and iteration <= last:
                raise ValueError(
                    f"episodes of iteration {iteration} were reported after those of iteration "
                    f"{last}; each iteration's episodes are appended once and in order"
                )
            shared = {"iteration": iteration, "timestep": timestep, "stage": stage}
            for number, row in enumerate(ordered, self._next):
                self._waiting.append({"episode": number, "runner": row["group"], **shared, **row})
            self._next += len(ordered)

    def flush(self, iteration: int) -> None:
        """Make the episodes up to `iteration` durable. Raises RecordsError; the rows are kept."""
        with self._flushing:
            with self._lock:
                ready = [row for row in self._waiting if row["iteration"] <= iteration]
            if not ready:
                return
            try:
                self._commit(_table(ready), self._covered + 1, iteration)
            except OSError as error:
                raise RecordsError(
                    f"finished episodes cannot be written to {self.directory}: {error}. They are "
                    "kept in memory; free space or make the place writable again."
                ) from error
            with self._lock:
                del self._waiting[: len(ready)]
                self._covered = iteration
            self._merge()

    def _open(self) -> int:
        """Cut and clean up the directory; the number after the last episode."""
        self.directory.mkdir(parents=True, exist_ok=True)
        parts = _listed(self.directory)
        valid = _valid(parts)
        self._fence()
        for path in [*self.directory.glob(".part.*"), *(p.path for p in set(parts) - set(valid))]:
            path.unlink(missing_ok=True)
        end = 0
        # From the end, so that a reader never sees a gap.
        for part in reversed(valid):
            if part.first > self._covered:
                self._fence()
                part.path.unlink(missing_ok=True)
                continue
            try:
                end = max(end, self._cut(part, valid))
            except (OSError, pa.ArrowInvalid) as error:
                # pyarrow reports some damage as an OSError, without a number.
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                self._set_aside(part, error)
            if end and part.last <= self._covered:
                break  # the parts before it need nothing
        fsync(self.directory)
        return end

    def _cut(self, part: _Part, among: list[_Part]) -> int:
        """Shorten a part that reaches too far; the number after its last episode."""
        table = _read([part], among)
        if part.last > self._covered:
            table = table.filter(pc.field("iteration") <= self._covered)
            if len(table):
                self._commit(table, int(pc.min(table["iteration"]).as_py()), self._covered)
            self._fence()
            part.path.unlink(missing_ok=True)
        return int(pc.max(table["episode"]).as_py()) + 1 if len(table) else 0

    def _set_aside(self, part: _Part, error: Exception) -> None:
        aside = part.path.with_name(f".damaged-{part.path.name}")
        self._fence()
        os.replace(part.path, aside)
        self._warn(
            f"the episodes of iterations {part.first} to {part.last} are unreadable ({error}); "
            f"the file was set aside as {aside}. Training is not affected."
        )

    def _commit(self, table: pa.Table, first: int, last: int) -> None:
        # Ray and others remove empty directories, and a user may remove this one.
        self.directory.mkdir(parents=True, exist_ok=True)
        data = pa.BufferOutputStream()
        pq.write_table(table, data)
        attempt = f".{self._attempt}" if self._attempt > 1 else ""
        path = self.directory / f"part-{first:08d}-{last:08d}{attempt}.parquet"
        replace_file(path, [data.getvalue()], self._temporary, self._fence)
        fsync(self.directory)

    def _merge(self) -> None:
        """Merge the small parts at the end into one, once there are many."""
        try:
            small: list[_Part] = []
            valid = _valid(_listed(self.directory))
            for part in reversed(valid):
                if pq.read_metadata(part.path).num_rows >= _LARGE:
                    break
                small.insert(0, part)
            if len(small) <= _MERGE_ABOVE:
                return
            merged = _read(small, valid)
            self._commit(merged, small[0].first, small[-1].last)
            self._fence()
            for part in small:
                part.path.unlink(missing_ok=True)
        except (OSError, pa.ArrowInvalid) as error:
            self._warn(f"parts of the episode history could not be merged: {error}")

    def _warn(self, text: str) -> None:
        if text in self.warnings:
            return
        self.warnings.append(text)
        logger.warning(printable(text))
