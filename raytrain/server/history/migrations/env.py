"""What Alembic runs: the migrations on the connection, and in the transaction, that `History.open`
gives."""

from __future__ import annotations

from alembic import context

from raytrain.server.history.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)
context.run_migrations()
