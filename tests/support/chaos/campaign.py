"""Carries a schedule out against an experiment, and brings the experiment to its end.

    each fault: wait for its moment -> wait for a victim -> strike -> note what was struck

The command is given again when a fault has killed the driver, and never else: that it ends by
itself before its work is done is an error. Every wait is bounded. What goes wrong is told with the
schedule, its seed, and all faults that had struck by then, the last one last."""

from __future__ import annotations

import signal
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence

import psutil

from support.chaos.schedule import Fault, Schedule
from support.running import Run

PROCESSES = {
    "trial": "ray::TrialPPO",
    "learner": "ray::_WrappedExecutable",
    "env runner": "ray::EnvRunnerActor",
}
"""The titles of the processes of a trial, by the kind of fault that kills one."""


class Stage(ABC):
    """Where an experiment trains, and what can be done to it there."""

    run: Run

    @abstractmethod
    def start(self) -> Run:
        """Give the command, which is the same every time."""

    @abstractmethod
    def reached(self) -> float:
        """How far the run is, in the schedule's measure. Cheap enough to be asked all the time."""

    @abstractmethod
    def strike(self, fault: Fault) -> str | None:
        """Do it. Returns what was struck; None while there is nobody to strike."""

    @abstractmethod
    def tend(self) -> None:
        """What has to be done between faults: outages end, nodes are replaced."""

    def kill_driver(self) -> str:
        pid = self.run.process.pid
        self.run.signal(signal.SIGKILL)
        return f"the driver (pid {pid})"


class Campaign:
    """`Campaign(stage, schedule, patience_s=600).carry_out()`. `struck`: what each
    fault has struck."""

    def __init__(
        self,
        stage: Stage,
        schedule: Schedule,
        *,
        patience_s: float,
        pace_s: float = 0.2,
        tell: Callable[[str], None] = print,
    ) -> None:
        self._stage = stage
        self._schedule = schedule
        self._patience_s = patience_s
        self._pace_s = pace_s
        self._tell = tell
        self._began = time.monotonic()
        self.struck: list[tuple[Fault, str]] = []

    def carry_out(self, release: Callable[[], None] = lambda: None) -> None:
        """Start, strike with all faults, and return when the command has ended well. `release` lets
        a run go on that waits for the last fault shortly before its end."""
        self.start()
        for fault in self._schedule.faults:
            self.strike(fault)
        release()
        self.until(self._finished, "after the last fault")

    def start(self) -> None:
        self._tell(str(self._schedule))
        self._stage.run = self._stage.start()

    def strike(self, fault: Fault) -> None:
        """Strike with a fault when its moment has come and there is a victim."""
        self.until(lambda: self._stage.reached() >= fault.moment, f"before {fault}")
        self.until(lambda: self._strike(fault), f"with nobody to strike for {fault}")

    def until(self, condition: Callable[[], bool], when: str) -> None:
        """Wait for a condition; the run goes on meanwhile. `when` tells the point
        that was reached."""
        deadline = time.monotonic() + self._patience_s
        while not condition():
            self._stage.tend()
            code = self._stage.run.process.poll()
            if code is not None and not condition():
                self._fail(f"the command ended with code {code} {when}")
            if time.monotonic() > deadline:
                self._fail(f"nothing more within {self._patience_s:.0f} s {when}")
            time.sleep(self._pace_s)

    def counts(self) -> Counter[str]:
        return Counter(fault.kind for fault, _ in self.struck)

    def history(self) -> str:
        """The schedule, and what has struck."""
        told = [f"{fault}: {what}" for fault, what in self.struck]
        return "\n".join([str(self._schedule), "what has struck:", *(told or ["nothing"])])

    # -- inside ----------------------------------------------------------------------------------

    def _strike(self, fault: Fault) -> bool:
        what = self._stage.strike(fault)
        if what is None:
            return False
        what += f", {time.monotonic() - self._began:.0f} s after the start"
        self.struck.append((fault, what))
        self._tell(f"{fault}: {what}")
        if fault.kind == "driver":
            self._stage.run.process.wait(self._patience_s)
            self._stage.run = self._stage.start()
        return True

    def _finished(self) -> bool:
        return self._stage.run.process.poll() == 0

    def _fail(self, what: str) -> None:
        log = self._stage.run.output()[-20_000:]
        raise AssertionError(f"{what}\n{self.history()}\nthe end of its log:\n{log}")


def kill(fault: Fault, victims: Sequence[psutil.Process], where: str = "") -> str | None:
    """SIGKILL to one of the processes. Returns what it was."""
    if not victims:
        return None
    victim = fault.choose(sorted(victims, key=lambda process: process.pid))
    try:
        title = " ".join(victim.cmdline()[:1]) or victim.name()
        victim.kill()
    except psutil.NoSuchProcess:
        return None  # It has died of itself, or of an earlier fault.
    return f"{title} (pid {victim.pid}){where}"
