"""A client of `raytrain serve`, with nothing but the standard library.

    client = raytrain.Client("http://127.0.0.1:8200", token)
    run = client.start("cartpole.yaml", set=["stop.timesteps=3e5"])
    for event in client.events(run["id"]): ...
    client.stop(run["id"])["saved"]
    client.resume(run["id"]); client.wait(run["id"])
    client.done(client.verify(run["id"]))["result"]["good"]

Answers are the server's JSON documents, as dictionaries (see /docs).
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from raytrain.errors import BadInput, RaytrainError

_TOKEN_VARIABLE = "RAYTRAIN_SERVER_TOKEN"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ACTIVE = ("running",)
_QUIET_S = 60.0  # A stream sends something every 15 s.


class ServerProblem(RaytrainError):
    """The server refused a request. `errors` are the problems of a config: {line, key, message}."""

    def __init__(self, status: int, detail: str, errors: Sequence[Mapping[str, Any]] = ()) -> None:
        lines = [f"line {each['line']}: " if each.get("line") else "" for each in errors]
        named = [f"{each['key']}: " if each.get("key") else "" for each in errors]
        listed = [
            f"\n  {line}{name}{each['message']}"
            for line, name, each in zip(lines, named, errors, strict=True)
        ]
        super().__init__(detail if not errors else f"{detail.splitlines()[0]}{''.join(listed)}")
        self.status = status
        self.detail = detail
        self.errors = list(errors)


class Client:
    """`url`: what `raytrain serve` printed, with its token or without; `token`: by default the one
    in `url`, or in RAYTRAIN_SERVER_TOKEN. `timeout_s`: of one answer; a stop waits until the run
    has saved.

    Methods raise `ServerProblem` for what the server refuses, and `RaytrainError` if it does not
    answer.
    """

    def __init__(self, url: str, token: str | None = None, *, timeout_s: float = 600.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise BadInput(f"{url!r} is no address such as http://127.0.0.1:8200.")
        given = parse_qs(parts.query).get("token", [None])[0]
        token = token or given or os.environ.get(_TOKEN_VARIABLE)
        if not token:
            raise BadInput(
                "The client needs the server's token: give it, or the address with ?token=... that "
                f"`raytrain serve` printed, or set {_TOKEN_VARIABLE}."
            )
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._headers = {"authorization": f"Bearer {token}"}
        self._timeout_s = timeout_s
        # A proxy leads to other machines, and not back to this one.
        own = [urllib.request.ProxyHandler({})] if parts.hostname in _LOOPBACK else []
        self._opener = urllib.request.build_opener(*own)

    # -- control ---------------------------------------------------------------------------------

    def start(
        self, config: Mapping[str, Any] | str | PathLike[str], **options: Any
    ) -> dict[str, Any]:
        """Start a run, or find it running or finished; its row. `config`: a mapping, YAML text
        (with a line break), or the path of a file: one on this machine is sent, otherwise it is the
        server's. `options`: set, name, storage, from_, weights_only, from_stage, fresh, address."""
        body = {key.rstrip("_"): value for key, value in options.items()}
        if isinstance(config, Mapping):
            body["config"] = dict(config)
        elif isinstance(config, str) and "\n" in config:
            body["config"] = config
        elif Path(config).is_file():
            body["config"] = Path(config).read_text(encoding="utf-8")
            body["stem"] = Path(config).stem
        else:
            body["config_path"] = str(config)
        return dict(self.post("/api/runs", body)["run"])

    def stop(self, run: str) -> dict[str, Any]:
        """Let a run save and end: {state, saved}."""
        return self.post(f"/api/runs/{quote(run)}/stop")

    def resume(self, run: str, **options: Any) -> dict[str, Any]:
        """Continue a run; its row. `options`: set, from_stage."""
        return dict(self.post(f"/api/runs/{quote(run)}/resume", options)["run"])

    def fork(self, run: str, name: str, checkpoint: str = "best", **options: Any) -> dict[str, Any]:
        """Begin a new run at a checkpoint; its row. `options`: set, weights_only."""
        body = {"name": name, "checkpoint": checkpoint, **options}
        return dict(self.post(f"/api/runs/{quote(run)}/fork", body)["run"])

    def verify(self, run: str, **options: Any) -> dict[str, Any]:
        """A task (see `done`)."""
        return self._task(run, "verify", options)

    def audit(self, run: str, **options: Any) -> dict[str, Any]:
        """A task; options: from_, to."""
        return self._task(run, "audit", options)

    def export(self, run: str, checkpoint: str = "best", **options: Any) -> dict[str, Any]:
        """A task; options: directory, onnx."""
        return self._task(run, "export", {"checkpoint": checkpoint, **options})

    def evaluate(self, run: str, checkpoint: str = "best", **options: Any) -> dict[str, Any]:
        """A task; options: episodes, seed."""
        return self._task(run, "evaluate", {"checkpoint": checkpoint, **options})

    def prune(self, run: str, *, yes: bool = False, **options: Any) -> dict[str, Any]:
        """What would be deleted; with `yes` a task that deletes. Options: keep, quarantine,
        errors."""
        answer = self.post(f"/api/runs/{quote(run)}/prune", {"yes": yes, **options})
        return dict(answer["task"]) if yes else answer

    # -- looking ---------------------------------------------------------------------------------

    def runs(self, **query: Any) -> list[dict[str, Any]]:
        """Rows of runs; query: q, state, sort, page, per_page, gone."""
        return list(self.get("/api/runs", **query)["runs"])

    def run(self, run: str) -> dict[str, Any]:
        return self.get(f"/api/runs/{quote(run)}")

    def checkpoints(self, run: str, **query: Any) -> list[dict[str, Any]]:
        """The newest last; query: kind, latest."""
        return list(self.get(f"/api/runs/{quote(run)}/checkpoints", **query)["checkpoints"])

    def curves(self, run: str, **query: Any) -> dict[str, Any]:
        """Query: metric, trial, since, points."""
        return self.get(f"/api/runs/{quote(run)}/curves", **query)

    def models(self) -> list[dict[str, Any]]:
        """The newest first, each with the line that loads it."""
        return list(self.get("/api/models")["models"])

    def events(self, run: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """The name and data of each event of a run, or of `change` for any run; without end."""
        path = "/api/events" if run is None else f"/api/runs/{quote(run)}/events"
        yield from self._stream(path, "change")

    def log(self, run: str, *, tail: int = 200, follow: bool = False) -> Iterator[str]:
        """Lines of a run's output."""
        query = urlencode({"tail": tail, "follow": int(follow)})
        for _, line in self._stream(f"/api/runs/{quote(run)}/log?{query}", "line"):
            yield line

    def wait(self, run: str, *, timeout_s: float | None = None) -> dict[str, Any]:
        """The row of a run once nothing trains it any more. Raises `TimeoutError`."""
        path = f"/api/runs/{quote(run)}"
        return self._until(
            lambda: dict(self.get(path, brief=1)["run"]), "state", _ACTIVE, timeout_s
        )

    def done(self, task: Mapping[str, Any], *, timeout_s: float | None = None) -> dict[str, Any]:
        """A task once it has ended. Raises `ServerProblem` if it failed, and `TimeoutError`."""
        path = f"/api/tasks/{task['id']}"
        ended = self._until(lambda: self.get(path), "state", ("queued", "running"), timeout_s)
        if ended["state"] == "failed":
            raise ServerProblem(500, str(ended["message"]))
        return ended

    # -- requests --------------------------------------------------------------------------------

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """Any address of the API."""
        asked = urlencode({key.rstrip("_"): value for key, value in query.items()}, doseq=True)
        return dict(json.load(self._open("GET", f"{path}?{asked}" if asked else path)))

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return dict(json.load(self._open("POST", path, dict(body or {}))))

    def _task(self, run: str, verb: str, options: Mapping[str, Any]) -> dict[str, Any]:
        body = {key.rstrip("_"): value for key, value in options.items()}
        return dict(self.post(f"/api/runs/{quote(run)}/{verb}", body)["task"])

    def _open(self, method: str, path: str, body: Any = None, timeout_s: float = 0) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {
            **self._headers,
            **({} if data is None else {"content-type": "application/json"}),
        }
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            return self._opener.open(request, timeout=timeout_s or self._timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                raise _problem(error.code, error.read()) from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise RaytrainError(
                f"The server at {self.url} does not answer ({reason}). Runs go on without it; "
                "start it again with `raytrain serve`."
            ) from None

    def _stream(self, path: str, unnamed: str) -> Iterator[tuple[str, Any]]:
        name = unnamed
        with self._open("GET", path, timeout_s=_QUIET_S) as reply:
            for raw in reply:
                field, _, value = raw.decode().rstrip("\n").partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, json.loads(value)
                    name = unnamed

    @staticmethod
    def _until(
        ask: Any, key: str, while_in: Sequence[str], timeout_s: float | None
    ) -> dict[str, Any]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            answer: dict[str, Any] = ask()
            if answer[key] not in while_in:
                return answer
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"still {answer[key]} after {timeout_s} s")
            time.sleep(1.0)


def _problem(status: int, body: bytes) -> ServerProblem:
    try:
        document = json.loads(body)
        return ServerProblem(status, str(document["detail"]), document.get("errors") or ())
    except (ValueError, KeyError, TypeError):
        return ServerProblem(status, f"The server answered {status}.")
