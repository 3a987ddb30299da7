"""Records and events: every iteration once, in order, in all formats, whatever happened."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.fs as pafs
import pytest
from support.record_files import assert_complete, event_files, raw_events, row, write

from raytrain.records import EventLog, RecordsMirror, TrialRecords, differences, read_events
from raytrain.records.compare import comparable
from raytrain.storage import Location


def contents(directory: Path) -> dict[str, bytes]:
    names = ("result.json", "progress.csv")
    return {name: (directory / name).read_bytes() for name in names}


def test_a_fresh_run_is_complete_in_all_formats(tmp_path: Path) -> None:
    assert write(tmp_path, 1, 8) == []
    assert_complete(tmp_path, 8)


def test_values_are_written_as_tune_writes_them(tmp_path: Path) -> None:
    write(tmp_path, 1, 6)
    with open(tmp_path / "progress.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["env_runners/episode_return_mean"] == "nan"
    assert rows[0]["evaluation/return"] == "" and rows[5]["evaluation/return"] == "12.0"
    assert rows[0]["name"] == 'a, "b" 1' and rows[0]["list"] == "[1, 1]"
    assert rows[0]["nothing"] == "" and rows[0]["done"] == "False"
    assert list(rows[0])[-1] == "evaluation/return"

    first, *_, last = raw_events(tmp_path)
    values = {value.tag: value.simple_value for value in last.summary.value}
    assert values == {
        "ray/tune/done": 0.0,
        "ray/tune/env_runners/episode_return_mean": np.float32(6 * 0.1),
        "ray/tune/env_runners/num_env_steps_sampled_lifetime": 24000.0,
        "ray/tune/learners/default_policy/loss": np.float32(2.0),
        "ray/tune/learners/default_policy/n": 6.0,
        "ray/tune/evaluation/return": 12.0,
    }
    assert last.wall_time == 1_700_000_006
    # NaN is left out of TensorBoard, and the step is there all the same.
    assert "ray/tune/env_runners/episode_return_mean" not in {v.tag for v in first.summary.value}


def test_a_video_is_told_once_and_not_recorded(tmp_path: Path) -> None:
    video = [np.zeros((1, 20, 3, 40, 60), np.uint8)]
    records = TrialRecords(tmp_path)
    told = [
        records.append({"training_iteration": i, "env_runners": {"video": video}, "n": i})
        for i in (1, 2)
    ]
    records.close()
    assert told[1] is None and told[0] is not None
    assert told[0].startswith("env_runners/video: an image or a video is not recorded")
    lines = (tmp_path / "result.json").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "training_iteration": i,
            "env_runners": {"video": "144,000 values, which are not recorded"},
            "n": i,
        }
        for i in (1, 2)
    ]


def test_long_values_are_recorded_and_survive_new_columns_and_cuts(tmp_path: Path) -> None:
    long = [0.1234567890123456] * 10_000
    records = TrialRecords(tmp_path)
    records.append({"training_iteration": 1, "long": long})
    records.append({"training_iteration": 2, "long": long, "new": 1})
    records.flush()
    records.close()
    before = (tmp_path / "progress.csv").read_bytes()
    again = TrialRecords(tmp_path, 2)
    again.append({"training_iteration": 3, "long": long, "new": 1})
    again.close()
    after = (tmp_path / "progress.csv").read_bytes()
    assert after.startswith(before) and after.count(b"\r\n") == 4
    assert again.warnings == []


def test_numbers_beyond_single_precision_do_not_stop_the_records(tmp_path: Path) -> None:
    records = TrialRecords(tmp_path)
    records.append(
        {"training_iteration": 1, "big": 1e300, "small": -(10**400), "inf": float("inf")}
    )
    records.close()
    values = {v.tag: v.simple_value for v in raw_events(tmp_path)[0].summary.value}
    infinity = float("inf")
    assert values == {
        "ray/tune/big": infinity,
        "ray/tune/small": -infinity,
        "ray/tune/inf": infinity,
    }


@pytest.mark.parametrize("kept", [0, 1, 4, 5, 9, 10])
def test_rows_after_the_checkpoint_are_cut_and_written_again(tmp_path: Path, kept: int) -> None:
    write(tmp_path / "whole", 1, 12)
    write(tmp_path / "resumed", 1, 10)
    assert write(tmp_path / "resumed", kept + 1, 12) == []
    assert_complete(tmp_path / "resumed", 12)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


def test_only_event_files_with_something_to_drop_are_rewritten(tmp_path: Path) -> None:
    write(tmp_path, 1, 4)
    write(tmp_path, 4, 6, resume_from=3)  # another file begins, for the first one was cut
    write(tmp_path, 7, 9)  # continues the last file
    first, second = event_files(tmp_path)
    before = first.stat().st_ino, second.stat().st_ino
    write(tmp_path, 6, 9, resume_from=5)
    assert first.stat().st_ino == before[0] and second.stat().st_ino != before[1]
    assert_complete(tmp_path, 9)


@pytest.mark.parametrize("name", ["result.json", "progress.csv", "events"])
@pytest.mark.parametrize("tail", ["half", "garbage", "zeros"])
def test_a_torn_end_is_cut(tmp_path: Path, name: str, tail: str) -> None:
    write(tmp_path, 1, 7)
    path = event_files(tmp_path)[0] if name == "events" else tmp_path / name
    whole = path.read_bytes()
    torn = {"half": whole[:-11], "garbage": whole + b"\x07\x01gar", "zeros": whole + bytes(64)}[
        tail
    ]
    path.write_bytes(torn)
    assert write(tmp_path, 7, 9, resume_from=6) == []
    assert_complete(tmp_path, 9)


@pytest.mark.parametrize("damage", ["missing", "empty", "header", "behind", "last row"])
def test_a_damaged_csv_is_rebuilt_from_the_json(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 1, 7)
    path = tmp_path / "progress.csv"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {
                "empty": b"",
                "header": whole[100:],
                "behind": b"".join(lines[:-2]),
                "last row": b"".join([*lines[:-1], b"x" + lines[-1].replace(b",", b"")]),
            }[damage]
        )
    TrialRecords(tmp_path, 7).close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", ["missing", "torn", "flipped", "twice"])
def test_damaged_event_files_are_rebuilt_from_the_json(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 1, 7)
    path = event_files(tmp_path)[0]
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(data[:-20])
    elif damage == "flipped":
        data[-30] ^= 1
        path.write_bytes(data)
    else:
        path.with_name("events.out.tfevents.1999999999.x").write_bytes(data)
    write(tmp_path, 8, 9)
    assert_complete(tmp_path, 9)


def test_a_deleted_result_json_is_said_once_and_loses_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, 1, 6)
    (tmp_path / "result.json").unlink()
    warnings = write(tmp_path, 6, 8, resume_from=5)
    assert len(warnings) == 1 and "iteration 5" in warnings[0]
    write(tmp_path, 9, 9)
    assert [event.step for event in raw_events(tmp_path)] == list(range(1, 10))
    assert pd.read_csv(tmp_path / "progress.csv")["training_iteration"].tolist() == [*range(1, 10)]
    lines = (tmp_path / "result.json").read_text().splitlines()
    assert [json.loads(line)["training_iteration"] for line in lines] == [6, 7, 8, 9]


def test_a_fork_does_not_miss_its_parents_rows(tmp_path: Path) -> None:
    records = TrialRecords(tmp_path, 12, starts_after=12)
    records.append(row(13))
    records.close()
    assert records.warnings == []
    assert [event.step for event in raw_events(tmp_path)] == [13]


def test_an_iteration_cannot_be_recorded_twice(tmp_path: Path) -> None:
    records = TrialRecords(tmp_path)
    records.append(row(1))
    with pytest.raises(ValueError, match="iteration 1 was reported after iteration 1"):
        records.append(row(1))
    records.close()
    assert_complete_iterations(tmp_path, [1])


def assert_complete_iterations(directory: Path, expected: list[int]) -> None:
    lines = (directory / "result.json").read_text().splitlines()
    assert [json.loads(line)["training_iteration"] for line in lines] == expected


def mirrored(directory: Path, place: Location, attempt: int) -> RecordsMirror:
    return RecordsMirror(directory, place, attempt, fence=lambda: None)


def test_a_mirrored_trial_continues_elsewhere(tmp_path: Path) -> None:
    storage = pafs.SubTreeFileSystem(str(tmp_path / "storage"), pafs.LocalFileSystem())
    (tmp_path / "storage").mkdir()
    one, other = tmp_path / "one", tmp_path / "other"
    write(one, 1, 6)
    place = Location(storage, "exp/trial")
    mirror = mirrored(one, place, 1)
    assert len(mirror.upload()) == 3
    assert mirror.upload() == []
    write(one, 6, 7, resume_from=5)  # replaces files
    mirror.upload()

    write(other, 1, 9)  # an attempt that storage knows nothing of
    mirror = mirrored(other, place, 2)
    assert len(mirror.download()) == 4
    write(other, 7, 10, resume_from=6)
    assert_complete(other, 10)
    mirror.upload()
    (tmp_path / "third").mkdir()
    mirrored(tmp_path / "third", place, 3).download()
    for directory in (tmp_path / "third", tmp_path / "storage/exp/trial"):
        assert_complete(directory, 10)
    assert (place / "attempts").subdirectories() == ["000002.records"]


def test_a_mirror_that_was_replaced_leaves_the_records_of_its_successor(tmp_path: Path) -> None:
    """It wakes up after its fence, while its successor is in its first upload."""
    (tmp_path / "storage").mkdir()
    place = Location(
        pafs.SubTreeFileSystem(str(tmp_path / "storage"), pafs.LocalFileSystem()), "exp/trial"
    )
    write(tmp_path / "one", 1, 6)
    mirrored(tmp_path / "one", place, 1).upload()
    later = place / "attempts" / "000003.records"
    later.make()
    (later / "result.json").write_bytes(b"{}\n")
    write(tmp_path / "other", 1, 9)
    mirrored(tmp_path / "other", place, 2).upload()
    assert (place / "attempts").subdirectories() == ["000002.records", "000003.records"]
    assert (later / "result.json").exists()


def test_the_event_log_survives_torn_lines_and_other_writers(tmp_path: Path) -> None:
    path = tmp_path / "trial" / "events.jsonl"
    assert read_events(path) == []
    trial, driver = EventLog(path, clock=lambda: 1.5), EventLog(path, clock=lambda: 2.5)
    assert trial.write("restored", "from checkpoint 5", attempt=2, iteration=5) is None
    with open(path, "ab") as file:
        file.write(b'{"time": 1, "att')
    driver.write("failed", "the node died", attempt=2, iteration=7)
    events = read_events(path)
    assert [(e.time, e.kind, e.iteration) for e in events] == [
        (1.5, "restored", 5),
        (2.5, "failed", 7),
    ]
    assert events[1].message == "the node died" and events[1].attempt == 2


def test_rows_are_compared_without_time_and_place() -> None:
    nan = float("nan")
    one = {
        "training_iteration": 3,
        "pid": 1,
        "time_this_iter_s": 0.5,
        "timers": {"training_step": 0.1},
        "env_runners": {
            "episode_return_mean": nan,
            "sample": 0.1,
            "env_step_timer": 0.2,
            "num_env_steps_sampled_lifetime": 400.0,
            "num_env_steps_sampled_lifetime_throughput": {"throughput_since_last_reduce": 9.0},
        },
        "learners": {"p": {"total_loss": np.float64(0.1), "hist": [1.0, nan]}},
        "fault_tolerance": {"num_healthy_workers": 2},
    }
    assert comparable(one).keys() == {
        "training_iteration",
        "env_runners/episode_return_mean",
        "env_runners/num_env_steps_sampled_lifetime",
        "learners/p/total_loss",
        "learners/p/hist",
    }
    other = {**one, "pid": 2, "learners": {"p": {"total_loss": 0.1, "hist": [1.0, nan]}}}
    assert differences(one, other) == []
    other["learners"] = {"p": {"total_loss": math.nextafter(0.1, 1.0), "hist": [1.0, 2.0]}}
    assert [key for key, *_ in differences(one, other)] == [
        "learners/p/hist",
        "learners/p/total_loss",
    ]
    assert differences({"a": 2}, {"b": 1}) == [("a", 2, "(missing)"), ("b", "(missing)", 1)]
