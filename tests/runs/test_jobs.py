"""`raytrain submit` and `ray job submit` against a real head that asks for a token."""

from __future__ import annotations

import json
import secrets
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.clusters import Cluster, environment, free_port, run, until
from support.paths import ROOT
from support.running import Holds, Reference, committed, rows, trial_of, write_config

from raytrain.commands.jobs import exit_code, why_it_failed

TOKEN = secrets.token_hex(32)
SECRET = "a-value-that-nobody-may-read"
WITH_TOKEN = environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    with Cluster(tmp_path_factory.mktemp("head"), env=token) as cluster:
        yield cluster


_ENVIRONMENT = """
import held_env


def make(account, holds):
    return held_env.make(holds)
"""


def own_env(place: Path) -> tuple[Path, Holds]:
    """A config whose environment is in modules beside it, and which is held after iteration 3."""
    holds = Holds(place, 3)
    (place / "mine.py").write_text(_ENVIRONMENT)
    env_config = {"account": SECRET, **holds.sections["environment"]["env_config"]}
    environment = {"env": "mine:make", "env_config": env_config}
    return write_config(place / "run.yaml", **{**holds.sections, "environment": environment}), holds


def stop(cluster: Cluster, name: str, holds: Holds) -> str:
    """`ray job stop`, which a run obeys after its present iteration; what it says."""
    command = ("ray", "job", "stop", name, "--address", cluster.jobs)
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(run, *command, env=WITH_TOKEN, cwd=ROOT)
        until(
            lambda: "saving 1 running" in cluster.driver_log(name), 600, lambda: cluster.log("head")
        )
        holds.release()
        _, told = stopping.result()
    return told


def submit(config: Path, cluster: Cluster, *more: str) -> tuple[int, str]:
    address = ("--address", cluster.jobs)
    return run(
        *("raytrain", "submit", str(config), *address, *more), env=WITH_TOKEN, cwd=config.parent
    )


def jobs(cluster: Cluster) -> dict[str, dict[str, object]]:
    """Every job of the cluster, by its submission id, as Ray's command line shows it."""
    code = (
        "import json, sys; from ray.job_submission import JobSubmissionClient;"
        "print(json.dumps([job.dict() for job in JobSubmissionClient(sys.argv[1]).list_jobs()]))"
    )
    found = subprocess.run(
        ["python", "-W", "ignore", "-c", code, cluster.jobs],
        env=WITH_TOKEN,
        capture_output=True,
        text=True,
        check=True,
    )
    return {job["submission_id"]: job for job in json.loads(found.stdout.splitlines()[-1])}


def digests(config: Path) -> list[str]:
    return [row["weights_sha256"] for row in rows(trial_of(config))]


@pytest.mark.slow
def test_a_run_is_one_run_however_often_it_is_submitted(
    cluster: Cluster, tmp_path: Path, undisturbed: Reference
) -> None:
    """Submitted and followed, Ctrl-C, submitted again, stopped, submitted, finished, submitted."""
    config, holds = own_env(tmp_path)
    follower = subprocess.Popen(
        ["raytrain", "submit", str(config), "--address", cluster.jobs, "--wait"],
        stdout=(log := (tmp_path / "follower").open("w+")),
        stderr=subprocess.STDOUT,
        env=WITH_TOKEN,
        cwd=tmp_path,
    )
    said = (tmp_path / "follower").read_text
    until(lambda: "iteration 1 of 12" in said() and len(rows(trial_of(config))) == 3, 600, said)
    follower.send_signal(signal.SIGINT)
    assert follower.wait(600) == 130
    log.close()
    assert "The job keeps running" in said()
    assert f"ray job stop raytrain-run --address {cluster.jobs}" in said()

    code, told = submit(config, cluster)
    assert code == 0
    assert "the job raytrain-run at" in told
    assert "is running already" in told
    code, told = submit(config, cluster, "--set", "stop.iterations=13")
    assert code == 2
    assert "with another config" in told
    told = stop(cluster, "raytrain-run", holds)
    assert jobs(cluster)["raytrain-run"]["status"] == "STOPPED", told
    stopped_at = len(rows(trial_of(config)))
    assert stopped_at in committed(trial_of(config)), "it was stopped without saving"
    assert stopped_at == 4

    code, told = submit(config, cluster, "--wait")
    assert code == 0, told
    assert "the job raytrain-run-2 at" in told
    assert f"(iteration {stopped_at}, interrupted)" in told
    assert digests(config) == undisturbed.digests()
    code, told = submit(config, cluster, "--wait")
    assert code == 0
    assert "the job raytrain-run-2 at" in told
    assert "has finished; exit code 0" in told

    found = jobs(cluster)
    assert sorted(found) == ["raytrain-run", "raytrain-run-2"]
    assert SECRET not in json.dumps(found)
    assert TOKEN not in json.dumps(found)


def test_a_bad_environment_is_exit_code_2_of_the_job(cluster: Cluster, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml", name="bad", environment={"env": "nowhere:make"})
    code, told = submit(config, cluster, "--wait")
    assert code == 2, told
    assert "no module nowhere" in told


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE=token is not set here"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "it does not accept the token in RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_TOKEN": "", "HOME": "/nowhere"}, "there is none here"),
    ],
    ids=["mode", "wrong", "missing"],
)
def test_without_the_token_the_message_says_so(
    cluster: Cluster, tmp_path: Path, changed: dict[str, str], said: str
) -> None:
    config = write_config(tmp_path / "run.yaml")
    env = {name: value for name, value in {**WITH_TOKEN, **changed}.items() if value}
    code, told = run(
        *("raytrain", "submit", str(config), "--address", cluster.jobs), env=env, cwd=tmp_path
    )
    assert code == 2, told
    assert said in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_wrong_addresses_are_told_apart(cluster: Cluster, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        thread = threading.Thread(target=lambda: silent.accept()[0].sendall(b"SSH-2.0-x\r\n"))
        thread.start()
        for address, said in (
            (f"127.0.0.1:{free_port()}", "no answer"),
            (f"127.0.0.1:{silent.getsockname()[1]}", "is not Ray's job server"),
            (cluster.address, "is not Ray's job server"),
            ("ray://127.0.0.1:10001", "jobs are submitted to the cluster's dashboard"),
            ("http://127.0.0.1:port", "not an address such as"),
        ):
            code, told = run(
                *("raytrain", "submit", str(config), "--address", address),
                env=WITH_TOKEN,
                cwd=tmp_path,
            )
            assert code == 2, told
            assert said in told
            assert "Traceback" not in told
        thread.join()
    code, told = submit(tmp_path / "missing.yaml", cluster)
    assert code == 2
    assert "no such file" in told
    code, told = run(
        "raytrain", "train", str(config), "--address", cluster.jobs, env=WITH_TOKEN, cwd=tmp_path
    )
    assert code == 2, told
    assert "raytrain submit CONFIG --address" in told


@pytest.mark.parametrize(
    ("status", "code", "expected", "said"),
    [
        ("SUCCEEDED", 0, 0, None),
        ("FAILED", 1, 1, None),
        ("FAILED", 143, 143, None),
        ("STOPPED", None, 143, None),
        ("FAILED", -9, 1, "killed by signal 9"),
        ("FAILED", 127, 1, "raytrain is not on the PATH"),
        ("FAILED", None, 1, "no such package"),
    ],
)
def test_exit_codes_of_jobs(status: str, code: int | None, expected: int, said: str | None) -> None:
    job = SimpleNamespace(status=status, driver_exit_code=code, message="no such package")
    assert exit_code(job) == expected
    assert (why_it_failed(job) is None) if said is None else (said in (why_it_failed(job) or ""))


@pytest.mark.slow
def test_rays_own_submission_saves_when_it_is_stopped(
    cluster: Cluster, tmp_path: Path, undisturbed: Reference
) -> None:
    """`ray job submit -- raytrain train`, `ray job stop`, and again."""
    config, holds = own_env(tmp_path)
    wait = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}})
    command = ("ray", "job", "submit", "--address", cluster.jobs, "--working-dir", ".")
    train = ("--runtime-env-json", wait, "--", "raytrain", "train", "run.yaml")
    ids = ("--submission-id", "own")
    code, told = run(*command, *ids, "--no-wait", *train, env=WITH_TOKEN, cwd=tmp_path)
    assert code == 0, told
    until(lambda: len(rows(trial_of(config))) == 3, 600, lambda: cluster.log("head"))
    told = stop(cluster, "own", holds)
    assert jobs(cluster)["own"]["status"] == "STOPPED", told
    assert len(rows(trial_of(config))) in committed(trial_of(config))
    code, told = run(*command, "--submission-id", "own-2", *train, env=WITH_TOKEN, cwd=tmp_path)
    assert code == 0, told
    assert "run finished" in told
    assert digests(config) == undisturbed.digests()


@pytest.mark.slow
def test_a_storage_path_that_ray_would_delete_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    write_config(tmp_path / "run.yaml", storage_path="results")
    command = ("ray", "job", "submit", "--address", cluster.jobs, "--working-dir", ".")
    _, told = run(*command, "--", "raytrain", "train", "run.yaml", env=WITH_TOKEN, cwd=tmp_path)
    assert "lies in the job's working directory, which Ray deletes" in told
    assert "exit code 2" in told


@pytest.mark.slow
def test_a_new_head_continues_the_run(tmp_path: Path, undisturbed: Reference) -> None:
    """Everything on the head dies, the driver too; its follower ends, and a new head is given."""
    config, holds = own_env(tmp_path)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    with Cluster(tmp_path / "first", env=token) as first:
        log = (tmp_path / "follower").open("w")
        follower = subprocess.Popen(
            ["raytrain", "submit", str(config), "--address", first.jobs, "--wait"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=WITH_TOKEN,
            cwd=tmp_path,
        )
        told = (tmp_path / "follower").read_text
        until(lambda: committed(trial_of(config)), 600, told)
        first.head.kill()
        assert follower.wait(600) == 1
        log.close()
        assert "submit again there: the run continues from its storage" in told()
    holds.release()
    with Cluster(tmp_path / "second", env=token) as second:
        code, said = submit(config, second, "--wait")
    assert code == 0, said
    assert "Continued from" in said
    assert digests(config) == undisturbed.digests()
