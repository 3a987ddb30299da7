"""What the parts of one server share; the application holds it as `app.state.server`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Request

from raytrain.server.history.database import History
from raytrain.server.history.queries import RunQuery
from raytrain.server.history.scanner import Scanner
from raytrain.server.launcher import Launcher
from raytrain.server.places import Places
from raytrain.server.problems import LOG, Refused
from raytrain.server.scanning import Scanning
from raytrain.server.settings import ServerSettings
from raytrain.server.streams import Streams
from raytrain.server.tasks import Tasks
from raytrain.storage import Location


class Server:
    """Opens the database.

    Raises:
        BadInput: a storage or the database cannot be used.
        DatabaseError: the database does not answer.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.places = Places(settings)
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings.exports.mkdir(exist_ok=True)
        self.history = History.open(settings.database)
        scanner = Scanner(self.history, settings.storages, tell=LOG.warning)
        remote = any(not Location.of(storage).is_local for storage in settings.storages)
        self.launcher = Launcher(settings, self.history)
        self.scanning = Scanning(scanner, remote=remote, also=self.launcher.reap)
        self.tasks = Tasks(self.history, settings.limits)
        self.streams = Streams(settings.limits.streams)

    def close(self) -> None:
        """End the threads, cancel the tasks. Runs go on."""
        self.scanning.end()
        self.tasks.close()
        self.history.close()

    def row(self, run: str) -> dict[str, Any]:
        """The `RunRow` of a run. Raises `Refused`."""
        found = self.history.run(run)
        if found is None:
            raise Refused(404, f"There is no run {run} in the history.")
        return found

    def present(self, run: str) -> tuple[dict[str, Any], Location]:
        """The row and the directory of a run that is there. Raises `Refused`."""
        row = self.row(run)
        return row, self.places.of_run(row)

    def row_at(self, place: Location) -> Mapping[str, Any] | None:
        """The row of the run in a directory, as storage has it now."""
        self.scanning.now()
        page = self.history.runs(RunQuery(q=str(place), per_page=1000, include_gone=False))
        return next((row for row in page.runs if row["path"] == str(place)), None)


def server_of(request: Request) -> Server:
    server: Server = request.app.state.server
    return server
