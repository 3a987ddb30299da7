"""The scanner keeps the index equal to what is on storage.

    for each storage:  what the index knows  ─>  stamps of what is there  ─>  the runs whose stamps
                       differ are read and written, each in one transaction  ─>  runs that the index
                       knew, and that are no longer there, are marked as gone

The index is asked first, so a run that another scanner adds meanwhile is not taken for gone. Stamps
are taken before the files are read: what changes in between has another stamp at the next scan. So
any number of scanners may work on one database; each repairs what a slower one wrote.

A file that changed within the last seconds may change again without another time of change. The
stamp of such a run is not kept, and the run is read again by the next scan.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, select, update

from raytrain.commands.status import view
from raytrain.errors import BadInput, RaytrainError
from raytrain.server.history.database import DatabaseError, History
from raytrain.server.history.queries import count_change
from raytrain.server.history.run_index import indexed, put
from raytrain.server.history.stamps import Stamps, experiments
from raytrain.server.history.tables import runs, trials
from raytrain.storage import Location, StorageError, who_writes
from raytrain.storage.escapes import printable
from raytrain.storage.location import storage_errors

_SETTLED_S = 3.0


@dataclass(frozen=True)
class ScanReport:
    """The runs that changed, and a sentence for each storage or experiment that cannot be read."""

    changed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Known:
    """What the index has of a run; `running`: the trials whose locks were held."""

    run: str
    stamp: str
    lock_stamp: str
    is_running: bool
    running: tuple[str, ...]


class Scanner:
    """See the module's docstring. `clock`: seconds since 1970; `tell`: is given each problem once,
    as long as it stays."""

    def __init__(
        self,
        history: History,
        storages: Sequence[str],
        *,
        clock: Callable[[], float] = time.time,
        tell: Callable[[str], None] = lambda problem: None,
    ) -> None:
        """Raises `BadInput` for a storage that cannot be opened."""
        self._history = history
        self._storages = list({str(place): place for place in map(Location.of, storages)}.values())
        self._clock = clock
        self._tell = tell
        self._told: set[str] = set()
        self._unreadable: dict[str, tuple[Stamps, str]] = {}

    def scan(
        self, *, thorough: bool = False, track: Callable[[Iterable[str]], Iterable[str]] = iter
    ) -> ScanReport:
        """Bring the index up to date. `thorough`: make it from storage alone, whatever it has of
        the runs that are there; `track` passes the names of those that are read on, and may show
        how many are done.

        Raises:
            DatabaseError: the database cannot be used.
        """
        report = ScanReport()
        for storage in self._storages:
            try:
                self._scan(storage, report, thorough, track)
            except DatabaseError:
                raise
            except RaytrainError as error:
                report.problems.append(str(error))
        for problem in report.problems:
            if problem not in self._told:
                self._tell(problem)
        self._told = set(report.problems)
        return report

    def _scan(
        self,
        storage: Location,
        report: ScanReport,
        thorough: bool,
        track: Callable[[Iterable[str]], Iterable[str]],
    ) -> None:
        with self._history.reading() as connection:
            known = _known(connection, str(storage))
        now = self._clock()
        with storage_errors("Listing the experiments", storage):
            if not storage.is_dir():
                raise BadInput(
                    f"There is no directory {storage} yet, or it is not mounted. What the history "
                    "has of it stays."
                )
        present = experiments(storage)
        due = [
            name
            for name, stamps in present.items()
            if thorough or not _is_same(storage / name, known.get(str(storage / name)), stamps)
        ]
        for name in track(due):
            try:
                stamps = present[name]
                changed = self._read(storage, storage / name, stamps, now, thorough=thorough)
                report.changed.extend(changed)
            except DatabaseError:
                raise
            except RaytrainError as error:
                message, where = str(error), printable(str(storage / name))
                report.problems.append(message if where in message else f"{where}: {message}")
        there = {str(storage / name) for name in present}
        gone = [each.run for path, each in known.items() if path not in there]
        if gone:
            with self._history.writing() as connection:
                report.changed.extend(_mark_gone(connection, gone, now))

    def _read(
        self, storage: Location, place: Location, stamps: Stamps, now: float, *, thorough: bool
    ) -> list[str]:
        """The ids of the runs that changed: this one, and the one that was there before."""
        before = self._unreadable.pop(str(place), None)
        if before is not None and before[0] == stamps and not thorough:
            self._unreadable[str(place)] = before
            raise BadInput(before[1])
        try:
            _require_text(place)
            found = view(place)
        except BadInput as error:
            self._unreadable[str(place)] = stamps, str(error)
            raise
        settled = stamps.newest_ns / 1e9 < now - _SETTLED_S
        index = indexed(
            found,
            place,
            str(storage),
            stamp=stamps.files if settled else "",
            lock_stamp=stamps.locks,
            known=_nothing if thorough else self._series_of,
        )
        with self._history.writing() as connection:
            changed = [index.id] if put(connection, index) else []
            others = select(runs.c.id).where(
                runs.c.path == found.path, runs.c.id != index.id, runs.c.gone_at.is_(None)
            )
            return changed + _mark_gone(connection, connection.execute(others).scalars(), now)

    def _series_of(self, run: str) -> dict[str, tuple[Mapping[str, Any], str]]:
        columns = trials.c.name, trials.c.series, trials.c.cursor
        with self._history.reading() as connection:
            found = connection.execute(select(*columns).where(trials.c.run == run))
            return {name: (series, cursor) for name, series, cursor in found}


def _nothing(run: str) -> dict[str, tuple[Mapping[str, Any], str]]:
    return {}


def _known(connection: Connection, storage: str) -> dict[str, _Known]:
    """The runs in a storage that are not gone, by path."""
    columns = runs.c.path, runs.c.id, runs.c.stamp, runs.c.lock_stamp, runs.c.state
    here = (runs.c.storage == storage) & runs.c.gone_at.is_(None)
    running: dict[str, list[str]] = {}
    for run, trial in connection.execute(
        select(trials.c.run, trials.c.name).join(runs).where(here, trials.c.state == "running")
    ):
        running.setdefault(run, []).append(trial)
    return {
        path: _Known(run, stamp, locks, state == "running", tuple(running.get(run, ())))
        for path, run, stamp, locks, state in connection.execute(select(*columns).where(here))
    }


def _is_same(place: Location, known: _Known | None, stamps: Stamps) -> bool:
    """Whether the index has what is there. Whether a lock is held no stamp tells."""
    if known is None or known.stamp != stamps.files:
        return False
    if not known.is_running and not known.running:
        return known.lock_stamp == stamps.locks
    with suppress(StorageError):  # Then reading it fails, too, and says why.
        held = (who_writes(place) is not None) == known.is_running
        return held and all(who_writes(place / trial) is not None for trial in known.running)
    return False


def _mark_gone(connection: Connection, ids: Iterable[str], now: float) -> list[str]:
    """Those of the runs that were not marked before."""
    still = runs.c.id.in_(list(ids)) & runs.c.gone_at.is_(None)
    marked = list(connection.execute(select(runs.c.id).where(still)).scalars())
    if marked:
        moment = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
        gone = {"gone_at": moment, "writer": None}
        connection.execute(update(runs).where(runs.c.id.in_(marked)).values(gone))
        count_change(connection, marked)
    return marked


def _require_text(place: Location) -> None:
    try:
        place.path.encode()
    except UnicodeEncodeError:
        raise BadInput(
            f"{place} has a name that is not UTF-8, so the history cannot have it. Rename it."
        ) from None
