"""Whole runs on an S3 store: killed, damaged, cut off from the store for a while and for good."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from support import s3_store
from support.running import Holds, Run, write_config

from raytrain.checkpoint import Catalogue
from raytrain.storage import Location

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Of a short path: Ray puts sockets there."""
    place = Path(tempfile.mkdtemp(prefix="rs-"))
    yield place
    shutil.rmtree(place, ignore_errors=True)


class Stored:
    """An experiment on the store, run with `raytrain` in processes of its own."""

    def __init__(self, place: Path, port: int, name: str, **sections: object) -> None:
        self._place = place
        self.environment = {**s3_store.environment(port), "TMPDIR": str(place)}
        self.uri = f"s3://{s3_store.BUCKET}/{place.name}/{name}"
        values = {"storage_path": self.uri.rpartition("/")[0], "name": name, **sections}
        self.config = write_config(place / f"{name}.yaml", **values)

    def start(self, *arguments: str) -> Run:
        count = len(list(self._place.glob("*.log")))
        log = self._place / f"{count}.log"
        return Run("train", str(self.config), *arguments, log=log, env=self.environment)

    def train(self, *arguments: str, code: int = 0) -> str:
        run = self.start(*arguments)
        assert run.wait(900) == code, run.output()
        return run.output()

    def command(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "raytrain", *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    @property
    def trial(self) -> Location:
        return Location.of(self.uri) / "trial_00000"

    def committed(self) -> list[int]:
        return [e.iteration for e in Catalogue(self.trial).periodic() if e.manifest]

    def digest(self) -> str:
        document = json.loads((self.trial / "final/manifest.json").read_bytes())
        return str(document["weights_sha256"])

    def iterations(self) -> list[int]:
        lines = (self.trial / "result.json").read_bytes().splitlines()
        return [json.loads(line)["training_iteration"] for line in lines]


def flip(file: Location) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def test_killed_damaged_and_continued(s3: int, scratch: Path) -> None:
    undisturbed = Stored(scratch, s3, "undisturbed", stop={"iterations": 8})
    undisturbed.train()
    holds = Holds(scratch, 5)
    run = Stored(scratch, s3, "killed", stop={"iterations": 8}, **holds.sections)
    first = run.start()
    first.until(lambda: len(run.committed()) >= 2)
    first.kill_everything()
    holds.release()
    assert run.committed()
    flip(run.trial / f"checkpoint_{run.committed()[-1]:06d}/algorithm_state.pkl")
    said = run.train()
    assert "is damaged (algorithm_state.pkl: SHA-256 differs)" in said and "Continued from" in said
    assert run.digest() == undisturbed.digest()
    assert run.iterations() == list(range(1, 9))
    tables = pafs.FileSelector(f"{run.trial.path}/episodes")
    files = [info.path for info in run.trial.fs.get_file_info(tables)]
    ends = [
        r for f in files for r in pq.read_table(f, filesystem=run.trial.fs)["iteration"].to_pylist()
    ]
    assert sorted(set(ends)) == list(range(1, 9))
    assert any("tfevents" in name for name in run.trial.files())
    columns = (run.trial / "progress.csv").read_bytes().splitlines()
    assert len(columns) == 9

    listed = json.loads(run.command("checkpoints", run.uri, "--json"))
    assert [each["path"] for each in listed if not each["good"]] != []  # in quarantine
    manifest = json.loads(run.command("inspect", run.uri, "--json"))
    assert manifest["weights_sha256"] == run.digest()
    run.command("verify", f"{run.uri}/trial_00000/final")
    played = json.loads(run.command("evaluate", f"{run.uri}:best", "--episodes", "2", "--json"))
    assert played
    run.command("resume", run.uri)  # is finished
    run.command("audit", undisturbed.uri)


def test_a_store_that_goes_away_for_a_while(
    s3: int, s3_proxy: s3_store.Proxy, scratch: Path
) -> None:
    undisturbed = Stored(scratch, s3, "undisturbed", stop={"iterations": 30})
    undisturbed.train()
    holds = Holds(scratch, 3, 15)
    run = Stored(scratch, s3_proxy.port, "away", stop={"iterations": 30}, **holds.sections)
    running = run.start()
    running.until(lambda: len(run.committed()) >= 1)
    s3_proxy.set("away")
    holds.release()
    running.until(lambda: "does not answer" in running.output())
    s3_proxy.set("errors", share=0.1)
    holds.release()
    assert running.wait(900) == 0, running.output()
    s3_proxy.set("pass")
    said = running.output()
    assert said.count("does not answer") <= 2 and "answers again" in said  # trial and driver
    assert "started again" not in said
    assert run.digest() == undisturbed.digest()
    assert run.iterations() == list(range(1, 31))
    assert all(e.good or e.in_quarantine for e in Catalogue(run.trial).entries(verify=True))


def test_a_store_that_stays_away(s3: int, s3_proxy: s3_store.Proxy, scratch: Path) -> None:
    run = Stored(
        scratch,
        s3_proxy.port,
        "gone",
        stop={"iterations": 100_000},
        failure={"max_failures": 0},
        training={"lr": 1e-9},  # In minutes of training on a fast machine it would diverge.
    )
    running = run.start()
    running.until(lambda: len(run.committed()) >= 2)
    s3_proxy.set("away")
    assert running.wait(900) == 1, running.output()
    said = running.output()
    assert "could not be written" in said and "Traceback" not in said
    s3_proxy.set("pass")
    entries = Catalogue(run.trial).entries(verify=True)
    assert entries and all(entry.good for entry in entries)
    at = max(entry.iteration for entry in entries)
    run.train("--set", f"stop.iterations={at + 2}")  # continues from what was committed
    assert run.iterations() == list(range(1, at + 3))
