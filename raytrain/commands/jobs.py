"""`raytrain submit`: a run as a Ray job, through Ray's own client.

Every job of a run has the run's mark in its metadata, so that submitting twice is one run:

    raytrain-cartpole      the first job of the run `cartpole`
    raytrain-cartpole-2    the next job, after the first failed or was stopped; it continues the run
    raytrain-cartpole-3    ...

    metadata: raytrain_run     SHA-256 of name and storage path, which identify a run
              raytrain_config  SHA-256 of the resolved config

The newest job of the run decides. If it is running, it is the job. If it has finished the same
config, nothing is submitted. Otherwise (failed, stopped, finished with another `stop`, or unknown
to a new head) another job is submitted, which continues from storage. A job's entrypoint and
environment contain no value of the config: everybody who sees the dashboard can read them.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import shlex
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from urllib.parse import urlsplit

from raytrain.cluster.package import CONFIG_FILE, config_text, pack
from raytrain.config import ExperimentConfig
from raytrain.errors import BadInput, RaytrainError

ENTRYPOINT = f"exec raytrain train {CONFIG_FILE}"
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
STOP_WAIT_S = 330  # A stopped run may take 300 s to save. Ray's own default is 3 s, then SIGKILL.

_PORT = 8265  # Ray's default for the dashboard, which is the job server
_PATIENCE_S = 10.0
_RUN, _CONFIG = "raytrain_run", "raytrain_config"
_OVERRIDES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")

_STOPPED = 143
_PASSED_ON = (0, 1, 2, 130, 143)


class ClusterLost(RaytrainError):
    """The job server stopped answering."""


class JobRefused(RaytrainError):
    """The job server refused a request."""


@dataclass(frozen=True)
class Job:
    """A job of a run. `state`: what `submit` did or found. `packed`: what was sent, if anything."""

    submission_id: str
    state: Literal["submitted", "running", "finished"]
    packed: str = ""


def submit(config: ExperimentConfig, server: JobServer) -> Job:
    """Make sure that the run of `config` has a job on the cluster, unless it has finished there.

    Raises:
        BadInput: the run is running there with another config; its files cannot be packed.
        JobRefused: the cluster refused the job.
    """
    run = run_mark(config.name, config.storage_path)
    mark = {_RUN: run, _CONFIG: _sha256(config_text(config))}
    jobs = server.jobs()
    ours = [job for job in jobs if (job.metadata or {}).get(_RUN) == run]
    newest = max(ours, key=lambda job: job.start_time or 0, default=None)
    if newest is not None:
        same = newest.metadata.get(_CONFIG) == mark[_CONFIG]
        if not newest.status.is_terminal():
            if same:
                return Job(newest.submission_id, "running")
            raise BadInput(
                f"{config.name} is running there as the job {newest.submission_id}, with another "
                f"config. Wait for the job to end, or stop it with "
                f"`{server.stop_command(newest.submission_id)}` (it saves first), then submit "
                "again. To follow it, give the config that it was submitted with."
            )
        if same and newest.status == "SUCCEEDED":
            return Job(newest.submission_id, "finished")
    submission_id = _next_id(config.name, [job.submission_id or "" for job in jobs])
    with TemporaryDirectory() as scratch:
        package = pack(config, Path(scratch, "run.zip"))
        server.submit(submission_id, package.archive, mark)
    return Job(submission_id, "submitted", str(package))


def run_mark(name: str, storage_path: str) -> str:
    """What the metadata of every job of a run have."""
    return _sha256(f"{name}\0{storage_path}")


def exit_code(job: Any) -> int:
    """The exit code of `raytrain submit --wait` for an ended job (`JobDetails`): that of its
    `raytrain train`; 143 for a stopped job (Ray keeps no code then); 1 for any other end."""
    if job.status == "STOPPED":
        return _STOPPED
    return job.driver_exit_code if job.driver_exit_code in _PASSED_ON else 1


def why_it_failed(job: Any) -> str | None:
    """The reason for an end that the job's own log does not explain; None if the log does."""
    code = job.driver_exit_code
    if job.status != "FAILED" or code in _PASSED_ON:
        return None
    if code == 127:
        return "raytrain is not on the PATH of the cluster's head: install it there, on every node."
    if code is not None:
        killed = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"The job's process {killed}."
    return f"The job failed: {job.message or 'Ray does not say why'}"


class JobServer:
    """Ray's job server at an address: `http://HOST:PORT`, or `HOST`, or `HOST:PORT`.

    Raises:
        BadInput: there is no job server at the address; the token is missing or wrong.
    """

    def __init__(self, address: str) -> None:
        self.address = full_address(address)
        _require_job_server(self.address)
        from ray.job_submission import JobSubmissionClient

        for name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with self._refusals(), _own_address():
            self.client = JobSubmissionClient(self.address)

    def jobs(self) -> list[Any]:
        with self._refusals():
            return list(self.client.list_jobs())

    def job(self, submission_id: str) -> Any:
        """The `JobDetails` of a job."""
        with self._refusals():
            return self.client.get_job_info(submission_id)

    def submit(self, submission_id: str, archive: Path, metadata: dict[str, str]) -> None:
        wait = os.environ.get(STOP_WAIT, str(STOP_WAIT_S))
        with self._refusals():
            self.client.submit_job(
                entrypoint=ENTRYPOINT,
                submission_id=submission_id,
                runtime_env={"working_dir": str(archive), "env_vars": {STOP_WAIT: wait}},
                metadata=metadata,
            )

    def running(self, mark: str) -> str | None:
        """The job of a run (see `run_mark`) that has not ended; None if there is none."""
        for job in self.jobs():
            if (job.metadata or {}).get(_RUN) == mark and not job.status.is_terminal():
                return str(job.submission_id)
        return None

    def stop(self, submission_id: str) -> None:
        """Let a job save and end."""
        with self._refusals():
            self.client.stop_job(submission_id)

    def log(self, submission_id: str) -> str:
        """All that the job has written."""
        with self._refusals():
            return str(self.client.get_job_logs(submission_id))

    def nodes(self) -> list[dict[str, Any]]:
        """The cluster's nodes, each with its actors. `started_at`: seconds since 1970."""
        from ray.util.state import list_actors, list_nodes

        with self._refusals():
            alive = [("state", "=", "ALIVE")]
            actors = list_actors(address=self.address, filters=alive, limit=10_000, detail=True)
            nodes = list_nodes(address=self.address, limit=10_000, detail=True)
        return [
            {
                "id": node.node_id,
                "address": node.node_ip,
                "name": node.node_name,
                "state": node.state,
                "message": node.state_message,
                "is_head": node.is_head_node,
                "resources": node.resources_total,
                "labels": node.labels,
                "started_at": (node.start_time_ms or 0) / 1000,
                "carries": [
                    {"class": actor.class_name, "name": actor.repr_name or actor.name or ""}
                    for actor in actors
                    if actor.node_id == node.node_id
                ],
            }
            for node in nodes
        ]

    def stop_command(self, submission_id: str) -> str:
        return f"ray job stop {submission_id} --address {shlex.quote(self.address)}"

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError:
            raise BadInput(_token_problem(self.address)) from None
        except (requests.RequestException, ConnectionError) as error:
            raise ClusterLost(
                f"The job server at {self.address} stopped answering ({_short(error)})."
            ) from None
        except RuntimeError as error:
            raise JobRefused(
                f"The job server at {self.address} refused: {_short(error)}. Run the same command "
                "again."
            ) from None


def full_address(address: str) -> str:
    """The URL of the job server that an address means. Raises `BadInput`."""
    if address.startswith("ray://") or address == "auto":
        raise BadInput(
            f"--address {address}: jobs are submitted to the cluster's dashboard. Give its "
            f"address, such as http://HOST:{_PORT} (`ray start --head` and `ray dashboard` print "
            "it)."
        )
    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        port = parts.port
    except ValueError:
        port, parts = None, parts._replace(scheme="")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInput(f"--address {address}: not an address such as http://HOST:{_PORT}.")
    if port is None and parts.scheme == "http":
        parts = parts._replace(netloc=f"{parts.netloc}:{_PORT}")
    return parts.geturl().rstrip("/")


def _require_job_server(address: str) -> None:
    """Ray's client has no timeout, and accepts any answer as that of a job server."""
    try:
        with urllib.request.urlopen(f"{address}/api/version", timeout=_PATIENCE_S) as reply:
            known = b"ray_version" in reply.read(10_000)
    except urllib.error.HTTPError as error:
        known = error.code in (401, 403)  # A token is required: Ray's client says which.
        error.close()
    except http.client.HTTPException:
        known = False
    except (OSError, ValueError) as error:
        raise BadInput(
            f"--address {address}: no answer ({_short(error)}). Check host and port, that the "
            "cluster is up, and that this machine reaches it (by an SSH tunnel or `ray dashboard`)."
        ) from None
    if not known:
        raise BadInput(
            f"--address {address}: the server there is not Ray's job server. Jobs are submitted to "
            f"the dashboard's port, {_PORT} by default; 6379 is for drivers and nodes, 10001 for "
            "Ray Client."
        )


@contextmanager
def _own_address() -> Iterator[None]:
    """In the body, Ray's client uses the given address: two variables would override it."""
    before = {name: os.environ.pop(name) for name in _OVERRIDES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def _token_problem(address: str) -> str:
    variables = [name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)]
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        reason = "it requires a token, and RAY_AUTH_MODE=token is not set here"
    elif variables:
        reason = f"it does not accept the token in {variables[0]}"
    else:
        reason = "it requires a token; there is none here, or it is not the cluster's"
    return (
        f"The cluster at {address} refuses this client: {reason}. Set RAY_AUTH_MODE=token and put "
        "the token that the cluster was started with into RAY_AUTH_TOKEN, or into a file that "
        "RAY_AUTH_TOKEN_PATH names (by default ~/.ray/auth_token)."
    )


def _next_id(name: str, taken: list[str]) -> str:
    """The first id of a run, or the one after all ids of that form: another run may be called
    `cartpole-2`, and a run of the same name may have another storage path."""
    first = f"raytrain-{name}"
    matches = [re.fullmatch(re.escape(first) + r"(?:-(\d+))?", name) for name in taken]
    numbers = [int(match[1] or 1) for match in matches if match]
    return f"{first}-{max(numbers) + 1}" if numbers else first


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _short(error: BaseException) -> str:
    """The reason in an error's text: Ray puts tracebacks into it, requests a chain of objects."""
    reason = getattr(error, "reason", None)
    lines = [line for line in str(reason or error).strip().splitlines() if line.strip()]
    return (lines[-1].strip() if lines else type(error).__name__)[:300].rstrip(".")
