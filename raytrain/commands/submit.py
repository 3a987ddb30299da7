"""The output of `raytrain submit`: the state of the job, its log, its end, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raytrain.commands.job_log import follow
from raytrain.commands.jobs import Job, JobServer, exit_code, submit, why_it_failed
from raytrain.config import ExperimentConfig
from raytrain.driver.signals import InterruptedEarly, Interrupts


def submit_and_follow(
    config: ExperimentConfig,
    address: str,
    *,
    wait: bool,
    say: Callable[[str], None],
    write: Callable[[str], Any],
) -> int:
    """Submit the run, or find its job; `write` gets the job's log. Returns the exit code of the
    command. Ctrl-C while the log is followed does not stop the job."""
    server = JobServer(address)
    job = submit(config, server)
    say(_state_text(job, config, server))
    if job.state == "finished":
        return 0
    if not wait:
        say(_commands_text(job, server))
        return 0
    with Interrupts() as interrupts:
        try:
            ended = follow(server, job.submission_id, write)
        except InterruptedEarly:
            say(
                "\nThe job keeps running; only its log is not followed any "
                f"more.\n{_commands_text(job, server)}"
            )
            return interrupts.exit_code
    why = why_it_failed(ended)
    if why is not None:
        say(why)
    code = exit_code(ended)
    say(_end_text(job.submission_id, str(ended.status), code))
    return code


def _state_text(job: Job, config: ExperimentConfig, server: JobServer) -> str:
    name = f"{config.name}: the job {job.submission_id} at {server.address}"
    if job.state == "running":
        return f"{name} is running already; nothing was submitted."
    if job.state == "finished":
        return (
            f"{name} has finished; exit code 0. Results: {config.storage_path}/{config.name}. To "
            "train on, raise a value in `stop`; to start another run, give --name NEW."
        )
    return (
        f"{name} was submitted ({job.packed}).\n"
        f"Results: {config.storage_path}/{config.name}, as the cluster's nodes see it."
    )


def _commands_text(job: Job, server: JobServer) -> str:
    return (
        "Follow:  the same command with --wait\n"
        f"Stop:    {server.stop_command(job.submission_id)}   "
        "(it saves first; submitting again continues)"
    )


def _end_text(submission_id: str, status: str, code: int) -> str:
    if code == 0:
        return f"The job {submission_id} finished."
    if code == 2:
        return f"The job {submission_id} ended with bad input (exit code 2): see its log above."
    return (
        f"The job {submission_id} has ended: {status}, exit code {code}. The same command "
        "continues the run from its newest good checkpoint."
    )
