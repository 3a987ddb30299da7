"""One run of one trainer in a process of its own, watched from outside.

    command --> starts in a fresh directory, pinned to a core if asked, one thread for arithmetic
            --> appends a line to some `result.json` below that directory for each iteration
    watch   --> for each line: seconds since the command, CPU seconds of all its processes, the row

raytrain and Tune write such a file anyway, the other trainers through `programs.py`, so everybody
is measured in the same way, with everything in between: checkpoints, records, Ray's own processes.
A line is noticed within `POLL_S`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
POLL_S = 0.01
ROWS = "result.json"
STEPS = "num_env_steps_sampled_lifetime"

_GONE = (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied)
_TITLE = re.compile(r"^ray::(\w+)")


class RunFailed(Exception):
    """A run ended with an error or too late; the message holds the end of its output."""


@dataclass(frozen=True)
class Row:
    """A result: seconds since the command, CPU seconds of the run's processes, and what it said."""

    at: float
    cpu: float
    values: dict[str, Any]

    @property
    def steps(self) -> int:
        return int(self.values[STEPS])


@dataclass(frozen=True)
class Watched:
    """A whole run. `seen`: seconds since the command at which a kind of process was first there;
    `memory`: PSS in MB of its processes by kind, with `memory_at` rows written."""

    rows: tuple[Row, ...]
    seconds: float
    seen: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def steady(self, skip: int = 2) -> tuple[Row, Row]:
        """The rows between which the run is measured: start-up and the first results left out."""
        rows = self.rows
        if len(rows) < skip + 2:
            raise RunFailed(f"only {len(rows)} results; {skip + 2} are needed")
        return rows[skip - 1], rows[-1]

    def steps_per_s(self, skip: int = 2) -> float:
        first, last = self.steady(skip)
        return (last.steps - first.steps) / (last.at - first.at)

    def cpu_ms_per_1000_steps(self, skip: int = 2) -> float:
        first, last = self.steady(skip)
        return 1e6 * (last.cpu - first.cpu) / (last.steps - first.steps)

    def gaps(self) -> list[float]:
        """Seconds between each result and the next."""
        return [b.at - a.at for a, b in zip(self.rows, self.rows[1:], strict=False)]


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory for one run, removed at its end. Its path is short: Ray puts sockets below it."""
    place = Path(tempfile.mkdtemp(prefix="rb-", dir=os.environ.get("BENCH_DIR")))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def write_config(place: Path, settings: Mapping[str, Any]) -> Path:
    """`settings` in the shape of raytrain's YAML, as a file, with its results beside it."""
    path = place / "config.yaml"
    path.write_text(yaml.safe_dump({"storage_path": str(place / "results"), **settings}))
    return path


def raytrain_command(config: Path) -> list[str]:
    return [sys.executable, "-m", "raytrain", "train", str(config)]


def program(name: str, config: Path, *arguments: str) -> list[str]:
    """One of `programs.py`."""
    return [sys.executable, str(HERE / "programs.py"), name, str(config), *arguments]


def watch(
    command: Sequence[str],
    place: Path,
    *,
    core: int | None = None,
    memory_at: int | None = None,
    phases: bool = False,
    timeout_s: float = 1800.0,
    gpu: bool = False,
) -> Watched:
    """Run a command to its end. `core`: all its processes stay on this core; `memory_at`: measure
    memory once so many results are there; `phases`: also note when kinds of processes appear;
    `gpu`: it sees the machine's GPUs.

    Raises RunFailed.
    """
    log = place / "log.txt"
    with log.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            list(command) if core is None else pinned(command, core),
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(place, gpu=gpu),
            cwd=place,
        )
    tree = Tree(psutil.Process(process.pid))
    reader = RowReader(place)
    rows: list[Row] = []
    memory: dict[str, tuple[float, ...]] = {}
    try:
        while True:
            ended = process.poll() is not None
            now = time.perf_counter() - started
            if phases and not rows:
                tree.look(now)
            for values in reader.new(at_once=ended):
                rows.append(Row(now, tree.cpu(), values))
                if len(rows) == memory_at:
                    memory = tree.memory()
            if ended:
                break
            if now > timeout_s:
                raise RunFailed(f"still running after {timeout_s} s: {_tail(log)}")
            time.sleep(POLL_S)
    finally:
        if process.poll() is None:
            tree.kill()
            process.wait()
    if process.returncode != 0:
        raise RunFailed(f"exit code {process.returncode}: {' '.join(command)}\n{_tail(log)}")
    return Watched(tuple(rows), now, tree.seen, memory)


def environment(place: Path, *, gpu: bool = False) -> dict[str, str]:
    """No GPU unless it is asked for, one thread for arithmetic, temporary files in the
    run's directory; quiet."""
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    path = [str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        **dict.fromkeys(threads, "1"),
        **({} if gpu else {"CUDA_VISIBLE_DEVICES": ""}),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_DEDUP_LOGS": "0",
        "TMPDIR": str(place),
        "PYTHONPATH": os.pathsep.join(part for part in path if part),
        "PYTHONWARNINGS": "ignore",
    }


def pinned(command: Sequence[str], core: int) -> list[str]:
    """The command, kept on one core with all the processes that it starts."""
    program = (
        f"import os, sys; os.sched_setaffinity(0, {{{core}}}); os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-c", program, *command]


def last_core() -> int | None:
    """The core that runs are pinned to, or None where there is no pinning."""
    return max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


class RowReader:
    """New lines of the `result.json` below a directory whose rows tell of env steps."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._path: Path | None = None
        self._read = 0
        self._looked = 0.0

    def new(self, *, at_once: bool = False) -> list[dict[str, Any]]:
        """`at_once`: look for the file even if that was done a moment ago."""
        if self._path is None:
            now = time.perf_counter()
            if now - self._looked < 5 * POLL_S and not at_once:
                return []
            self._looked = now
            # Walks of a tree that others change may meet what is gone by then.
            with suppress(OSError):
                self._path = next(filter(_has_steps, self._candidates()), None)
        if self._path is None:
            return []
        with suppress(FileNotFoundError):
            if self._path.stat().st_size > self._read:
                with self._path.open("rb") as stream:
                    stream.seek(self._read)
                    text = stream.read()
                whole = text[: text.rfind(b"\n") + 1]
                self._read += len(whole)
                return [json.loads(line) for line in whole.splitlines()]
        return []

    def _candidates(self) -> Iterator[Path]:
        for folder, folders, files in os.walk(self._place):
            folders[:] = [name for name in folders if not name.startswith("checkpoint_")]
            if ROWS in files:
                yield Path(folder) / ROWS


def _has_steps(path: Path) -> bool:
    with path.open("rb") as stream:
        line = stream.readline()
    return line.endswith(b"\n") and f'"{STEPS}"'.encode() in line


class Tree:
    """The processes of a run, also those that have ended: CPU seconds, memory,
    when each appeared."""

    def __init__(self, root: psutil.Process) -> None:
        self._root = root
        self._cpu: dict[int, float] = {}
        self._looked = 0.0
        self.seen: dict[str, float] = {}

    def cpu(self) -> float:
        for process in self._processes():
            with suppress(*_GONE):
                times = process.cpu_times()
                self._cpu[process.pid] = times.user + times.system
        return sum(self._cpu.values())

    def look(self, now: float) -> None:
        if now - self._looked < 5 * POLL_S:
            return
        self._looked = now
        for process in self._processes():
            with suppress(*_GONE):
                self.seen.setdefault(kind(process), now)

    def memory(self) -> dict[str, tuple[float, ...]]:
        found: dict[str, list[float]] = {}
        for process in self._processes():
            with suppress(*_GONE):
                info = process.memory_full_info()
                size = getattr(info, "pss", info.rss)
                found.setdefault(kind(process), []).append(size / 2**20)
        return {name: tuple(sorted(sizes)) for name, sizes in found.items()}

    def kill(self) -> None:
        for process in [*self._processes(), self._root]:
            with suppress(*_GONE):
                process.kill()

    def _processes(self) -> list[psutil.Process]:
        with suppress(*_GONE):
            return [self._root, *self._root.children(recursive=True)]
        return []


def kind(process: psutil.Process) -> str:
    """`driver`, `trial`, `env runner`, `learner`, `idle worker`, `fork server` or `Ray` (its
    services)."""
    title = " ".join(process.cmdline()[:1])
    found = _TITLE.match(title)
    if found is None:
        name = process.name()
        if name in ("raylet", "gcs_server"):
            return "Ray"
        inner = " ".join(process.cmdline())
        if "raytrain._ray.forkserver --serve" in inner:
            return "fork server"
        if "default_worker.py" in inner:
            return "starting worker"
        return "Ray" if "/ray/" in inner and "raytrain" not in inner else "driver"
    name = found[1]
    kinds = {"Agent": "Ray", "Runner": "env runner", "Executable": "learner", "Learner": "learner"}
    for part, what in {**kinds, "PPO": "trial"}.items():
        if part in name:
            return what
    return "idle worker"


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]
