"""The parts of an iteration's time in its row, slower ways with their reasons, and a
machine that slept."""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.fs as pafs
import pytest
from support.tiny_ppo import TINY, built

from raytrain import _ray
from raytrain.checkpoint import ExperimentFile
from raytrain.config import config_digest, config_from_dict
from raytrain.ppo.stopwatch import PARTS
from raytrain.records import EVENT_LOG, read_events
from raytrain.storage import Location
from raytrain.storage.clocks import MachineSleep
from raytrain.trial.trainable import TrialPPO

pytestmark = pytest.mark.usefixtures("local_ray")

SHOWN = {f"{part}_s" for part in (*PARTS, "other", "total")}


def test_an_iteration_shows_where_its_time_went() -> None:
    with built() as algorithm:
        algorithm.train()
        row = algorithm.train()["timers"]["iteration"]
    assert set(row) == SHOWN
    assert sum(row.values()) == pytest.approx(2 * row["total_s"])
    assert min(row[f"{part}_s"] for part in ("env_step", "inference", "update", "weights")) > 0


@pytest.mark.parametrize("recurrent", [False, True])
def test_a_slower_way_is_told_with_its_reason(recurrent: bool) -> None:
    model = {"use_lstm": recurrent, "max_seq_len": 8}
    with built(rl_module={"model_config": model}) as algorithm:
        said = algorithm.told
    assert [line.split(" is used")[0] for line in said] == (
        ["RLlib's own sampling", "RLlib's own update"] if recurrent else []
    )
    assert all("stateful" in line or "recurrent" in line for line in said)


def test_a_wall_clock_that_is_set_changes_no_time_of_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It goes forward an hour each time that it is read: `stop.time_s` would end the run."""
    set_to = itertools.count(time.time(), 3600.0)
    with built() as algorithm:
        monkeypatch.setattr(time, "time", lambda: next(set_to))
        row = algorithm.train()
        row = algorithm.train()
        monkeypatch.undo()
    assert 0 < row["time_this_iter_s"] < row["time_total_s"] < 3600


def trial_in(place: Path) -> TrialPPO:
    """A trial in this process, as Tune would start it in the experiment `place`."""
    given = {key: value for key, value in TINY.items() if key not in ("name", "stop")}
    config = config_from_dict({**TINY, "stop": {"time_s": 1e6}})
    snapshot = {"strategy": "pickle", "exact": True, "reason": "", "global_random": []}
    ExperimentFile(
        "tiny",
        "0",
        config.to_dict(),
        config_digest(config),
        snapshot,
        versions={},
        first_start="2026-01-01T00:00:00+00:00",
    ).write(Location.of(place))
    trial = place / "trial_00000"
    trial.mkdir(exist_ok=True)
    files = pafs.LocalFileSystem()
    storage = SimpleNamespace(
        storage_filesystem=files,
        experiment_fs_path=str(place),
        trial_fs_path=str(trial),
        trial_working_directory=str(place / "working"),
        persist_artifacts=lambda **how: None,
    )
    with _ray.local.files_below(tempfile.gettempdir()):
        return TrialPPO(given, storage=storage)


def test_sleep_of_the_machine_is_told_and_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")
    trial = trial_in(tmp_path)
    asleep = itertools.count(0.0, 7200.0)
    trial._machine_sleep = MachineSleep(awake=lambda: 0.0, passed=lambda: next(asleep))
    row = trial.train()
    told = [
        event.message for event in read_events(Location.of(tmp_path / "trial_00000") / EVENT_LOG)
    ]
    assert any("The machine slept for 7200 s. This time does not count" in each for each in told)
    assert row["time_total_s"] < 3600
    assert trial.interrupt()[0]
    trial.stop()
    again = trial_in(tmp_path)
    assert again._progress().time_s == row["time_total_s"]
    again.stop()
