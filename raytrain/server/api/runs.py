"""Runs: listed, one in full, compared; models, lineage."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Query, Response

from raytrain.commands.status import view
from raytrain.config import NOT_YAML_KEYS, differences
from raytrain.config.yaml_lines import dump_yaml
from raytrain.server.history.queries import RunQuery
from raytrain.server.problems import Json, Refused
from raytrain.server.records.curves import curves
from raytrain.server.records.episodes import episodes
from raytrain.server.records.timeline import timeline
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
def run(run: str, brief: bool = False, server: Server = Depends(server_of)) -> Response:
    """One run: its row, what `raytrain show --json` prints (null if it is gone), its config,
    verdicts and starts, and the model card of its last export. `brief`: the row alone, which costs
    no look at storage."""
    row = server.row(run)
    if brief:
        return Json({"run": shown(row)})
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


@router.get("/runs/{run}/curves")
def curves_of(
    *,
    run: str,
    metric: list[str] = Query([]),
    trial: list[str] = Query([]),
    since: str = "",
    points: int | None = Query(None, ge=2, le=100_000),
    server: Server = Depends(server_of),
) -> Response:
    """Metrics over the iterations: {trials: {NAME: {series: {METRIC: [[iteration, timesteps,
    seconds, value], ...]}, reset, attempts, failures, stages}}, metrics, cursor}. `metric` and
    `trial` may be repeated; without a metric, the score. With the `cursor` of an answer as `since`,
    the next has only what is new (`reset`: all of it, as rows were cut). Of a run that is gone,
    the history has the score."""
    row, names = server.row(run), _trials(server, run, trial)
    if row["gone_at"] is not None:
        kept = server.history.kept_curves(run)
        return Json({**kept, "trials": {name: kept["trials"][name] for name in names}})
    place = server.places.of_run(row)
    score = row["score"]["metric"]
    return Json(curves(place, names, score=score, metrics=metric, since=since, points=points))


@router.get("/runs/{run}/timeline")
def timeline_of(
    run: str, trial: list[str] = Query([]), server: Server = Depends(server_of)
) -> Response:
    """What each trial did when: training, trained again, away, waiting."""
    _, place = server.present(run)
    return Json({"trials": {name: timeline(place / name) for name in _trials(server, run, trial)}})


@router.get("/runs/{run}/episodes")
def episodes_of(
    run: str, trial: list[str] = Query([]), server: Server = Depends(server_of)
) -> Response:
    """The distribution of the episodes' returns and lengths, by trial."""
    _, place = server.present(run)
    return Json({"trials": {name: episodes(place / name) for name in _trials(server, run, trial)}})


def _trials(server: Server, run: str, wanted: list[str]) -> list[str]:
    """The trials that are wanted; all if none is named. A name that is no trial is refused, so no
    path is made of it."""
    names = [str(each["trial"]) for each in server.history.trials(run)]
    unknown = next((name for name in wanted if name not in names), None)
    if unknown is not None:
        raise Refused(404, f"The run has no trial {unknown}; it has {', '.join(names) or 'none'}.")
    return wanted or names


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
    if row["parent"] is None:
        raise Refused(409, f"{row['name']} is not a fork, so it has no parent.")
    parent = server.history.parent(row["id"])
    if parent is None:
        experiment = row["parent"]["experiment"]
        raise Refused(404, f"The parent of {row['name']}, {experiment}, is not known here.")
    return parent


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
        job, jobs = launch.job, await asyncio.to_thread(server.launcher.jobs, launch.address)
        return server.streams.text(lambda: jobs.log(job), tail, follow)
    if await asyncio.to_thread(server.launcher.log, place) is None:
        raise Refused(
            404,
            "No server of this user has started the run, so its output is where it was started.",
        )
    return server.streams.log(lambda: server.launcher.log(place), tail, follow)


@router.get("/models")
def models(server: Server = Depends(server_of)) -> Response:
    """Best, final, stages and exports of all runs, the newest first, with the line that loads each;
    `latest_checkpoint` is what a run would continue from."""
    return Json({"models": server.history.models()})


@router.get("/lineage")
def lineage(server: Server = Depends(server_of)) -> Response:
    """Forks and stages: nodes are checkpoints, edges lead from a parent to what began there."""
    return Json(server.history.lineage())


@router.get("/compare")
def compare(ids: str, server: Server = Depends(server_of)) -> Response:
    """Runs side by side; `ids` are separated by commas. `differences`: {key, values by run}; of
    `curves`, each trial's score at up to some hundred iterations."""
    wanted = list(dict.fromkeys(each for each in ids.split(",") if each))
    if len(wanted) < 2:
        raise Refused(422, "Give two or more ids, separated by commas.")
    found = server.history.compare(wanted)
    differences = [
        {"key": each["key"], "values": dict(zip(wanted, each["values"], strict=True))}
        for each in found["config"]
        if each["key"] not in NOT_YAML_KEYS
    ]
    rows = [shown(row) for row in found["runs"]]
    return Json({"runs": rows, "differences": differences, "curves": found["curves"]})
