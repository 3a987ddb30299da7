"""Runs: listed, one in full, compared; models, lineage."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Query, Response

from raytrain.commands.jobs import JobServer
from raytrain.commands.status import view
from raytrain.config import NOT_YAML_KEYS, differences
from raytrain.config.yaml_lines import dump_yaml
from raytrain.server.history.queries import RunQuery
from raytrain.server.problems import Json, Refused
from raytrain.server.server import Server, server_of
from raytrain.server.streams import RunFeed

router = APIRouter(prefix="/api", tags=["runs"])

_CARD = "README.md"
_OWN = ("config", "config_digest")


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the config, which has a place of its own."""
    return {key: value for key, value in row.items() if key not in _OWN}


@router.get("/runs")
def runs(
    *,
    q: str = "",
    state: str | None = None,
    sort: str = "-changed_at",
    page: int = Query(1, ge=1),
    per_page: int = Query(50, ge=1, le=1000),
    gone: bool = True,
    server: Server = Depends(server_of),
) -> Response:
    """A page of runs. `q`: a part of the name or path; `sort`: a key, with "-" for the highest
    first; `gone`: also those that were deleted from storage."""
    query = RunQuery(q, state, sort, page, per_page, gone)
    found = server.history.runs(query)
    return Json({**vars(found), "runs": [shown(row) for row in found.runs]})


@router.get("/runs/{run}")
def run(run: str, server: Server = Depends(server_of)) -> Response:
    """One run: its row, what `raytrain show --json` prints (null if it is gone), its config,
    verdicts and starts, and the model card of its last export."""
    row = server.row(run)
    experiment, place = None, None
    if row["gone_at"] is None:
        place = server.places.of_run(row)
        experiment = view(place).to_dict()
    config = row["config"]
    return Json(
        {
            "run": shown(row),
            "experiment": experiment,
            "config": {
                "yaml": dump_yaml(without_places(config)),
                "values": config,
                "digest": row["config_digest"],
            },
            "verdicts": server.history.verdicts(run),
            "launches": server.launcher.launches(row["path"]),
            "model_card": _model_card(server, run),
        }
    )


def without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config as it would be in a file."""
    return {key: value for key, value in config.items() if key not in NOT_YAML_KEYS}


def _model_card(server: Server, run: str) -> str | None:
    for task in server.tasks.newest(run):
        if task["kind"] == "export" and task["state"] == "done":
            card = Path(task["result"]["path"], _CARD)
            if card.is_file():
                return card.read_text(encoding="utf-8", errors="replace")
    return None


@router.get("/runs/{run}/trials")
def trials(run: str, server: Server = Depends(server_of)) -> Response:
    """The trials of a run, without their checkpoints."""
    server.row(run)
    return Json({"trials": server.history.trials(run)})


@router.get("/runs/{run}/config-diff")
def config_diff(
    run: str, other: str = Query(alias="with"), server: Server = Depends(server_of)
) -> Response:
    """How the config differs from that of another run, or of its `parent`."""
    row = server.row(run)
    if other == "parent":
        other = _parent(server, row)
    found = differences(row["config"], server.row(other)["config"])
    listed = [{"key": each.field, "this": each.old, "other": each.new} for each in found]
    return Json({"differences": [each for each in listed if each["key"] != "import_path"]})


def _parent(server: Server, row: Mapping[str, Any]) -> str:
    """The run that a run was forked from."""
    parent = row["parent"]
    if parent is None:
        raise Refused(409, f"{row['name']} is not a fork, so it has no parent.")
    query = RunQuery(q=str(parent["experiment"]), per_page=1000)
    for each in server.history.runs(query).runs:
        digests = {one["weights_sha256"] for one in server.history.checkpoints(each["id"])}
        if each["name"] == parent["experiment"] and parent["weights_sha256"] in digests:
            return str(each["id"])
    raise Refused(404, f"The parent of {row['name']}, {parent['experiment']}, is not known here.")


@router.get("/runs/{run}/events")
async def events(run: str, server: Server = Depends(server_of)) -> Response:
    """Server-sent events: `event`, `row` and `state`; all past events first."""
    _, place = await asyncio.to_thread(server.present, run)
    return await server.streams.of(run, lambda: RunFeed(server.history, run, place))


@router.get("/runs/{run}/log")
async def log(
    run: str,
    tail: int = Query(200, ge=0),
    follow: bool = True,
    server: Server = Depends(server_of),
) -> Response:
    """Server-sent events: a line of the run's output each."""
    _, place = await asyncio.to_thread(server.present, run)
    launch = await asyncio.to_thread(server.launcher.last, place)
    if launch is not None and launch.job is not None and launch.address is not None:
        job, jobs = launch.job, await asyncio.to_thread(JobServer, launch.address)
        return server.streams.text(lambda: jobs.log(job), tail, follow)
    if await asyncio.to_thread(server.launcher.log, place) is None:
        raise Refused(
            404,
            "No server of this user has started the run, so its output is where it was started.",
        )
    return server.streams.log(lambda: server.launcher.log(place), tail, follow)


@router.get("/compare")
def compare(ids: str, server: Server = Depends(server_of)) -> Response:
    """Runs side by side; `ids` are separated by commas."""
    wanted = [each for each in ids.split(",") if each]
    if len(wanted) < 2:
        raise Refused(422, "Give two or more ids, separated by commas.")
    rows = [server.row(each) for each in wanted]
    keys: dict[str, dict[str, Any]] = {}
    for row in rows[1:]:
        for each in differences(rows[0]["config"], row["config"]):
            if each.field != "import_path":
                keys.setdefault(each.field, {rows[0]["id"]: each.old})[row["id"]] = each.new
    for key, values in keys.items():
        first = values[rows[0]["id"]]
        keys[key] = {row["id"]: values.get(row["id"], first) for row in rows}
    listed = [{"key": key, "values": values} for key, values in sorted(keys.items())]
    return Json({"runs": [shown(row) for row in rows], "differences": listed})
