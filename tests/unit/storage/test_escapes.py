"""Names of files and values from storage are shown, and command no terminal, no markup
and no mathematics."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import gymnasium as gym
import pytest
from rich.console import Console
from support.checkpoint_children import manifest, put, stage
from support.commands import here

from raytrain.checkpoint import Catalogue, Parent, resolve
from raytrain.checkpoint.commit import commit
from raytrain.checkpoint.experiment_file import ExperimentFile
from raytrain.cli.app import say
from raytrain.cli.tables import table
from raytrain.cluster.restart_counts import RestartCounts
from raytrain.driver.console import ConsoleReporter, StopTotals
from raytrain.errors import RaytrainError
from raytrain.policy.model_card import model_card
from raytrain.records.writer import TrialRecords
from raytrain.storage import Location, who_writes
from raytrain.storage.escapes import printable
from raytrain.storage.lock import LOCK_NAME
from raytrain.storage.retry import Retries

CLEAR = "\x1b[2J"
NASTY = f"{CLEAR}\x07\r\nall: good [/y] :warning: \\$\\foo$ $\\foo$ \u202e \x9b2J \udcff"
SHOWN = printable(NASTY)
MOMENT = "2026-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("checkpoint_000001: é 漢 🙂", "checkpoint_000001: é 漢 🙂"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\x7f\x9b\x00", "\\x7f\\x9b\\x00"),
        ("\u202e\u2066\u2028", "\\u202e\\u2066\\u2028"),
        (os.fsdecode(b"x\xff"), "x\\udcff"),
    ],
)
def test_what_is_not_for_reading_is_written_as_in_a_string(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_several_lines_stay_lines() -> None:
    assert printable("a\n\tb\r\x1b", lines=True) == "a\n\tb\\r\\x1b"


def nothing_else(text: str) -> None:
    """Only lines of what can be read, and none that storage made up."""
    wrong = {each for each in text if not each.isprintable()} - {"\n"}
    assert not wrong, text
    assert not [line for line in text.splitlines() if line.startswith("all: good")], text


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Every name and every text in it is nasty. A file's name has no slash."""
    name = NASTY.replace("/", "")
    experiment = tmp_path / "results" / "exp"
    trial = experiment / f"trial_00000{name}"
    place = Location.of(trial)
    changes = {
        "experiment": NASTY,
        "trial_id": NASTY,
        "run_id": NASTY,
        "stage": NASTY,
        "snapshot_strategy": NASTY,
        "versions": {NASTY: NASTY},
        "parent": Parent(NASTY, NASTY, NASTY, "0" * 64),
    }
    for iteration in (1, 2):
        put(place, tmp_path, iteration, **changes)
    commit(stage(tmp_path / "easy"), place / "stages" / name, manifest(1, kind="stage", **changes))
    (trial / "checkpoint_000001" / name).touch()
    (trial / "checkpoint_000001" / "x[").mkdir()
    (trial / "checkpoint_000001" / "x[" / "y].bin").touch()
    row = {
        "training_iteration": 3,
        "num_env_steps_sampled_lifetime": 12,
        "env_runners": {"episode_return_mean": 1.0},
        NASTY: 1.0,
    }
    (trial / "result.json").write_text(json.dumps(row) + "\n")
    event = {"time": 1.0, "attempt": 1, "iteration": 3, "kind": "recovered", "message": NASTY}
    (trial / "events.jsonl").write_text(json.dumps(event) + "\n")
    RestartCounts(place).ended(NASTY)
    parent = {"experiment": NASTY, "trial": NASTY, "checkpoint": NASTY, "weights_sha256": NASTY}
    ExperimentFile(
        name="exp",
        run_id=NASTY,
        config={"environment": {"env": "CartPole-v1"}, "stop": {"iterations": 9}},
        config_digest=NASTY,
        snapshot={},
        versions={},
        first_start=MOMENT,
        parent=parent,
        fork={"ancestors": [parent]},
    ).write(Location.of(experiment))
    return experiment


@pytest.mark.parametrize(
    "command",
    [
        ("show", "."),
        ("list", ".."),
        ("checkpoints", "."),
        ("verify", "."),
        ("verify", "trial_*"),
        ("inspect", "."),
        ("inspect", "trial_*/checkpoint_000001"),
        ("inspect", "trial_*:final"),
        ("prune", ".", "--keep", "1"),
        ("plot", ".", "--metric", "no such one"),
    ],
)
def test_no_command_prints_what_a_terminal_obeys(
    experiment: Path, command: tuple[str, ...]
) -> None:
    (trial,) = experiment.glob("trial_*")
    path = os.path.normpath(experiment / command[1].replace("trial_*", trial.name))
    ended = here(command[0], path, *command[2:])
    assert ended.code in (0, 1, 2)
    nothing_else(ended.out)
    nothing_else(ended.err)
    if command[0] == "verify":
        assert "x[/y].bin" in ended.out and ":warning:" in ended.out
    if command[0] in ("show", "checkpoints", "verify", "inspect"):
        assert "\\x1b[2J" in ended.out + ended.err


def test_a_problem_is_one_line_of_what_can_be_read(experiment: Path) -> None:
    (trial,) = experiment.glob("trial_*")
    problem = Catalogue(Location.of(trial)).entries()[0].problem
    assert problem is not None and problem.isprintable()


def test_whoever_writes_is_told_in_one_line(tmp_path: Path) -> None:
    place = Location.of(f"memory://{tmp_path.name}/run")
    lock = {"token": "t", "pid": 1, "host": NASTY, "started": MOMENT, "renewed": time.time()}
    (place / LOCK_NAME).write_bytes(json.dumps(lock).encode())
    said = who_writes(place)
    assert said is not None and said.isprintable() and SHOWN in said


def test_json_holds_the_names_as_they_are(experiment: Path) -> None:
    (trial,) = experiment.glob("trial_*")
    ended = here("show", experiment, "--json")
    nothing_else(ended.out)
    assert ended.document["trials"][0]["trial"] == trial.name


def test_a_terminal_that_lacks_a_character_gets_its_number(tmp_path: Path) -> None:
    put(Location.of(tmp_path / "trial"), tmp_path, 1)
    (tmp_path / "trial" / "checkpoint_000001" / "漢").touch()
    ended = subprocess.run(
        [sys.executable, "-m", "raytrain", "verify", str(tmp_path / "trial")],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (1, b"")
    assert b"DAMAGED: \\u6f22: not listed" in ended.stdout


def test_an_error_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"error: {RaytrainError(NASTY)}\nsecond line")
    said = capsys.readouterr().err
    nothing_else(said.replace("\nall: good", ""))
    assert "[/y] :warning:" in said and said.endswith("\nsecond line\n")


def test_a_cell_is_text() -> None:
    text = table(("a", "b"), [("[bold]x[/y]", ":warning:"), (NASTY, "")])
    nothing_else(text)
    assert "[bold]x[/y]" in text and ":warning:" in text and len(text.splitlines()) == 3


@pytest.mark.parametrize("terminal", [False, True])
def test_the_console_of_a_run_obeys_nobody(terminal: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=400, color_system=None)
    reporter = ConsoleReporter(console, clock=lambda: 1.0)
    reporter.started(f"t{NASTY}", stop=StopTotals(timesteps=100.0), survived=NASTY)
    reporter.result(f"t{NASTY}", {"training_iteration": 1, "stage": NASTY})
    reporter.event(f"t{NASTY}", "info", f"Cleared away: {NASTY}")
    reporter.failed(f"t{NASTY}", NASTY, will_retry=True)
    reporter.finished(NASTY)
    assert CLEAR not in file.getvalue() and "\x9b" not in file.getvalue()
    assert "\x07" not in file.getvalue() and "\u202e" not in file.getvalue()
    assert "\\x1b[2J" in file.getvalue()
    if not terminal:
        nothing_else(file.getvalue().replace("\nall: good", ""))


def test_a_model_card_has_the_lines_that_it_should(experiment: Path, tmp_path: Path) -> None:
    entry = resolve(str(experiment))
    parts: Any = SimpleNamespace(
        env=NASTY,
        env_config={},
        observation_space=gym.spaces.Dict({NASTY: gym.spaces.Discrete(2)}),
        action_space=gym.spaces.Discrete(2),
        preprocessing=(),
        action_mask=NASTY,
        network=[{"layer": NASTY}],
        module_class=NASTY,
        module_state={},
        normalize_actions=False,
        clip_actions=False,
    )
    card = model_card(entry, parts, ExperimentFile.read(Location.of(experiment)), NASTY, tmp_path)
    nothing_else(card.replace("\nall: good", "", 1))  # `needs_ray` is no text from storage.
    assert card.encode()
    assert f"| run | {SHOWN} |" in card


def test_a_plot_has_the_names_as_text(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(__import__("matplotlib").rcParams, "svg.fonttype", "none")
    out = tmp_path / "x.svg"
    ended = here("plot", experiment, "--metric", NASTY, "--out", out)
    assert ended.code == 0, ended.err
    drawn = "".join(ElementTree.parse(out).getroot().itertext())
    assert drawn.count(SHOWN.replace("/", "")) >= 2, "the legend and the stage"
    assert SHOWN in drawn, "the axis"


def test_what_is_logged_is_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def away() -> None:
        raise ConnectionError(NASTY.partition("\r\n")[0])

    with caplog.at_level(logging.WARNING), pytest.raises(ConnectionError):
        Retries(lambda: now[0], sleep, lambda: 0.5).call(away, NASTY)
    place = tmp_path / NASTY.replace("/", "")
    records = TrialRecords(place)
    records._warn(f"records cannot be written in {place}")
    assert len(caplog.records) == 2
    for record in caplog.records:
        assert record.getMessage().isprintable() and "\\x1b[2J" in record.getMessage()
