"""Errors as problem documents (RFC 9457, `application/problem+json`).

    {"type": "about:blank", "title": "Unprocessable Content", "status": 422, "detail": "...",
     "errors": [{"line": 7, "key": "training.lrr", "message": "unknown key (did you mean 'lr'?)"}]}

`errors` lists what is wrong with a config or a request; `line` counts from 1, and is null for what
is not in a file. No document contains a traceback, or the value of a secret.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from raytrain.commands.jobs import ClusterLost, JobRefused
from raytrain.config import ConfigError, Problem
from raytrain.config.secrets import PlainSecret
from raytrain.errors import BadInput, RaytrainError
from raytrain.server.history.database import DatabaseError
from raytrain.storage import Locked, StorageError
from raytrain.storage.escapes import printable
from raytrain.storage.json import json_ready

LOG = logging.getLogger("raytrain.server")

_LINE = re.compile(r".*?:(\d+)(?::\d+)?")
_STATUS: tuple[tuple[type[RaytrainError], int], ...] = (
    (ConfigError, 422),
    (BadInput, 400),
    (Locked, 409),
    (DatabaseError, 503),
    (StorageError, 502),
    (ClusterLost, 502),
    (JobRefused, 502),
)


class Refused(RaytrainError):
    """A request that cannot be done, with the status of its answer."""

    def __init__(
        self, status: int, detail: str, errors: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.errors = errors


class Json(JSONResponse):
    """JSON of anything that was read from storage: null for numbers that are not finite, escapes
    for text that is not UTF-8."""

    def render(self, content: Any) -> bytes:
        return json.dumps(json_ready(content), allow_nan=False, separators=(",", ":")).encode()


class ProblemJson(Json):
    media_type = "application/problem+json"


def problem(
    status: int,
    detail: str,
    *,
    errors: Sequence[Mapping[str, Any]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> ProblemJson:
    """A problem document as a response."""
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": printable(detail, lines=True),
    }
    if errors is not None:
        document["errors"] = [
            {key: printable(item) if isinstance(item, str) else item for key, item in each.items()}
            for each in errors
        ]
    return ProblemJson(document, status, headers=dict(headers or {}))


def config_errors(error: ConfigError) -> list[dict[str, Any]]:
    """The problems of a config: {line, key, message}."""
    return [_config_error(each) for each in error.problems]


def _config_error(found: Problem) -> dict[str, Any]:
    match = _LINE.fullmatch(found.where)
    in_file = match is not None and not found.where.startswith("--")
    text = str(replace(found, where="" if in_file else found.where, field=""))
    return {"line": int(match[1]) if match and in_file else None, "key": found.field or None} | {
        "message": text
    }


def add_handlers(app: FastAPI) -> None:
    """Let every error of the application be a problem document."""

    def of_raytrain(request: Request, error: Exception) -> ProblemJson:
        if isinstance(error, Refused):
            return problem(error.status, str(error), errors=error.errors)
        errors = None
        if isinstance(error, ConfigError):
            errors = config_errors(error)
            if isinstance(error, PlainSecret):
                return problem(422, "The config contains a secret.", errors=errors)
        status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
        return problem(status, str(error), errors=errors)

    def of_http(request: Request, error: Exception) -> ProblemJson:
        assert isinstance(error, HTTPException)
        detail = error.detail
        if error.status_code == 404 and detail == "Not Found":
            detail = "There is no such address. /docs lists those that there are."
        return problem(error.status_code, detail, headers=error.headers)

    def of_request(request: Request, error: Exception) -> ProblemJson:
        assert isinstance(error, RequestValidationError)
        errors = [
            {
                "line": None,
                "key": ".".join(map(str, each["loc"][1:])) or None,
                "message": str(each["msg"]),
            }
            for each in error.errors()
        ]
        return problem(422, "The request has not the form that /docs describes.", errors=errors)

    def of_defect(request: Request, error: Exception) -> ProblemJson:
        LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem(500, "An error in raytrain itself; the server's own output has the details.")

    app.add_exception_handler(RaytrainError, of_raytrain)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(RequestValidationError, of_request)
    app.add_exception_handler(Exception, of_defect)
