"""What the launcher starts in place of `raytrain`, so that a run begins within a second: a process
that locks the run's directory, writes what training would (`FakeRun`), and saves at SIGTERM.

    fake_training.PROGRAM        patched into the launcher
    STORAGE/NAME.go              while this file is there, the run trains to its end
    STORAGE/starts               a line for each process that has trained: `NAME PID`
    STORAGE/signals              a line for each SIGTERM
"""

from __future__ import annotations

import argparse
import pickle
import signal
import sys
import time
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from raytrain.storage import DirectoryLock, Location, Locked
from support.experiments import FakeRun

PROGRAM = (sys.executable, __file__)
_STATE = ".fake.pickle"


def note(storage: Path, name: str, line: str) -> None:
    with (storage / name).open("a") as file:
        file.write(line + "\n")


def run_of(arguments: argparse.Namespace) -> FakeRun:
    """The run that a command means, as it is on storage."""
    if arguments.verb == "fork":
        before, _, name = arguments.target.rpartition(":")
        path = Path(before or name)
        parent = path if (path / _STATE).exists() else path.parent.parent
        old: FakeRun = pickle.loads((parent / _STATE).read_bytes())
        return old.fork(arguments.name, name if before else path.name)
    place = Path(arguments.target)
    if arguments.verb == "train":
        place = Path(arguments.storage_path, arguments.name)
    if (place / _STATE).exists():
        again: FakeRun = pickle.loads((place / _STATE).read_bytes())
        return again
    return FakeRun(place.parent, place.name, stop=8)


def train(run: FakeRun) -> int:
    storage, stopped = run.place.parent, False

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        note(storage, "signals", run.name)
        if stopped:
            sys.exit(137)
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    with DirectoryLock(Location.of(run.place)):
        note(storage, "starts", f"{run.name} {id(run)}")
        run.start()
        while not stopped and run.trials[0].iteration < run.stop:
            if run.trials[0].iteration < 4 or (storage / f"{run.name}.go").exists():
                run.train(1)
                print(f"iteration {run.trials[0].iteration}", flush=True)
            time.sleep(0.02)
        if stopped:
            time.sleep(0.2)  # Saving takes a moment, in which further signals may come.
            run.interrupt()
        (run.place / _STATE).write_bytes(pickle.dumps(run))
    return 143 if stopped else 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb")
    parser.add_argument("target")
    parser.add_argument("--set", action="append")
    for option in ("--name", "--storage-path", "--from", "--from-stage"):
        parser.add_argument(option)
    for option in ("--fresh", "--weights-only"):
        parser.add_argument(option, action="store_true")
    arguments = parser.parse_args()
    if arguments.verb == "train":
        values = yaml.safe_load(Path(arguments.target).read_text())
        if values["environment"]["env"] == "missing:make":
            where = f"{arguments.target}:2: environment.env"
            print(f'warning: beside\nerror: {where}: "missing:make": no module', file=sys.stderr)
            return 2
    run = run_of(arguments)
    if run.trials[0].iteration >= run.stop:
        print("finished already")
        return 0
    try:
        return train(run)
    except Locked as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
