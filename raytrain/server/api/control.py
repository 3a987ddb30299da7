"""Runs are started, stopped, continued and forked."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from raytrain.commands.jobs import full_address, run_mark
from raytrain.config import ExperimentConfig, config_from_text, stored_config
from raytrain.config.yaml_lines import dump_yaml, parse_yaml
from raytrain.errors import BadInput
from raytrain.server.api.runs import shown
from raytrain.server.launcher import PROGRAM, Launch, Started, errors_in, why
from raytrain.server.problems import Json, Refused
from raytrain.server.server import Server, server_of
from raytrain.server.settings import child_environment
from raytrain.storage import Location
from raytrain.storage.location import with_numbers

router = APIRouter(prefix="/api", tags=["control"])

_LOOK_EVERY_S = 0.25
_SCAN_EVERY_S = 2.0
_SUBMIT_WITHIN_S = 300


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Start(_Body):
    """A run to start: one of `config` (a mapping, or YAML text) and `config_path` (a file below a
    config directory)."""

    config: dict[str, Any] | str | None = None
    config_path: str | None = None
    set_: list[str] = Field(
        default=[], alias="set", description="KEY=VALUE, as on the command line."
    )
    name: str | None = None
    stem: str | None = Field(
        default=None, description="The name of the file that `config` was, if the text has none."
    )
    storage: str | None = Field(
        default=None, description="One of the server's; by default the config's."
    )
    from_: str | None = Field(default=None, alias="from", description="A checkpoint to begin at.")
    weights_only: bool = False
    from_stage: str | None = None
    fresh: bool = False
    address: str | None = Field(
        default=None, description="Submit it as a job to the server's cluster."
    )


class Resume(_Body):
    set_: list[str] = Field(
        default=[], alias="set", description="KEY=VALUE, as on the command line."
    )
    from_stage: str | None = None


class Fork(_Body):
    checkpoint: str = Field(default="best", description="best, final, or a path in or of the run.")
    name: str
    set_: list[str] = Field(
        default=[], alias="set", description="KEY=VALUE, as on the command line."
    )
    weights_only: bool = False


@router.post("/runs", status_code=201)
async def start(body: Start, server: Server = Depends(server_of)) -> Response:
    """Start a run. 201 with the run; 200 if the run of this name in this storage runs already, or
    has finished. The answer comes when the run has accepted its config."""
    file, text = await asyncio.to_thread(_config_text, body, server)
    config = await asyncio.to_thread(_checked, body, file, text, server)
    place = Location.of(config.storage_path) / config.name
    if body.config is not None:
        file = await asyncio.to_thread(_saved, server, config.name, text)
    arguments = ["train", str(file), *_sets(body.set_)]
    arguments += ["--name", config.name, "--storage-path", config.storage_path]
    if body.address is not None:
        _require_job_possible(body, server)
        command = ["submit", *arguments[1:], "--address", server.settings.address or ""]
        return await _submitted(server, place, command)
    if body.from_ is not None:
        arguments += ["--from", server.places.from_checkpoint(body.from_)]
    arguments += ["--weights-only"] * body.weights_only + ["--fresh"] * body.fresh
    if body.from_stage is not None:
        arguments += ["--from-stage", body.from_stage]
    return await _begun(server, place, arguments, config=str(file))


@router.post("/runs/{run}/resume", status_code=201)
async def resume(
    run: str, body: Resume | None = None, server: Server = Depends(server_of)
) -> Response:
    """Continue a run, with the config of its last start and the changes of `set`."""
    body = body or Resume()
    row, place = await asyncio.to_thread(server.present, run)
    stored_config(row["config"], body.set_)
    last = await asyncio.to_thread(server.launcher.last, place)
    if last is not None and last.job is not None and last.address == server.settings.address:
        if body.from_stage is not None:
            raise Refused(422, "A job takes no `from_stage`; see docs/clusters/jobs.md.")
        return await _submitted(server, place, [*last.command[1:], *_sets(body.set_)])
    arguments = ["resume", str(place), *_sets(body.set_)]
    if body.from_stage is not None:
        arguments += ["--from-stage", body.from_stage]
    return await _begun(server, place, arguments)


@router.post("/runs/{run}/fork", status_code=201)
async def fork(run: str, body: Fork, server: Server = Depends(server_of)) -> Response:
    """Begin a new run, beside this one, at one of its checkpoints."""
    row, place = await asyncio.to_thread(server.present, run)
    config = stored_config({**row["config"], "name": body.name}, body.set_)
    checkpoint = server.places.checkpoint(place, body.checkpoint)
    arguments = ["fork", checkpoint, "--name", config.name, *_sets(body.set_)]
    arguments += ["--weights-only"] * body.weights_only
    return await _begun(server, place.parent / config.name, arguments)


@router.post("/runs/{run}/stop")
async def stop(run: str, server: Server = Depends(server_of)) -> Response:
    """Let a run save and end: {state, saved: [{trial, checkpoint, kind, iteration, timesteps}]}.
    The answer comes when it has ended; 202 with the state `stopping` if that takes minutes."""
    _, place = await asyncio.to_thread(server.present, run)
    await asyncio.to_thread(server.launcher.stop, place)
    deadline = time.monotonic() + server.settings.limits.stop_wait_s
    while await asyncio.to_thread(server.launcher.is_running, place):
        if time.monotonic() > deadline:
            return Json({"state": "stopping", "saved": []}, 202)
        await asyncio.sleep(_LOOK_EVERY_S)
    row = await asyncio.to_thread(server.row_at, place)
    saved = await asyncio.to_thread(server.launcher.saved, place)
    return Json({"state": None if row is None else row["state"], "saved": saved})


def _require_job_possible(body: Start, server: Server) -> None:
    address = server.settings.address
    if address is None or full_address(body.address or "") != address:
        raise Refused(
            403,
            f"Jobs are submitted to the cluster of this server only: {address or 'it has none'}.",
        )
    if body.from_ is not None or body.from_stage is not None or body.fresh:
        raise Refused(
            422, "A job takes no `from`, `from_stage` or `fresh`; see docs/clusters/jobs.md."
        )


def _sets(overrides: Sequence[str]) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


def _config_text(body: Start, server: Server) -> tuple[Path, str]:
    """The file of the config, which may not be there yet, and its text."""
    if (body.config is None) == (body.config_path is None):
        raise Refused(422, "Give one of `config` and `config_path`.")
    if body.config_path is not None:
        file = server.places.config(body.config_path)
        try:
            return file, file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{file} cannot be read as a config: {error}") from None
    text = body.config if isinstance(body.config, str) else dump_yaml(body.config)
    return server.settings.config_dirs[0] / "config.yaml", text


def _checked(body: Start, file: Path, text: str, server: Server) -> ExperimentConfig:
    """The config as the run will have it. Its code is looked for by the run itself."""
    values = parse_yaml(text, str(file)).value
    named = isinstance(values, dict) and "name" in values
    name = body.name or (None if named or body.config is None else body.stem)
    if body.config is not None and name is None and not named:
        raise Refused(422, "The config has no name. Give `name` in it, or beside it.")
    if body.weights_only and body.from_ is None:
        raise Refused(422, "`weights_only` needs the checkpoint to take weights from: give `from`.")
    if body.from_ is not None and body.from_stage is not None:
        raise Refused(422, "`from` and `from_stage` cannot be used together.")
    config = config_from_text(
        text, file, overrides=body.set_, name=name, storage_path=body.storage, check_env=False
    )
    is_given = "storage_path" in config.model_fields_set
    storage = server.places.storage(config.storage_path if is_given else None)
    return config.model_copy(update={"storage_path": str(storage)})


def _saved(server: Server, name: str, text: str) -> Path:
    """The file with this text in the first config directory; another text is never replaced."""
    directory = server.settings.config_dirs[0]
    directory.mkdir(parents=True, exist_ok=True)
    for stem in with_numbers(name):
        file = directory / f"{stem}.yaml"
        try:
            with file.open("x", encoding="utf-8") as new:
                new.write(text)
        except FileExistsError:
            if file.read_bytes() != text.encode():
                continue
        return file
    raise AssertionError("there are endless numbers")


async def _begun(
    server: Server, place: Location, arguments: Sequence[str], **known: str
) -> Response:
    """Start it, and wait until it has begun, or ended."""
    started = await asyncio.to_thread(server.launcher.start, place, arguments, **known)
    launch = started.launch
    if started.new and launch is not None:
        return await _waited(server, place, started, launch)
    deadline = time.monotonic() + server.settings.limits.start_wait_s
    while True:
        running = await asyncio.to_thread(server.launcher.is_running, place)
        row = await asyncio.to_thread(server.row_at, place)
        if row is not None or not running or time.monotonic() > deadline:
            return _answer(200, row, launch)
        await asyncio.sleep(_SCAN_EVERY_S)


async def _waited(server: Server, place: Location, started: Started, launch: Launch) -> Response:
    deadline = time.monotonic() + server.settings.limits.start_wait_s
    while time.monotonic() < deadline:
        code = await asyncio.to_thread(server.launcher.exit_code, launch)
        if await asyncio.to_thread(server.launcher.has_begun, place, started.before):
            break
        if code == 0:  # It was finished already.
            return _answer(200, await asyncio.to_thread(server.row_at, place), launch)
        if code is not None:
            return await _ended(server, place, launch, code)
        await asyncio.sleep(_LOOK_EVERY_S)
    return _answer(201, await asyncio.to_thread(server.row_at, place), launch)


async def _ended(server: Server, place: Location, launch: Launch, code: int) -> Response:
    """A run that ended before it began: another process was first, or it was refused."""
    if await asyncio.to_thread(server.launcher.is_running, place):
        return _answer(200, await asyncio.to_thread(server.row_at, place), launch)
    message = await asyncio.to_thread(why, launch.log)
    errors = errors_in(message, launch.config)
    raise Refused(422 if code == 2 else 500, message, errors)


async def _submitted(server: Server, place: Location, command: Sequence[str]) -> Response:
    """Run `raytrain submit ...`, and wait until the run has begun, or its job has ended."""
    before = await asyncio.to_thread(server.launcher.stamp, place)
    job, new = await _submit(server, place, command)
    deadline = time.monotonic() + server.settings.limits.start_wait_s
    while True:
        begun = not new or await asyncio.to_thread(server.launcher.has_begun, place, before)
        row = await asyncio.to_thread(server.row_at, place)
        if (begun and row is not None) or job is None or time.monotonic() > deadline:
            return _answer(201 if new else 200, row, None, job=job)
        why_not = await asyncio.to_thread(server.launcher.why_job_ended, place)
        if why_not is not None:
            raise Refused(422, why_not)
        await asyncio.sleep(_SCAN_EVERY_S)


async def _submit(
    server: Server, place: Location, command: Sequence[str]
) -> tuple[str | None, bool]:
    """The job of the run, None if it has finished; and whether it is a new one."""
    jobs = await asyncio.to_thread(server.launcher.jobs, server.settings.address or "")
    mark = run_mark(place.name, str(place.parent))
    running = await asyncio.to_thread(jobs.running, mark)
    if running is not None:
        return running, False
    process = await asyncio.create_subprocess_exec(
        *PROGRAM,
        *command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=child_environment(),
    )
    try:
        async with asyncio.timeout(_SUBMIT_WITHIN_S):
            _, said = await process.communicate()
    except TimeoutError:
        process.kill()
        raise Refused(
            502, f"The cluster did not take the job within {_SUBMIT_WITHIN_S} s. Ask again."
        ) from None
    if process.returncode:
        message = said.decode(errors="replace").rpartition("error: ")[2].strip()
        errors = errors_in(message, command[1])
        status = 422 if process.returncode == 2 else 502
        raise Refused(status, message or "It was not submitted.", errors)
    job = await asyncio.to_thread(jobs.running, mark)
    if job is not None:
        await asyncio.to_thread(server.launcher.remember_job, place, command, job)
    return job, job is not None


def _answer(status: int, row: Any, launch: Launch | None, *, job: str | None = None) -> Response:
    return Json(
        {
            "run": None if row is None else shown(row),
            "command": None if launch is None else launch.command,
            "log": None if launch is None else launch.log or None,
            "pid": None if launch is None else launch.pid,
            "job": job if launch is None else launch.job,
        },
        status,
    )
