"""What Alembic runs: the migrations on the connection, and in the transaction, that `History.open`
gives."""

from __future__ import annotations

from alembic import context

from raytrain.server.history.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
