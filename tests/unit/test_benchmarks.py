"""The benchmarks' own arithmetic, their tables, and one small program watched as
they watch runs."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import checkpoint
import measuring
import pytest
import report
import runs
import settings
import share
import slow_store
import throughput
from support.paths import ROOT, TESTS

from raytrain.config import config_from_dict

BENCHMARKS = TESTS / "benchmarks"
TABLES = ("throughput", "share", "scaling", "checkpoint", "startup", "goodput")

# Four results of 100 steps, and a file of the same name that holds no results.
PROGRAM = """
import json, pathlib, time
place = pathlib.Path(__file__).parent
(place / "other").mkdir()
(place / "other" / "result.json").write_text('{"something": "else"}\\n')
with (place / "result.json").open("a") as out:
    for number in range(1, 5):
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        out.write(json.dumps({"num_env_steps_sampled_lifetime": 100 * number}) + "\\n")
        out.flush()
"""


def test_ratios_are_taken_within_a_round() -> None:
    own, other = [10.0, 1.0, 30.0], [5.0, 1.0, 3.0]
    assert measuring.ratios(own, other) == [2.0, 1.0, 10.0]
    # The ratio of the medians would be 3.33.
    assert measuring.median_of_ratios(own, other) == 2.0
    assert measuring.spread([2.0, 1.0, 10.0], 1) == "2.0 (1.0-10.0)"


def test_rounds_interleave() -> None:
    order: list[str] = []

    def note(name: str) -> int:
        order.append(name)
        return len(order)

    found = measuring.interleave({name: partial(note, name) for name in "AB"}, 2, "order")
    assert order == ["A", "B", "A", "B"]
    assert found == {"A": [1, 3], "B": [2, 4]}


def test_wait_for_a_checkpoint_is_what_a_cycle_takes_beyond_its_iterations() -> None:
    # Results 1 to 16, a save after each fifth: it takes 3 s, and slows the iteration after it by 1.
    quiet = [1.0] * 4
    cycle = [4.0, 2.0, 1.0, 1.0, 1.0]
    assert checkpoint.longer([*quiet, *cycle, *cycle, 4.0]) == [4.0, 4.0]


def test_a_run_is_watched_from_outside(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    found = runs.watch([sys.executable, str(tmp_path / "program.py")], tmp_path)
    assert [row.steps for row in found.rows] == [100, 200, 300, 400]
    assert [row.at for row in found.rows] == sorted(row.at for row in found.rows)
    first, last = found.steady(skip=2)
    assert (first.steps, last.steps) == (200, 400)


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(runs.RunFailed, match="no such thing"):
        runs.watch([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path)


def test_share_of_everything_else() -> None:
    def watched(rows: list[dict[str, float]]) -> runs.Watched:
        return runs.Watched(
            tuple(runs.Row(at=i, cpu=i / 2, values=row) for i, row in enumerate(rows)), 0
        )

    name = runs.STEPS
    trained = watched([{name: 2048 * i} for i in range(4)])  # 1 s and 0.5 CPU s an iteration
    parts = {"env_s": 0.3, "matmul_s": 0.5, "env_cpu_s": 0.1, "matmul_cpu_s": 0.2}
    bare = watched([{name: 2048, **parts}] * 3)
    row = share.share_row([trained], [bare], warm=2)
    assert (row["iteration ms"], row["everything else"]) == (1000, "20 %")
    assert row["in CPU time"] == "40 %"


def test_tables_are_kept_beside_each_other_and_written_into_the_docs(tmp_path: Path) -> None:
    store, docs = tmp_path / "benchmarks.json", tmp_path / "benchmarks.md"
    docs.write_text((ROOT / "docs" / "develop" / "benchmarks.md").read_text())
    names = (*TABLES, "recovery", "learning")
    for name in names:
        table = measuring.Table(name.upper(), ({"steps/s": 12345, "target": 1.5}, {"steps/s": 1}))
        found = report.entry([table], command=f"run {name}", rounds=3, quick=False)
        report.store(store, name, found)
    for _ in range(2):  # Writing again replaces, it does not add.
        assert report.write_docs(docs, report.read(store)) == list(names)
    text = docs.read_text()
    for name in names:
        assert text.count(f"**{name.upper()}**") == 1
        assert text.count(f"`run {name}`") == 1
    assert text.count("| 12,345 | 1.5 |\n| 1 |  |\n") == len(names)
    with pytest.raises(ValueError, match="no place"):
        report.write_docs(docs, {"unknown": report.read(store)["scaling"]})


def test_every_setting_is_a_valid_config() -> None:
    for case in throughput.cases(quick=False):
        config_from_dict(case.config)
    config_from_dict(checkpoint.config(200, 1024, 4, cycles=1))


def test_the_slow_store_counts_a_request_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    files = slow_store.SlowFileSystem()
    with files.open(str(tmp_path / "a"), "wb") as stream:
        stream.write(b"x")
    assert slept == [slow_store.LATENCY_S]
    assert [Path(path).name for path in files.find(str(tmp_path))] == ["a"]
    assert len(slept) == 2


def test_programs_measure_arithmetic(tmp_path: Path) -> None:
    path = runs.write_config(tmp_path, settings.ppo("CartPole-v1", batch=64, iterations=2))
    found = runs.watch(runs.program("arithmetic", path), tmp_path)
    assert len(found.rows) == 2
    assert all(row.values["env_s"] > 0 and row.values["matmul_s"] > 0 for row in found.rows)


def test_help_names_every_table() -> None:
    command = [sys.executable, str(BENCHMARKS), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in (*TABLES, "recovery", "learning", "docs"):
        assert f"    {name} " in shown


@pytest.mark.skipif(runs.last_core() is None, reason="this system cannot pin processes")
def test_a_pinned_run_stays_on_one_core(tmp_path: Path) -> None:
    core = runs.last_core()
    program = "import os, pathlib; pathlib.Path('cores').write_text(str(os.sched_getaffinity(0)))"
    runs.watch([sys.executable, "-c", program], tmp_path, core=core)
    assert (tmp_path / "cores").read_text() == str({core})
