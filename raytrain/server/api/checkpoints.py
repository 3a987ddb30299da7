"""The checkpoints of a run, with the commands that use each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends, Response

from raytrain.commands.next_commands import Commands
from raytrain.driver.command_text import command_for
from raytrain.server.problems import Json
from raytrain.server.server import Server, server_of

router = APIRouter(prefix="/api", tags=["runs"])


@router.get("/runs/{run}/checkpoints")
def checkpoints(
    run: str,
    kind: str | None = None,
    latest: bool = False,
    server: Server = Depends(server_of),
) -> Response:
    """Checkpoints, the newest last. `latest`: only what each trial would continue from."""
    row = server.row(run)
    found = server.history.checkpoints(run, kind, latest)
    newest = {each["trial"]: each for each in server.history.checkpoints(run, latest=True)}
    return Json({"checkpoints": [with_commands(row, each, newest) for each in found]})


def with_commands(
    row: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
    newest: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """A checkpoint and its `commands`: {resume, fork, evaluate, load_policy, export}, each a text
    to copy, or null where there is no such command. They need the run's directory alone."""
    path = checkpoint["full_path"]
    commands: dict[str, str | None] = dict.fromkeys(
        ("resume", "fork", "evaluate", "load_policy", "export")
    )
    if checkpoint["good"] is not False and row["gone_at"] is None:
        exported = f"{row['name']}-{checkpoint['path'].replace('/', '-')}-policy"
        commands["evaluate"] = command_for("evaluate", path, ["--episodes", "20"])
        commands["load_policy"] = f"raytrain.load_policy({path!r})"
        commands["export"] = command_for("export", path, [exported])
        if checkpoint["kind"] != "error":
            own = Commands(row["path"], row["name"], alone=len(newest) == 1)
            is_newest = checkpoint["iteration"] == newest[checkpoint["trial"]]["iteration"]
            commands["fork"] = own.fork(checkpoint["path"], path)
            commands["resume"] = own.resume_at(checkpoint["path"], is_newest=is_newest)
    return {**checkpoint, "commands": commands}
