"""The application: pages, API and documentation behind one guard."""

from __future__ import annotations

import asyncio
import importlib.resources
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import FileResponse, HTMLResponse, Response

from raytrain.server.api import checkpoints, configs, control, runs, system, work
from raytrain.server.pages import routes as pages
from raytrain.server.problems import Json, Refused, add_handlers
from raytrain.server.security import Security
from raytrain.server.server import Server
from raytrain.server.settings import ServerSettings
from raytrain.versions import versions

_THREADS = 32
_SWAGGER = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
_DOCS = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>raytrain: API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="/docs/swagger-ui.css"></head>
<body><div id="swagger-ui"></div><script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/begin.js"></script></body></html>
"""
_BEGIN = """SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
});
"""
_DESCRIPTION = (
    "Runs of raytrain: start, stop, resume, fork, check, and look at them. A run is a process of "
    "its own: it goes on without the server. Errors are problem documents (RFC 9457)."
)


def create_app(settings: ServerSettings) -> FastAPI:
    """The application, with its database open.

    Raises:
        BadInput: a setting cannot be used.
        RaytrainError: the database does not answer.
    """
    server = Server(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Python's own has a few threads only, on a machine with a few cores.
        threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="raytrain-http")
        asyncio.get_running_loop().set_default_executor(threads)
        server.scanning.begin()
        try:
            yield
        finally:
            server.streams.end()
            server.close()

    app = FastAPI(
        title="raytrain",
        version=versions()["raytrain"],
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        default_response_class=Json,
    )
    app.state.server = server
    app.state.settings, app.state.history = settings, server.history
    add_handlers(app)
    for part in (system, runs, checkpoints, control, work, configs, pages):
        app.include_router(part.router)
    app.add_api_route("/docs", _docs, include_in_schema=False)
    app.add_api_route("/docs/{name}", _docs_file, include_in_schema=False)
    app.add_middleware(Security, settings=settings)
    return app


async def _docs() -> Response:
    return HTMLResponse(_DOCS)


async def _docs_file(name: str) -> Response:
    if name == "begin.js":
        return Response(_BEGIN, media_type="text/javascript")
    if name not in _SWAGGER:
        raise Refused(404, f"The documentation has no file {name}.")
    # Swagger UI comes in the wheel of fastapi_offline; nothing is loaded from elsewhere.
    file = importlib.resources.files("fastapi_offline") / "static" / name
    return FileResponse(str(file), media_type=_SWAGGER[name])
