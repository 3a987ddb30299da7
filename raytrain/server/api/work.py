"""Work on a run that takes a while, as tasks; and what they found."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from raytrain.checkpoint.resolve import entries_at
from raytrain.commands.checkpoint_documents import checkpoint_rows
from raytrain.commands.prune import Rule, plan
from raytrain.commands.prune import prune as delete
from raytrain.server.problems import Json
from raytrain.server.server import Server, server_of
from raytrain.server.tasks import Work

router = APIRouter(prefix="/api", tags=["tasks"])


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Verify(_Body):
    checkpoint: str | None = Field(default=None, description="One of them; by default all.")


class Audit(_Body):
    from_: int | None = Field(
        default=None, alias="from", ge=0, description="Iteration to begin at."
    )
    to: int | None = Field(default=None, ge=0, description="Iteration to reach.")


class Prune(_Body):
    keep: int = Field(default=1, ge=1)
    quarantine: bool = False
    errors: bool = False
    yes: bool = Field(
        default=False, description="Delete; without it, answer what would be deleted."
    )


class Export(_Body):
    checkpoint: str = "best"
    directory: str | None = Field(
        default=None, description="Below the server's exports, or a path below a storage."
    )
    onnx: bool = False


class Evaluate(_Body):
    checkpoint: str = "best"
    episodes: int = Field(default=10, ge=1, le=100_000)
    seed: int = Field(default=0, ge=0, lt=2**63)


@router.post("/runs/{run}/verify", status_code=202)
def verify(run: str, body: Verify | None = None, server: Server = Depends(server_of)) -> Response:
    """Read every byte of the checkpoints. The verdict is kept with its date."""
    _, place = server.present(run)
    target = str(place)
    if body is not None and body.checkpoint is not None:
        target = server.places.checkpoint(place, body.checkpoint)

    def do(work: Work) -> Any:
        rows = checkpoint_rows(entries_at(target, work.track), target)
        good = all(row["good"] for row in rows)
        return _verdict(
            server,
            run,
            kind="verify",
            target=target,
            good=good,
            document={"good": good, "checkpoints": rows},
        )

    return _accepted(server, "verify", run, do)


@router.post("/runs/{run}/audit", status_code=202)
def audit(run: str, body: Audit | None = None, server: Server = Depends(server_of)) -> Response:
    """Train again between two checkpoints, and compare. The verdict is kept with its date."""
    _, place = server.present(run)
    body = body or Audit()
    arguments = ["audit", str(place)]
    for option, value in (("--from", body.from_), ("--to", body.to)):
        arguments += [] if value is None else [option, str(value)]

    def do(work: Work) -> Any:
        found = work.command(*arguments)
        return _verdict(
            server,
            run,
            kind="audit",
            target=str(place),
            good=bool(found["equal"]),
            document=found,
        )

    return _accepted(server, "audit", run, do)


@router.post("/runs/{run}/prune", status_code=202)
def prune(run: str, body: Prune | None = None, server: Server = Depends(server_of)) -> Response:
    """Without `yes`, 200 with what would be deleted; with it, a task that deletes."""
    _, place = server.present(run)
    body = body or Prune()
    rule = Rule(body.keep, body.quarantine, body.errors)
    if not body.yes:
        return Json({"deleted": False, **plan(str(place), rule).to_dict()})

    def do(work: Work) -> Any:
        done = delete(str(place), rule, work.track)
        server.scanning.now()
        return {"deleted": True, **done.to_dict()}

    return _accepted(server, "prune", run, do)


@router.post("/runs/{run}/export", status_code=202)
def export(run: str, body: Export | None = None, server: Server = Depends(server_of)) -> Response:
    """Write a policy that loads without Ray."""
    row, place = server.present(run)
    body = body or Export()
    checkpoint = server.places.checkpoint(place, body.checkpoint)
    short = body.checkpoint.rstrip("/").rpartition("/")[2]
    moment = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    target = server.places.export(body.directory or f"{row['name']}-{short}-{moment}")
    arguments = ["export", checkpoint, target, *["--onnx"] * body.onnx]
    return _accepted(server, "export", run, lambda work: work.command(*arguments))


@router.post("/runs/{run}/evaluate", status_code=202)
def evaluate(
    run: str, body: Evaluate | None = None, server: Server = Depends(server_of)
) -> Response:
    """Play seeded episodes with a checkpoint's policy."""
    _, place = server.present(run)
    body = body or Evaluate()
    checkpoint = server.places.checkpoint(place, body.checkpoint)
    arguments = ["evaluate", checkpoint, "--episodes", str(body.episodes), "--seed", str(body.seed)]
    return _accepted(server, "evaluate", run, lambda work: work.command(*arguments))


@router.get("/tasks")
def tasks(run: str | None = None, server: Server = Depends(server_of)) -> Response:
    """The newest tasks, of a run or of all."""
    return Json({"tasks": server.tasks.newest(run)})


@router.get("/tasks/{task}")
def task(task: str, server: Server = Depends(server_of)) -> Response:
    """One task: {id, kind, run, state, done, total, message, result, started_at, ended_at}."""
    return Json(server.tasks.get(task))


@router.delete("/tasks/{task}")
def cancel(task: str, server: Server = Depends(server_of)) -> Response:
    """Cancel a task; one that has ended stays as it is."""
    return Json(server.tasks.cancel(task))


def _accepted(server: Server, kind: str, run: str, do: Callable[[Work], Any]) -> Response:
    return Json({"task": server.tasks.start(kind, run, do)}, 202)


def _verdict(
    server: Server, run: str, *, kind: str, target: str, good: bool, document: dict[str, Any]
) -> dict[str, Any]:
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    server.history.record_verdict(run, kind, target, good, document=document, made_at=made_at)
    return {**document, "made_at": made_at}
