"""A process that writes a trial's records or episodes, is killed at any moment, again and again,
and then gets to its end.

    python -m support.killed_writers (records | episodes) DIRECTORY COMMITTED KILLS

COMMITTED is a file with the last iteration that a checkpoint would know of: each attempt goes on
from there, and is killed after a random time. An attempt does a bounded piece of work and then
waits for its kill, so no machine is too fast; and the time adapts, so that kills hit the work on a
fast machine as on one that is busy. There are KILLS of them at least, and as many as it takes to
get one piece done."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from support.paths import TESTS

Work = Callable[[Path, Path, int], None]
PIECE = {"records": 200, "episodes": 80}
"""Iterations that an attempt does at most, and the last one more. TensorBoard's reader shows 10,000
steps of a curve."""


def killed_often(what: str, directory: Path, kills: int) -> int:
    """Write in a process of its own; the last iteration that was written."""
    committed = directory.with_suffix(".committed")
    committed.write_text("0")
    program = [sys.executable, "-m", "support.killed_writers"]
    arguments = [what, str(directory), str(committed), str(kills)]
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    subprocess.run([*program, *arguments], env={**os.environ, "PYTHONPATH": path}, check=True)
    return int(committed.read_text())


def commit(committed: Path, iteration: int) -> None:
    temporary = committed.with_suffix(".tmp")
    temporary.write_text(str(iteration))
    temporary.replace(committed)


def records(directory: Path, committed: Path, stop: int) -> None:
    from raytrain.records import TrialRecords
    from support.record_files import row

    done = int(committed.read_text())
    written = TrialRecords(directory, done)
    assert written.warnings == [], written.warnings
    for iteration in range(done + 1, stop + 1):
        written.append(row(iteration))
        if iteration % 5 == 0:
            written.flush()
            commit(committed, iteration)


def episodes(directory: Path, committed: Path, stop: int) -> None:
    from raytrain.records import EpisodeHistory
    from support.record_files import append_episodes

    done = int(committed.read_text())
    history = EpisodeHistory(directory, done)
    assert history.warnings == []
    for iteration in range(done + 1, stop + 1):
        append_episodes(history, iteration)
        history.flush(iteration)
        if iteration % 5 == 0:
            commit(committed, iteration)


def kill_and_finish(what: str, directory: Path, committed: Path, kills: int) -> None:
    work: Work = {"records": records, "episodes": episodes}[what]
    work(directory.with_name("imports"), committed, 0)  # Each attempt is a fork that has them.
    chance, longest = random.Random(0), 0.05
    while kills > 0 or int(committed.read_text()) < PIECE[what]:
        kills -= 1
        before = int(committed.read_text())
        child = os.fork()
        if not child:
            work(directory, committed, before + PIECE[what])
            signal.pause()
        time.sleep(chance.uniform(0, longest))  # The moment of the kill is the point.
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the attempt failed"
        done = int(committed.read_text()) - before
        longest *= 0.5 if done == PIECE[what] else 1.0 if done else 1.5
    work(directory, committed, int(committed.read_text()) + PIECE[what])


if __name__ == "__main__":
    kill_and_finish(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
