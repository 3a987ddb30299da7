"""An experiment on this machine: its processes are killed, those of its own Ray among them, and the
checkpoints on its disk are damaged."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.fs as pafs

from support.chaos.campaign import PROCESSES, Stage, kill
from support.chaos.schedule import Fault
from support.chaos.trials import Trials
from support.running import Run, experiment_of, iteration_of

KINDS = (*PROCESSES, "driver", "raylet", "files")


class LocalStage(Stage):
    """`raytrain train CONFIG`."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self._experiment = experiment_of(config)
        self.trials = Trials(pafs.LocalFileSystem(), str(self._experiment))

    def start(self) -> Run:
        return Run("train", str(self._config), log=self._config.parent / "log.txt")

    def reached(self) -> float:
        return sum(iteration_of(Path(path)) for path in self.trials.paths())

    def tend(self) -> None:
        return  # Nothing comes back of itself here.

    def strike(self, fault: Fault) -> str | None:
        if fault.kind == "driver":
            return self.kill_driver()
        if fault.kind == "files":
            return self.trials.strike(fault, self._processes(PROCESSES["trial"]))
        return kill(fault, self._processes(PROCESSES.get(fault.kind, fault.kind)))

    def _processes(self, title: str) -> list[psutil.Process]:
        found = []
        for pid in self.run.pids(title):
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found
