"""A schedule is what its seed says; a campaign strikes with all of it, and says what came before a
failure."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.fs as pafs
import pytest
from support.chaos.campaign import Campaign, Stage, kill
from support.chaos.damage import checkpoints, damage
from support.chaos.nodes import KINDS
from support.chaos.schedule import Fault, Schedule, regular, scattered
from support.chaos.trials import Trials, where
from support.checkpoint_children import put
from support.running import Run

from raytrain.checkpoint import Catalogue
from raytrain.storage import Location


def test_a_seed_is_a_schedule() -> None:
    schedule = scattered(5, KINDS, 14, 10, 80)
    assert schedule == scattered(5, KINDS, 14, 10, 80)
    assert schedule.faults != scattered(6, KINDS, 14, 10, 80).faults
    assert "schedule of seed 5" in str(schedule)
    for fault in schedule.faults:
        assert str(fault) in str(schedule)


def test_every_kind_strikes_in_order() -> None:
    for seed in range(20):
        faults = scattered(seed, KINDS, len(KINDS) + 3, 10, 80).faults
        assert {fault.kind for fault in faults} == set(KINDS)
        moments = [fault.moment for fault in faults]
        assert moments == sorted(moments) and moments[0] >= 10 and moments[-1] <= 80
    even = [fault.kind for fault in regular(0, "ab", [1, 2, 3, 4]).faults]
    assert sorted(even) == ["a", "a", "b", "b"]
    with pytest.raises(ValueError, match="2 faults cannot be of all 9 kinds"):
        scattered(0, KINDS, 2, 10, 80)


class Counting(Run):
    """A process that counts up in a file, and waits before the last number while there is
    a file `held`."""

    def __init__(self, place: Path, to: int) -> None:
        self.log = place / "count"
        program = (
            "import pathlib, sys, time\n"
            "path = pathlib.Path(sys.argv[1]); path.touch()\n"
            f"while (at := path.stat().st_size) < {to}:\n"
            f"    if at < {to} - 1 or not path.with_name('held').exists(): "
            f"path.open('a').write('x')\n"
            "    time.sleep(0.01)\n"
        )
        self.process = subprocess.Popen([sys.executable, "-c", program, str(self.log)])


class CountingStage(Stage):
    """Kills the only process there is."""

    def __init__(self, place: Path, to: int = 40, held: bool = True) -> None:
        self._place, self._to = place, to
        self.starts = 0
        if held:
            (place / "held").touch()

    def release(self) -> None:
        (self._place / "held").unlink()

    def start(self) -> Run:
        self.starts += 1
        return Counting(self._place, self._to)

    def reached(self) -> float:
        try:
            return (self._place / "count").stat().st_size
        except FileNotFoundError:
            return 0

    def tend(self) -> None:
        return

    def strike(self, fault: Fault) -> str | None:
        if fault.kind == "driver":
            return self.kill_driver()
        return kill(fault, [psutil.Process(self.run.process.pid)])


def campaign(stage: Stage, schedule: Schedule, told: list[str], patience_s: float = 60) -> Campaign:
    return Campaign(stage, schedule, patience_s=patience_s, pace_s=0.01, tell=told.append)


def test_a_campaign_strikes_with_every_fault_and_ends_well(tmp_path: Path) -> None:
    stage, told = CountingStage(tmp_path), list[str]()
    carried = campaign(stage, scattered(0, ["driver"], 3, 5, 30), told)
    carried.carry_out(stage.release)
    assert carried.counts() == Counter(driver=3)
    assert stage.starts == 4 and stage.reached() == 40
    assert "3. driver" in told[-1] and "the driver (pid" in told[-1]


def test_a_failure_says_which_faults_came_before(tmp_path: Path) -> None:
    stage = CountingStage(tmp_path)
    carried = campaign(stage, regular(9, ["driver", "trial"], [5, 20]), [])
    with pytest.raises(AssertionError) as caught:
        carried.carry_out()
    text = str(caught.value)
    assert "the command ended with code -9" in text
    assert "schedule of seed 9" in text
    struck = text.partition("what has struck:")[2]
    assert " trial " in struck and "(pid" in struck


def test_a_run_that_ends_before_its_faults_is_no_success(tmp_path: Path) -> None:
    carried = campaign(CountingStage(tmp_path, to=10, held=False), regular(0, ["driver"], [20]), [])
    with pytest.raises(AssertionError, match="ended with code 0 before"):
        carried.carry_out()


def test_a_wait_is_bounded(tmp_path: Path) -> None:
    stage = CountingStage(tmp_path, to=10**6)
    carried = campaign(stage, regular(0, ["driver"], [10**9]), [], patience_s=0.5)
    try:
        with pytest.raises(AssertionError, match="nothing more within"):
            carried.carry_out()
    finally:
        stage.run.process.kill()
        stage.run.process.wait()


@pytest.mark.parametrize("how", [number / 30 + 0.0001 for number in range(0, 30, 3)])
def test_damage_is_damage(tmp_path: Path, how: float) -> None:
    trial = tmp_path / "experiment" / "trial_00000"
    for iteration in (2, 4):
        put(Location.of(str(trial)), tmp_path / "scratch", iteration)
    put(Location.of(str(trial / "quarantine")), tmp_path / "scratch", 6)
    files = pafs.LocalFileSystem()
    assert list(checkpoints(files, str(trial))) == [2, 4]
    assert Trials(files, str(trial.parent)).committed() == 4
    damage(files, f"{trial}/checkpoint_000004", how)
    assert list(checkpoints(files, str(trial))) == [2, 4]
    problems = {e.path: e.problem for e in Catalogue(Location.of(str(trial))).entries(verify=True)}
    assert problems["checkpoint_000002"] is None
    assert problems["checkpoint_000004"] is not None


def test_a_process_is_found_by_its_lock() -> None:
    own = psutil.Process()
    number, namespace = where(own)
    assert number == os.getpid()
    assert namespace == os.readlink("/proc/self/ns/pid").removeprefix("pid:")
