"""The database of the history: SQLite or PostgreSQL, by its URL.

    sqlite:////home/me/.local/share/raytrain/history.db
    postgresql+psycopg://user:password@host/database

Several servers, scanners and commands may use one database at once. Transactions that write are
one after another, each from its beginning: so none fails because of another, and numbers of changes
are in the order of the commits. Those that read wait for none.

`History.open` makes the tables, or brings those of a former version up to date, in one transaction:
another process waits, and a kill leaves what was there before.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, insert, make_url, select, text
from sqlalchemy.exc import ArgumentError, DBAPIError

from raytrain.errors import BadInput, RaytrainError, require
from raytrain.server.history import lineage, queries
from raytrain.server.history.queries import RunPage, RunQuery
from raytrain.server.history.tables import VERSION_TABLE, verdicts
from raytrain.server.records.curves import MARKS, SCORE

_MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_S = 60
_LOCK = 7_231_001  # Any number, the same in every raytrain: PostgreSQL's lock of those who write.
_CONNECTIONS = 40  # As many as a server has threads that answer.
_migrating = threading.Lock()  # Alembic has one context in a process.
_WRITES = "raytrain_writes"


class DatabaseError(RaytrainError):
    """The database cannot be reached, or refused something."""


class History:
    """The runs that were ever seen. Methods raise `DatabaseError`; see `queries` for the rest."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, url: str) -> History:
        """The database at a URL, with its tables made or brought up to date.

        Raises:
            BadInput: the URL names no database that can be used, or one of a newer raytrain.
            DatabaseError: it cannot be opened.
        """
        history = cls(_engine(_checked(url)))
        try:
            with history._errors():
                history._migrate()
        except BaseException:
            history.close()
            raise
        return history

    def close(self) -> None:
        self._engine.dispose()

    @property
    def url(self) -> str:
        """Without the password."""
        return self._engine.url.render_as_string(hide_password=True)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with self._errors(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes; it is undone if the body raises."""
        options = {_WRITES: True}
        with (
            self._errors(),
            self._engine.connect().execution_options(**options) as connection,
            connection.begin(),
        ):
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            yield connection

    # -- what is known ---------------------------------------------------------------------------

    def runs(self, query: RunQuery | None = None) -> RunPage:
        """A page of runs. Raises `BadInput` for a state or a sort key that does not exist."""
        with self.reading() as connection:
            return queries.page_of_runs(connection, query or RunQuery())

    def storages(self) -> list[str]:
        """The storages of the runs that are not gone."""
        with self.reading() as connection:
            return queries.storages(connection)

    def run(self, run: str) -> dict[str, Any] | None:
        """A run by its id; None if it was never seen."""
        with self.reading() as connection:
            return queries.run(connection, run)

    def run_at(self, path: str) -> dict[str, Any] | None:
        """The run whose directory is `path` (as `Location` writes it); None if there is none."""
        with self.reading() as connection:
            return queries.run_at(connection, path)

    def trials(self, run: str) -> list[dict[str, Any]]:
        """The fields of a `TrialView` without its checkpoints, in the order of the names."""
        with self.reading() as connection:
            return queries.trials_of(connection, run)

    def checkpoints(
        self, run: str, kind: str | None = None, latest: bool = False
    ) -> list[dict[str, Any]]:
        """The checkpoints of a run (see `queries.checkpoints_of`)."""
        with self.reading() as connection:
            return queries.checkpoints_of(connection, run, kind, latest)

    def kept_curves(self, run: str) -> dict[str, Any]:
        """The score of each trial as the history keeps it, in the form of `records.curves`: for a
        run that is gone."""
        with self.reading() as connection:
            kept = queries.score_series(connection, [run])[run]
        trials = {
            name: {"series": {SCORE: points}, "reset": True} | {key: [] for key in MARKS}
            for name, points in kept.items()
        }
        return {"cursor": "", "metrics": [SCORE], "trials": trials}

    def models(self) -> list[dict[str, Any]]:
        """What was trained: best, final, stages and exports of all runs that are on storage, the
        newest first (see `lineage.models`)."""
        with self.reading() as connection:
            return lineage.models(connection)

    def lineage(self) -> dict[str, Any]:
        """Forks and stages as a graph (see `lineage.graph`)."""
        with self.reading() as connection:
            return lineage.graph(connection)

    def parent(self, run: str) -> str | None:
        """The id of the run that a run was forked from, if the history has it."""
        with self.reading() as connection:
            return lineage.parent(connection, run)

    def compare(self, ids: Sequence[str]) -> dict[str, Any]:
        """Several runs side by side (see `queries.comparison`). Raises `BadInput` for an id that
        does not exist."""
        with self.reading() as connection:
            return queries.comparison(connection, ids)

    def changes(self, since: int) -> tuple[int, list[str]]:
        """The number of the last change, and the runs that changed after change `since`."""
        with self.reading() as connection:
            return queries.changes_since(connection, since)

    # -- what only the database has --------------------------------------------------------------

    def record_verdict(
        self,
        run: str,
        kind: str,
        target: str,
        good: bool,
        *,
        document: Mapping[str, Any],
        made_at: str,
    ) -> None:
        """Keep what a verification or an audit found. `kind`: verify or audit; `target`: what was
        looked at; `made_at`: ISO 8601 in UTC."""
        with self.writing() as connection:
            row = {"run": run, "kind": kind, "target": target, "good": good}
            row |= {"document": queries.storable(document), "made_at": made_at}
            connection.execute(insert(verdicts).values(row))
            queries.count_change(connection, [run])

    def verdicts(self, run: str) -> list[dict[str, Any]]:
        """The verdicts on a run, the newest first."""
        with self.reading() as connection:
            found = connection.execute(
                select(verdicts).where(verdicts.c.run == run).order_by(verdicts.c.id.desc())
            )
            return [dict(row) for row in found.mappings()]

    # -- inside ----------------------------------------------------------------------------------

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            reason = " ".join(str(error.orig).split()).rstrip(".")
            raise DatabaseError(
                f"The database {self.url} refused: {reason}. Check that it is there, that this "
                "user may write to it, and that its disk has space; the runs are not affected."
            ) from error

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        script = ScriptDirectory.from_config(config)
        with self.reading() as connection:
            if _revision(connection) == script.get_current_head():
                return
        with self.writing() as connection:
            before = _revision(connection)
            if before is not None and before not in {each.revision for each in _all(script)}:
                raise BadInput(
                    f"The database {self.url} was written by a newer raytrain (its tables have the "
                    f"version {before!r}). Update raytrain, or give another --database."
                )
            config.attributes["connection"] = connection
            with _migrating:
                command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    options = {"version_table": VERSION_TABLE}
    return MigrationContext.configure(connection, opts=options).get_current_revision()


def _all(script: ScriptDirectory) -> Sequence[Any]:
    return list(script.walk_revisions())


def _checked(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise BadInput(f"--database: {_EXAMPLES}") from None
    if parsed.drivername == "postgresql+psycopg":
        require("postgresql", "psycopg", what="A database of PostgreSQL")
    elif parsed.drivername != "sqlite" or parsed.database in (None, "", ":memory:"):
        shown = parsed.render_as_string(hide_password=True)
        raise BadInput(f"--database {shown}: {_EXAMPLES}")
    return parsed


_EXAMPLES = (
    "give the URL of a database that can be used: sqlite:////home/me/history.db (with three "
    "slashes for a path from here), or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE."
)


def _engine(url: URL) -> Engine:
    if url.drivername != "sqlite":
        return create_engine(url, pool_pre_ping=True, max_overflow=_CONNECTIONS)
    path = Path(str(url.database)).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"--database: the directory {path.parent} cannot be made: {error.strerror}. Give "
            "another path."
        ) from error
    engine = create_engine(
        url.set(database=str(path)),
        connect_args={"timeout": _BUSY_S},
        max_overflow=_CONNECTIONS,
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, record: object) -> None:
    # Transactions are begun below: Python's module would begin them too late for `IMMEDIATE`.
    connection.isolation_level = None
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise sqlite3.OperationalError(
            f"its file system allows no write-ahead log (SQLite's mode is {mode!r} there). Put it "
            "on a local disk"
        )
    # Without a sync at each commit: after a power cut the last changes are read from storage again.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and then wants to write fails if another has written meanwhile.
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
