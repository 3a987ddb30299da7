"""The tables of the history.

    runs          one row for each run (a directory and its run id); what `queries.run` returns
    trials        the trials of a run, each with its score over the iterations
    checkpoints   the checkpoints of a run
    changes       one row: the number of the last change of a run

These four are an index of what is on storage, and `raytrain history rebuild` makes them again. Of a
run that was deleted from storage they keep what was known last (`gone_at`). The others have what no
storage has:

    verdicts      what verifying and auditing found
    launches      the starts of runs by a server
    tasks         verifications, exports and the like

Times are texts, ISO 8601 in UTC. The schema is made by the migrations in `migrations/versions`; a
test compares it with these tables.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

ID_LENGTH = 16
VERSION_TABLE = "raytrain_version"
"""Alembic's: of its own, since a database may hold other programs' tables, too."""


def _document(name: str) -> Column[object]:
    return Column(name, JSON(none_as_null=True))


def _of_run(*, primary_key: bool = True) -> Column[str]:
    return Column(
        "run",
        String(ID_LENGTH),
        ForeignKey("runs.id", ondelete="CASCADE"),
        primary_key=primary_key,
        nullable=False,
    )


runs = Table(
    "runs",
    metadata,
    Column("id", String(ID_LENGTH), primary_key=True),
    Column("storage", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("progress", Double),
    Column("trials", Integer, nullable=False),
    Column("finished", Integer, nullable=False),
    Column("timesteps", BigInteger, nullable=False),
    Column("iteration", BigInteger, nullable=False),
    Column("episodes", BigInteger),
    Column("first_start", Text, nullable=False),
    Column("changed_at", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("score_metric", Text, nullable=False),
    Column("score_order", Text, nullable=False),
    Column("best_score", Double),
    Column("last_score", Double),
    _document("sparkline"),
    Column("exact", Boolean),
    _document("exact_lost"),
    Column("failures_survived", BigInteger, nullable=False),
    Column("preemptions", BigInteger, nullable=False),
    Column("lost_nodes", BigInteger, nullable=False),
    Column("redone_s", Double, nullable=False),
    Column("away_s", Double, nullable=False),
    Column("stage", Text),
    Column("last_error", Text),
    Column("writer", Text),
    _document("parent"),
    _document("ancestors"),
    # Its own text: JSON has no infinity, and configs do.
    Column("config", Text, nullable=False),
    Column("config_digest", Text, nullable=False),
    Column("gone_at", Text),
    # What the scanner compares (see `stamps`): empty if the run is to be read again in any case.
    Column("stamp", Text, nullable=False),
    Column("lock_stamp", Text, nullable=False),
    Column("change", BigInteger, nullable=False),
    Index(None, "storage"),
    Index(None, "path"),
    Index(None, "changed_at"),
    Index(None, "change"),
)

trials = Table(
    "trials",
    metadata,
    _of_run(),
    Column("name", Text, primary_key=True),
    Column("place", Integer, nullable=False),
    Column("state", Text, nullable=False),
    # A `TrialView` without its checkpoints.
    _document("document"),
    # The score as it is kept (see `score_series`), and up to where the trial's rows were read.
    _document("series"),
    Column("cursor", Text, nullable=False),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    _of_run(),
    Column("trial", Text, primary_key=True),
    Column("path", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("iteration", BigInteger, nullable=False),
    Column("timesteps", BigInteger),
    Column("stage", Text),
    Column("score", Double),
    Column("size_bytes", BigInteger, nullable=False),
    Column("good", Boolean),
    Column("problem", Text),
    Column("created_at", Text),
    Column("weights_sha256", Text),
    Index(None, "weights_sha256"),
)

changes = Table(
    "changes",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("last", BigInteger, nullable=False),
)

verdicts = Table(
    "verdicts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run", String(ID_LENGTH), nullable=False, index=True),
    Column("kind", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("good", Boolean, nullable=False),
    _document("document"),
    Column("made_at", Text, nullable=False),
)

launches = Table(
    "launches",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run", String(ID_LENGTH), index=True),
    Column("path", Text, nullable=False, index=True),
    Column("started_at", Text, nullable=False),
    _document("command"),
    Column("host", Text),
    Column("pid", BigInteger),
    Column("log", Text),
    Column("job", Text),
    Column("address", Text),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("run", String(ID_LENGTH), index=True),
    Column("state", Text, nullable=False),
    Column("done", BigInteger, nullable=False),
    Column("total", BigInteger),
    Column("message", Text),
    _document("result"),
    Column("started_at", Text, nullable=False),
    Column("ended_at", Text),
    # Host, pid and start of the server that runs it.
    Column("server", Text, nullable=False),
)

INDEX = (runs, trials, checkpoints)
"""What is made from storage alone."""
