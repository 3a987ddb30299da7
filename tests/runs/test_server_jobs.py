"""Runs as jobs of a cluster, through `raytrain serve`: a real head that asks for a token."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from support.clusters import Cluster, environment, until
from support.running import Holds, rows, write_config

import raytrain

TOKEN = secrets.token_hex(32)
AUTHENTICATION = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}


@pytest.mark.slow
def test_a_job_is_started_stopped_and_continued(tmp_path: Path) -> None:
    holds = Holds(tmp_path, 3)
    config = write_config(tmp_path / "run.yaml", **holds.sections, stop={"iterations": 30})
    for name in ("results", "head"):
        (tmp_path / name).mkdir()
    trial = tmp_path / "results" / "run" / "trial_00000"
    with Cluster(tmp_path / "head", env=AUTHENTICATION) as cluster:
        command = [sys.executable, "-m", "raytrain", "serve", str(tmp_path / "results")]
        command += ["--port", "0", "--data-dir", str(tmp_path / "data")]
        command += ["--config-dir", str(tmp_path), "--address", cluster.jobs]
        with (tmp_path / "serve.log").open("wb") as log:
            served = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment(**AUTHENTICATION),
            )
        assert served.stdout is not None
        try:
            client = raytrain.Client(served.stdout.readline().strip())
            nodes = client.get("/api/nodes")["nodes"]
            assert [node["is_head"] for node in nodes] == [True]
            body = {"config_path": config.name, "address": cluster.jobs}
            answer = client.post("/api/runs", body)
            assert answer["job"] == "raytrain-run"
            run = answer["run"]["id"]
            assert client.post("/api/runs", body)["job"] == "raytrain-run"
            until(lambda: len(rows(trial)) == 3, 600, lambda: cluster.log("head"))
            carried = client.get("/api/nodes")["nodes"][0]["carries"]
            assert any("TrialPPO" in actor["class"] for actor in carried)
            assert any("iteration" in line for line in client.log(run, follow=False))
            holds.release()
            stopped = client.stop(run)
            assert stopped["saved"][0]["kind"] in ("interrupted", "periodic", "final")
            client.resume(run)
            assert client.wait(run, timeout_s=600)["state"] == "finished"
            launches = client.run(run)["launches"]
            assert {each["job"] for each in launches} <= {"raytrain-run", "raytrain-run-2"}
        finally:
            served.kill()
            served.wait()
    shown = (tmp_path / "serve.log").read_text()
    assert TOKEN not in shown
