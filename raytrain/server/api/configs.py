"""Configs: what they may hold, those that there are, and what is wrong with one."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from raytrain.config import ConfigError, config_from_text
from raytrain.config.reference import described_fields
from raytrain.config.secrets import PlainSecret, secrets_in
from raytrain.config.yaml_lines import parse_yaml
from raytrain.server.problems import Json, config_errors
from raytrain.server.server import Server, server_of

router = APIRouter(tags=["configs"])

_LARGEST = 1 << 20


class ConfigText(BaseModel):
    """A config as YAML."""

    yaml: str


@router.get("/api/schema")
def schema() -> Response:
    """Every key that a config may have: {key, type, default, help, choices, required}."""
    return Json({"fields": described_fields()})


@router.get("/api/configs")
def configs(server: Server = Depends(server_of)) -> Response:
    """The YAML files below the config directories: {path, name, yaml}. Those with a secret in plain
    text, which no run accepts, are left out."""
    found = []
    for path in server.places.configs():
        try:
            with path.open("rb") as file:
                text = file.read(_LARGEST + 1).decode("utf-8")
            values = parse_yaml(text, str(path)).value if len(text) <= _LARGEST else None
        except (OSError, ValueError, ConfigError):
            continue
        if isinstance(values, dict) and "environment" in values and not any(secrets_in(values)):
            name = str(values.get("name", path.stem))
            found.append({"path": str(path), "name": name, "yaml": text})
    return Json({"configs": found})


@router.post("/api/config/check")
def check(body: ConfigText) -> Response:
    """What is wrong with a config: {problems: [{line, key, message}], values}. Nothing is imported
    or run: whether the environment can be made is seen when the run starts."""
    path = Path("config.yaml")
    problems: list[dict[str, Any]] = []
    values = None
    try:
        config_from_text(body.yaml, path, check_env=False)
    except ConfigError as error:
        problems = config_errors(error)
        if isinstance(error, PlainSecret):
            return Json({"problems": problems, "values": None})
    with suppress(ConfigError):
        values = parse_yaml(body.yaml, str(path)).value
    return Json({"problems": problems, "values": values if isinstance(values, dict) else None})
