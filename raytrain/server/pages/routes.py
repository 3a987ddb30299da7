"""The pages, and the files that they load.

    GET /  /runs/{id}  /new  /compare  /lineage  /models  /nodes
    GET /static/{version}/{file}    the modules, the style sheet, Plotly

The version in a static address is a digest of the files, so a browser may keep them for a year. The
application holds what the pages show: `app.state.history` and `app.state.settings`.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from raytrain.errors import BadInput
from raytrain.server.history.database import History
from raytrain.server.history.queries import STATES, RunQuery
from raytrain.server.pages.shown import FILTERS
from raytrain.server.settings import ServerSettings
from raytrain.storage.escapes import printable
from raytrain.versions import versions

router = APIRouter(include_in_schema=False)

COLUMNS = {
    "name": "Run",
    "state": "State",
    "progress": "Progress",
    "timesteps": "Steps",
    "best_score": "Score",
    "failures_survived": "Survived",
    "lost_s": "Time lost",
    "size_bytes": "Size",
    "changed_at": "Changed",
}
"""Columns of Runs that sort: the name in the query, and the heading."""
PER_PAGE = 50
_LAST = 2**62
"""No change has a higher number."""
STATIC = Path(__file__).parent / "static"
PLOTLY = "plotly.min.js"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_YEAR = "public, max-age=31536000, immutable"


@cache
def static_files() -> dict[str, Path]:
    """Name -> file: those of `static/`, and Plotly's JavaScript from its wheel."""
    files = {path.name: path for path in sorted(STATIC.iterdir()) if path.suffix in _TYPES}
    plotly = importlib.resources.files("plotly") / "package_data" / PLOTLY
    return {**files, PLOTLY: Path(str(plotly))}


@cache
def static_version() -> str:
    """The digest of all static files, in their addresses."""
    digest = hashlib.sha256()
    for name, path in static_files().items():
        digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


@router.get("/static/{version}/{name}")
def static_file(version: str, name: str) -> Response:
    """404 for a file that is not listed: no path is ever joined."""
    path = static_files().get(name)
    if path is None:
        return Response("There is no such file.", 404, media_type="text/plain")
    fresh = _YEAR if version == static_version() else "no-cache"
    return FileResponse(path, media_type=_TYPES[path.suffix], headers={"cache-control": fresh})


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("raytrain.server.pages"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Control and direction characters of names are shown as escapes.
        finalize=lambda value: printable(value, lines=True) if type(value) is str else value,
    )
    environment.filters.update(FILTERS)
    return environment


def _page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    text = _rendered(request.app.state.settings, request.url.path, template, **values)
    return _html(text, status)


def _html(text: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(text, status, headers={"cache-control": "no-store"})


def _rendered(settings: ServerSettings, path: str, template: str, **values: Any) -> str:
    return (
        _templates()
        .get_template(template)
        .render(
            static=f"/static/{static_version()}",
            path=path,
            read_only=settings.read_only,
            address=settings.address,
            storages=settings.storages,
            raytrain_version=versions()["raytrain"],
            **values,
        )
    )


@router.get("/")
def runs(
    request: Request,
    q: str = "",
    state: str = "",
    sort: str = "-changed_at",
    page: int = Query(1, ge=1),
) -> Response:
    """The runs, a page of them."""
    history = request.app.state.history
    query = RunQuery(q=q, state=state or None, sort=sort, page=page, per_page=PER_PAGE)
    try:
        return _html(_runs(history, request.app.state.settings, history.changes(_LAST)[0], query))
    except BadInput as error:
        return _page(request, "missing.html", 400, why=str(error))


@lru_cache(maxsize=64)
def _runs(history: History, settings: ServerSettings, change: int, query: RunQuery) -> str:
    """Rendered once for all who watch the same page: until the next `change`, it is the same."""

    def link(**changes: Any) -> str:
        values = {"q": query.q, "state": query.state, "sort": query.sort, **changes}
        kept = {key: value for key, value in values.items() if value}
        return "/?" + urlencode(kept) if kept else "/"

    return _rendered(
        settings,
        "/",
        "runs.html",
        query=query,
        listed=history.runs(query),
        link=link,
        columns=COLUMNS,
        states=STATES,
    )


@router.get("/runs/{run_id}")
def run(request: Request, run_id: str) -> Response:
    """One run."""
    row = request.app.state.history.run(run_id)
    if row is None:
        why = "There is no run with this address. It may be on a storage that is not served."
        return _page(request, "missing.html", 404, why=why)
    return _page(request, "run.html", run=row)


@router.get("/new")
def new_run(request: Request) -> Response:
    """A form or YAML that starts a run."""
    return _page(request, "new.html")


@router.get("/compare")
def compare(request: Request) -> Response:
    """Curves and configs of several runs."""
    return _page(request, "compare.html")


@router.get("/lineage")
def lineage(request: Request) -> Response:
    """Forks and stages as a tree."""
    return _page(request, "lineage.html")


@router.get("/models")
def models(request: Request) -> Response:
    """Best, final, stage and exported policies of all runs."""
    return _page(request, "models.html")


@router.get("/nodes")
def nodes(request: Request) -> Response:
    """The cluster's nodes; without an address it says how to give one."""
    return _page(request, "nodes.html")
