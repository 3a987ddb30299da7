"""The server itself: its health, its metrics, the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from raytrain.checkpoint import trials
from raytrain.errors import RaytrainError
from raytrain.records import EVENT_LOG, notices_of, read_events
from raytrain.server.history.queries import RunQuery
from raytrain.server.problems import Json, problem
from raytrain.server.server import Server, server_of
from raytrain.server.streams import RunsFeed
from raytrain.versions import versions

router = APIRouter(tags=["server"])

_PER_PAGE = 1000
_Values = list[tuple[list[str], Any]]
_OF_A_RUN = {
    "progress": ("progress_ratio", "The part of the run that is done."),
    "timesteps": ("timesteps", "Environment steps."),
    "iteration": ("iterations", "Training iterations."),
    "failures_survived": ("failures_survived", "Failures that the run survived."),
    "preemptions": ("preemptions", "Preemptions of the run."),
    "redone_s": ("redone_seconds", "Seconds of training that were done again."),
    "away_s": ("away_seconds", "Seconds without training after failures."),
    "size_bytes": ("checkpoint_bytes", "Size of the checkpoints."),
}


@router.get("/healthz")
def healthz(server: Server = Depends(server_of)) -> Response:
    """Whether the server works. Needs no token, and tells nothing of the runs."""
    try:
        server.history.changes(0)
    except RaytrainError:
        return problem(503, "The database does not answer.")
    if not server.scanning.is_alive:
        return problem(503, "The thread that reads the storages has ended.")
    return Json({"status": "ok"})


@router.get("/api/system")
def system(server: Server = Depends(server_of)) -> Response:
    """What the server was started with, and its last look at the storages."""
    settings = server.settings
    return Json(
        {
            "version": versions()["raytrain"],
            "storages": settings.storages,
            "config_dirs": [str(path) for path in settings.config_dirs],
            "read_only": settings.read_only,
            "address": settings.address,
            "scan": server.scanning.last,
            "streams": server.streams.open,
            "tasks": server.tasks.counts(),
        }
    )


@router.get("/api/events")
async def events(server: Server = Depends(server_of)) -> Response:
    """Server-sent events: the id of each run that changes."""
    return await server.streams.of("", lambda: RunsFeed(server.history))


@router.get("/api/nodes")
async def nodes(server: Server = Depends(server_of)) -> Response:
    """The nodes of the cluster at --address, the actors that each carries, and what running runs
    were told of a node that is about to end: `notices`, of {run, name, time, message}."""
    address = server.settings.address
    if address is None:
        return Json({"address": None, "nodes": []})
    return Json({"address": address, "nodes": await asyncio.to_thread(_nodes, server, address)})


def _nodes(server: Server, address: str) -> list[dict[str, Any]]:
    found = server.launcher.jobs(address).nodes()
    query = RunQuery(state="running", per_page=_PER_PAGE, include_gone=False)
    told = [
        (row, read_events(trial / EVENT_LOG))
        for row in server.history.runs(query).runs
        for trial in trials(server.places.of_run(row))
    ]
    for node in found:
        notices = [
            {"run": row["id"], "name": row["name"], "time": each.time, "message": each.message}
            for row, events in told
            for each in notices_of(node["address"], events, node["started_at"])
        ]
        node["notices"] = sorted(notices, key=lambda notice: notice["time"])
    return found


@router.get("/metrics")
def metrics(server: Server = Depends(server_of)) -> Response:
    """Metrics for Prometheus; needs the token (`authorization: {credentials: TOKEN}` there)."""
    registry = CollectorRegistry()
    registry.register(_Metrics(server))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Metrics(Collector):
    def __init__(self, server: Server) -> None:
        self._server = server

    def collect(self) -> Iterator[GaugeMetricFamily]:
        server = self._server
        rows, states = _all_runs(server)
        yield _gauge("runs", "Runs by state.", ["state"], [([k], v) for k, v in states.items()])
        for key, (name, text) in _OF_A_RUN.items():
            values = [([r["id"], r["name"]], r[key]) for r in rows if r[key] is not None]
            yield _gauge(f"run_{name}", text, ["run", "name"], values)
        for kind in ("best", "last"):
            scores = [
                ([row["id"], row["name"], row["score"]["metric"]], row["score"][kind])
                for row in rows
                if row["score"][kind] is not None
            ]
            text = f"The {kind} score."
            yield _gauge(f"run_{kind}_score", text, ["run", "name", "metric"], scores)
        exact = [([r["id"], r["name"]], r["exact"]) for r in rows if r["exact"] is not None]
        yield _gauge("run_exact", "1 while the run is exact.", ["run", "name"], exact)
        scan = server.scanning.last
        seconds: _Values = [([], scan["seconds"])] if scan["seconds"] is not None else []
        yield _gauge("scan_seconds", "Duration of the last scan.", [], seconds)
        problems: _Values = [([], len(scan["problems"]))]
        yield _gauge("scan_problems", "What the last scan could not read.", [], problems)
        yield _gauge("streams", "Open streams of events.", [], [([], server.streams.open)])
        tasks = [([state], number) for state, number in server.tasks.counts().items()]
        yield _gauge("tasks", "Tasks by state.", ["state"], tasks)


def _gauge(name: str, text: str, labels: list[str], values: _Values) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(f"raytrain_{name}", text, labels=labels)
    for given, value in values:
        gauge.add_metric([each.encode(errors="replace").decode() for each in given], float(value))
    return gauge


def _all_runs(server: Server) -> tuple[list[dict[str, Any]], dict[str, int]]:
    rows: list[dict[str, Any]] = []
    number, pages, states = 1, 1, dict[str, int]()
    while number <= pages:
        query = RunQuery(page=number, per_page=_PER_PAGE, include_gone=False)
        page = server.history.runs(query)
        rows += page.runs
        number, pages, states = number + 1, page.pages, page.states
    return rows, states
