"""What a stage knows of its trials from storage alone, and the fault that damages a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import psutil
import pyarrow.fs as pafs

from support.chaos.campaign import kill
from support.chaos.damage import checkpoints, damage, read_json
from support.chaos.schedule import Fault


class Trials:
    """The trials of the experiment at `path` of a file system."""

    def __init__(self, files: pafs.FileSystem, path: str) -> None:
        self._files = files
        self._path = path
        self.damaged: list[str] = []

    def paths(self) -> list[str]:
        found = self._files.get_file_info(pafs.FileSelector(self._path, allow_not_found=True))
        return sorted(info.path for info in found if info.base_name.startswith("trial_"))

    def committed(self) -> int:
        """Iterations of all trials together that have a checkpoint."""
        return sum(max(checkpoints(self._files, path), default=0) for path in self.paths())

    def strike(self, fault: Fault, processes: Sequence[psutil.Process]) -> str | None:
        """Kill a trial that has an older checkpoint to fall back to, and damage its newest one
        before it is started again."""
        home = {where(process): process for process in processes}
        at_risk = [
            (path, home[holder])
            for path in self.paths()
            if len(checkpoints(self._files, path)) >= 2 and (holder := self._holder(path)) in home
        ]
        if not at_risk:
            return None
        path, process = fault.choose(at_risk)
        killed = kill(fault, [process])
        if killed is None:
            return None
        *_, name = checkpoints(self._files, path).values()
        newest = f"{path}/{name}"
        done = damage(self._files, newest, fault.how)
        self.damaged.append(newest)
        return f"{killed}, and {done}"

    def unnoticed(self) -> list[str]:
        """Damaged checkpoints that are not in quarantine."""
        return [path for path in self.damaged if not self._in_quarantine(path)]

    def _in_quarantine(self, checkpoint: str) -> bool:
        trial, _, name = checkpoint.rpartition("/")
        aside = pafs.FileSelector(f"{trial}/quarantine", allow_not_found=True)
        return any(info.base_name.startswith(name) for info in self._files.get_file_info(aside))

    def _holder(self, trial: str) -> tuple[int, str]:
        """Process id and pid namespace of the process that holds the trial's lock."""
        lock = read_json(self._files, f"{trial}/.raytrain.lock")
        return int(lock.get("pid", 0)), str(lock.get("host", "")).rpartition(" ")[2]


def where(process: psutil.Process) -> tuple[int, str]:
    """A process's id in its own pid namespace, and that namespace."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        namespace = os.readlink(f"/proc/{process.pid}/ns/pid").removeprefix("pid:")
    except (FileNotFoundError, ProcessLookupError):
        return 0, ""
    (line,) = [line for line in status.splitlines() if line.startswith("NSpid:")]
    return int(line.split()[-1]), namespace
