"""Real runs for tests: start `raytrain train` as a person does, watch its files,
kill its processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import psutil
import yaml
from typer.testing import CliRunner

from raytrain.cli import app
from support.paths import ENVS

TINY: dict[str, Any] = {
    "name": "run",
    "seed": 3,
    "environment": {"env": "CartPole-v1"},
    "env_runners": {"num_env_runners": 1, "num_envs_per_env_runner": 2},
    "training": {
        "lr": 1e-3,
        "train_batch_size_per_learner": 1024,
        "minibatch_size": 64,
        "num_epochs": 4,
        "use_kl_loss": True,
        "kl_coeff": 0.3,
        "kl_target": 0.002,
    },
    "rl_module": {"model_config": {"fcnet_hiddens": [16, 16]}},
    "stop": {"iterations": 12},
    "checkpoint": {"checkpoint_frequency": 2, "num_to_keep": 3},
    "failure": {"max_failures": 3},
}


def write_config(path: Path, **sections: Any) -> Path:
    """TINY with `sections` merged in (one level deep), results beside the file."""
    config: dict[str, Any] = {**TINY, "storage_path": str(path.parent / "results")}
    for key, value in sections.items():
        merged = isinstance(value, dict) and isinstance(config.get(key), dict)
        config[key] = {**config[key], **value} if merged else value
    path.write_text(yaml.safe_dump(config))
    return path


class Holds:
    """A run that waits after some of its iterations, in the one that follows, until `release`: it
    cannot be over, on however fast a machine, before a test has acted.

        holds = Holds(tmp_path, 2, 5)
        config = write_config(tmp_path / "run.yaml", **holds.sections)

    `steps`: those of each environment in an iteration, give or take a few: it waits in the middle
    of one."""

    def __init__(self, place: Path, *iterations: int, steps: int = 512) -> None:
        shutil.copy(ENVS / "held_env.py", place)
        self._files = [place / f"held_after_{iteration}" for iteration in iterations]
        for file in self._files:
            file.touch()
        holds = {
            str(file): iteration * steps + steps // 2
            for file, iteration in zip(self._files, iterations, strict=True)
        }
        self.sections: dict[str, Any] = {
            "environment": {"env": "held_env:make", "env_config": {"holds": holds}},
            # A run that is held is not one that hangs.
            "fault_tolerance": {"env_runner_timeout_s": 3600, "hang_floor_s": 3600},
        }

    def release(self) -> None:
        """Let the run go on to the next hold, or to its end."""
        self._files.pop(0).unlink()

    def release_all(self) -> None:
        """Let the run go on to its end."""
        while self._files:
            self.release()


class Run:
    """One process of `raytrain`, or of another `program`, in a process group of its own, with its
    output in a file."""

    started: ClassVar[list[Run]] = []
    """Those that a test has started; what it leaves running is killed after it."""

    def __init__(
        self,
        *arguments: str,
        log: Path,
        env: dict[str, str] | None = None,
        program: tuple[str, ...] = ("-m", "raytrain"),
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *program, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(env or {})},
            )
        self.started.append(self)

    def wait(self, timeout: float = 600) -> int:
        """The exit code; all processes of the run are dead after a timeout."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill_everything()
            raise AssertionError(f"still running after {timeout} s:\n{self.output()}") from None

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def until(self, condition: Callable[[], Any], timeout: float = 600) -> Any:
        """Wait for a condition; the run must not end before it holds."""
        deadline = time.monotonic() + timeout
        while True:
            value = condition()
            if value:
                return value
            if self.process.poll() is not None or time.monotonic() > deadline:
                value = condition()
                assert value, f"ended ({self.process.poll()}) or timed out:\n{self.output()}"
                return value
            time.sleep(0.02)

    def processes(self) -> list[psutil.Process]:
        """All that the run has started. A server that forks workers has lost its parent where
        Ray has taken that for a worker that does not come up: after a minute, on a machine that
        is very busy."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            found = []
        of_this_run = f"_{self.process.pid}/sockets/"
        for server in psutil.process_iter(["cmdline"]):
            line = server.info["cmdline"] or []
            if "--serve" in line and any(of_this_run in each for each in line):
                with suppress(psutil.NoSuchProcess):
                    found += [server, *server.children(recursive=True)]
        return list(dict.fromkeys(found))

    def pids(self, title: str) -> list[int]:
        """Processes of the run whose title contains `title`, such as
        `ray::TrialPPO` or `raylet`."""
        found = []
        for process in self.processes():
            try:
                if title in " ".join(process.cmdline()[:1]) or title == process.name():
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found

    def one(self, title: str) -> int:
        """Such a process. It may be seen a moment later than what it has done, while Ray
        changes its title."""
        return int(self.until(lambda: self.pids(title))[0])

    def signal(self, number: int = signal.SIGINT) -> None:
        self.process.send_signal(number)

    def kill_everything(self) -> None:
        """SIGKILL to the driver and all that it has started, at once."""
        victims = self.processes()
        for process in [*victims]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.kill()
        self.process.wait()
        psutil.wait_procs(victims, timeout=30)


def train(config: Path, *arguments: str, log: Path | None = None, code: int = 0) -> str:
    """Run to the end; the output. The exit code must be `code`."""
    run = Run("train", str(config), *arguments, log=log or config.parent / "log.txt")
    found = run.wait()
    assert found == code, f"exit code {found}, expected {code}:\n{run.output()}"
    return run.output()


def train_here(config: Path, *arguments: str, code: int = 0) -> str:
    """The same in this process, under the Ray that it has started (the fixture `local_ray`): a run
    then takes seconds."""
    ended = CliRunner().invoke(app, ["train", str(config), *arguments])
    assert ended.exit_code == code, f"{ended.exit_code}, expected {code}:\n{ended.output}"
    return ended.output


def trial_of(config: Path, index: int = 0) -> Path:
    """The directory of a trial, which may not exist yet."""
    root = experiment_of(config)
    found = sorted(root.glob(f"trial_{index:05d}*"))
    return found[0] if found else root / f"trial_{index:05d}"


def experiment_of(config: Path) -> Path:
    values = yaml.safe_load(config.read_text())
    return Path(values["storage_path"], str(values["name"]))


def rows(trial: Path) -> list[dict[str, Any]]:
    """The complete rows of result.json so far."""
    try:
        lines = (trial / "result.json").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def began_after(trial: Path) -> dict[int, int]:
    """After which iteration each attempt began."""
    files = sorted((trial / "attempts").glob("*.json"))
    return {
        int(each.name.split(".")[0]): json.loads(each.read_text())["began_after"] for each in files
    }


def iteration_of(trial: Path) -> int:
    found = rows(trial)
    return int(found[-1]["training_iteration"]) if found else 0


def committed(trial: Path) -> list[int]:
    """Iterations of the periodic checkpoints that have a manifest."""
    return sorted(
        int(path.parent.name.split("_")[1]) for path in trial.glob("checkpoint_*/manifest.json")
    )


class Reference:
    """An undisturbed run: what every disturbed one must be equal to."""

    def __init__(self, trial: Path) -> None:
        self.trial = trial
        self.rows: list[dict[str, Any]] = rows(trial)

    def digests(self) -> list[str]:
        return [row["weights_sha256"] for row in self.rows]
