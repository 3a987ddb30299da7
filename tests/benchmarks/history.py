"""What a long history costs `raytrain serve`: 1,000 experiments of every kind on a disk.

The scan is a whole look at the storage when nothing has changed, which the server takes again and
again; its CPU time is that of the process. The page is that of all runs, painted by chromium."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from measuring import Options, Table, spread
from runs import scratch

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.browser import Browser, chromium, why_not
from support.experiments import many
from support.serving import serving

from raytrain.server.history.database import History
from raytrain.server.history.scanner import Scanner

ROUNDS = 5
COUNT = 1000
_PAINT = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def measure(options: Options) -> list[Table]:
    rounds = options.rounds_or(ROUNDS)
    with scratch() as place:
        storage = place / "results"
        many(storage, 16 if options.quick else COUNT)
        scans = _scans(place, storage, rounds)
        answers, paints = _pages(place, rounds)
    rows: list[dict[str, Any]] = [
        {"of 1,000 experiments": "first scan, CPU", "seconds": spread(scans[:1]), "target": "-"},
        {
            "of 1,000 experiments": "scan without a change, CPU",
            "seconds": spread(scans[1:]),
            "target": 1,
        },
        {"of 1,000 experiments": "answer to GET /", "seconds": spread(answers, 3), "target": "-"},
    ]
    notes: tuple[str, ...] = ()
    if paints:
        rows.append(
            {"of 1,000 experiments": "first paint of Runs", "seconds": spread(paints), "target": 1}
        )
    else:
        notes = (f"Nothing was painted: {why_not()}.",)
    return [Table("The history of many runs", tuple(rows), notes)]


def _scans(place: Path, storage: Path, rounds: int) -> list[float]:
    history = History.open(f"sqlite:///{place / 'scanned.db'}")
    scanner = Scanner(history, [str(storage)])
    return [_cpu(scanner) for _ in range(1 + rounds)]


def _cpu(scanner: Scanner) -> float:
    began = time.process_time()
    scanner.scan()
    return time.process_time() - began


def _pages(place: Path, rounds: int) -> tuple[list[float], list[float]]:
    with serving(place) as site:
        site.scan()
        answers = [_answer(site) for _ in range(rounds)]
        if why_not() is not None:
            return answers, []
        with chromium() as browser:
            return answers, [_paint(browser, site) for _ in range(rounds)]


def _answer(site: Any) -> float:
    began = time.perf_counter()
    assert site.get("/").status == 200
    return time.perf_counter() - began


def _paint(browser: Browser, site: Any) -> float:
    browser.enter(site)
    painted: float = browser.until(lambda: browser.script(_PAINT))
    return painted / 1000
