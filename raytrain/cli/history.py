"""The history of runs: history rebuild."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from raytrain.cli.app import Json, app, bar, command, print_result, say
from raytrain.cli.server import Database, data_directory, database_url
from raytrain.errors import BadInput, require

history = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The database of `raytrain serve`: the history of runs.",
)
app.add_typer(history, name="history")


def rebuild(
    storages: Annotated[
        list[str] | None,
        Argument(
            metavar="[STORAGE]...",
            help="Directories or URIs with the runs' directories; by default those that the "
            "database knows.",
        ),
    ] = None,
    *,
    database: Database = None,
    data_dir: Annotated[
        Path | None,
        Option(
            "--data-dir", metavar="DIR", help="That of `raytrain serve`; by default the user's."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Read every run from storage again, and make the history's index of them anew.

    For a database that was deleted or set back, or after somebody changed files of checkpoints by
    hand. Servers may go on meanwhile. Runs that are not on storage any more stay in the history,
    marked as gone, and so do verdicts.
    """
    require("serve", "sqlalchemy", "alembic", "platformdirs", what="The history")
    from raytrain.server.history.database import History
    from raytrain.server.history.scanner import Scanner

    opened = History.open(database_url(database, data_directory(data_dir)))
    try:
        places = storages or opened.storages()
        if not places:
            raise BadInput(
                f"The database {opened.url} knows no storage. Name the directories that contain "
                "your runs: raytrain history rebuild STORAGE ..."
            )
        report = Scanner(opened, places).scan(thorough=True, track=bar("Reading"))
        runs = opened.runs()
    finally:
        opened.close()
    for problem in report.problems:
        say(f"skipped: {problem}")
    document: dict[str, Any] = {"database": opened.url, "storages": places, "states": runs.states}
    document |= {"changed": report.changed, "problems": report.problems}
    gone = runs.states["gone"]
    text = f"{runs.total - gone} runs, and {gone} that are gone; {len(report.changed)} changed.\n"
    print_result(as_json, document, text)


command(rebuild, history)
