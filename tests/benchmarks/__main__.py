"""Benchmarks: `python tests/benchmarks [TABLE]... [--rounds N] [--quick]`.

    throughput    steps/s of raytrain, stock RLlib and Stable-Baselines3 on one core
    share         how much of an iteration is neither env stepping nor matrix arithmetic
    scaling       more env runners, more learners, and what each costs in memory
    checkpoint    seconds that training waits for a checkpoint
    startup       seconds from the command to the first result
    goodput       useful work while something dies once a minute, on a cluster; needs root
    recovery      seconds from a fault to the next new result; needs root, only when named
    gpu           updates and whole runs with the learner on a GPU; needs one, so only when named
    spaces        steps/s by observation space; only when named
    serving       what a server with open pages costs a run; only when named
    history       what 1,000 experiments cost a server; only when named
    masks         action masks against MaskablePPO of sb3-contrib; only when named
    learning      the same returns as stock RLlib; hours, and so only when named
    docs          nothing is measured: tables of the JSON file go into docs/develop/benchmarks.md

Without a name, the first six. Tables are printed and written to build/benchmarks.json.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import signal
import sys
import time
from pathlib import Path

import report
from measuring import Options, say

ROOT = Path(__file__).parents[2]
TABLES = ("throughput", "share", "scaling", "checkpoint", "startup", "goodput")
ON_REQUEST = ("recovery", "gpu", "spaces", "masks", "serving", "history", "learning")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python tests/benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = (*TABLES, *ON_REQUEST, "docs")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(names))
    parser.add_argument("--rounds", type=int, help="rounds (learning: seeds) instead of the usual")
    parser.add_argument("--quick", action="store_true", help="shortest runs, to see that it works")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, for learning only")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks.json")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "develop" / "benchmarks.md")
    given = parser.parse_args()
    # So that a run's processes are ended with this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    unknown = sorted(set(given.tables) - set(names))
    if unknown:
        parser.error(f"no such table: {', '.join(unknown)} (there are {', '.join(names)})")
    options = Options(given.rounds, given.quick, given.jobs)
    for name in [each for each in given.tables if each != "docs"] or TABLES * (not given.tables):
        table(name, options, given.out)
    if "docs" in given.tables:
        written = report.write_docs(given.docs, report.read(given.out))
        say(f"{', '.join(written) or 'nothing'} written to {given.docs}")


def table(name: str, options: Options, out: Path) -> None:
    module = importlib.import_module(name)
    started = time.perf_counter()
    tables = module.measure(options)
    rounds = options.rounds_or(module.ROUNDS)
    command = shlex.join(["python", "tests/benchmarks", name, *_arguments(options)])
    report.show(tables)
    found = report.entry(tables, command=command, rounds=rounds, quick=options.quick)
    report.store(out, name, found)
    say(f"{name}: {time.perf_counter() - started:.0f} s, written to {out}")


def _arguments(options: Options) -> list[str]:
    rounds = [] if options.rounds is None else ["--rounds", str(options.rounds)]
    return rounds + ["--quick"] * options.quick


if __name__ == "__main__":
    main()
