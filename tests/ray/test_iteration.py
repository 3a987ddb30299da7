"""What an iteration says of itself: where its time went, and whether a slower way was taken."""

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
from raytrain.ppo.stopwatch import PARTS, Stopwatch
from raytrain.records import EVENT_LOG, read_events
from raytrain.storage import Location
from raytrain.storage.clocks import MachineSleep, seconds_passed
from raytrain.trial.trainable import TrialPPO

pytestmark = pytest.mark.usefixtures("local_ray")

SHOWN = {f"{part}_s" for part in (*PARTS, "other", "total")}


def test_parts_and_rest() -> None:
    ticks = itertools.count(0.0, 1.0)
    watch = Stopwatch(clock=lambda: next(ticks))
    with watch.measure("update"):
        pass
    watch.add("update", 2.0)
    watch.split_sampling(10.0, {"env_step": 3.0, "inference": 2.0, "rollout": 8.0})
    row = watch.row()  # at 3.0: more was added than went by
    assert row["update_s"] == 3.0
    assert (row["env_step_s"], row["inference_s"], row["sampling_s"]) == (3.0, 2.0, 3.0)
    assert (row["waiting_s"], row["other_s"], row["total_s"]) == (2.0, 0.0, 3.0)
    assert watch.row() == {**dict.fromkeys(SHOWN, 0.0), "other_s": 1.0, "total_s": 1.0}


def test_sampling_that_is_not_told_apart() -> None:
    watch = Stopwatch(clock=lambda: 0.0)
    watch.split_sampling(5.0, {"rollout": 4.0})
    row = watch.row()
    assert (row["sampling_s"], row["waiting_s"], row["env_step_s"]) == (4.0, 1.0, 0.0)


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


def test_sleep_of_the_machine_is_noticed_once() -> None:
    now, asleep = [100.0], [5.0]
    sleep = MachineSleep(awake=lambda: now[0], passed=lambda: now[0] + asleep[0])
    assert sleep.seconds() == 0.0
    now[0] += 10.0
    asleep[0] += 0.001  # The two clocks are not read at once.
    assert sleep.seconds() == 0.0
    asleep[0] += 7200.0
    assert sleep.seconds() == pytest.approx(7200.0, abs=0.01)
    now[0] += 10.0
    assert sleep.seconds() == 0.0


def test_the_clock_that_counts_sleep_is_not_behind() -> None:
    before = time.monotonic(), seconds_passed()
    after = time.monotonic(), seconds_passed()
    assert after[0] >= before[0] and after[1] >= before[1]
    assert MachineSleep().seconds() == 0.0


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
