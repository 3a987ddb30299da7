"""Records and events: every iteration once, in order, in all formats, whatever happened."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.fs as pafs
import pytest
from ray.tune.logger.json import SafeFallbackEncoder
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboardX.crc32c import crc32c as reference_crc32c
from tensorboardX.proto.event_pb2 import Event

from raytrain.reporting import (
    EventLog,
    RecordsError,
    RecordsMirror,
    TrialRecords,
    comparable,
    differences,
    read_events,
)
from raytrain.reporting.crc32c import crc32c

DISK = "needs root and tmpfs"


def row(iteration: int) -> dict:
    """What an iteration reports: later iterations know a key that the first do not."""
    result = {
        "training_iteration": iteration,
        "timestamp": 1_700_000_000 + iteration,
        "env_runners": {
            "episode_return_mean": np.float64(iteration * 0.1) if iteration > 2 else float("nan"),
            "num_env_steps_sampled_lifetime": iteration * 4000.0,
        },
        "learners": {
            "default_policy": {"loss": np.float32(iteration) / 3, "n": np.int64(iteration)}
        },
        "done": False,
        "name": f'a, "b" {iteration}',
        "nothing": None,
        "list": [1, iteration],
    }
    if iteration >= 5:
        result["evaluation"] = {"return": iteration * 2.0}
    return result


def event_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("events.out.tfevents.*"))


def raw_events(directory: Path) -> list[Event]:
    """Every event in the raw files, in order, through TensorBoard's own reader."""
    events = []
    for path in event_files(directory):
        for data in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(data)
            if not event.HasField("file_version"):
                events.append(event)
    return events


def assert_complete(directory: Path, last: int, make=row) -> None:
    expected = list(range(1, last + 1))
    lines = (directory / "result.json").read_text().splitlines()
    assert lines == [json.dumps(make(i), cls=SafeFallbackEncoder) for i in expected]

    with open(directory / "progress.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(each["training_iteration"]) for each in rows] == expected
    flat_keys = {key for i in expected for key in json_flat(make(i))}
    assert all(set(each) == flat_keys for each in rows)
    assert pd.read_csv(directory / "progress.csv")["training_iteration"].tolist() == expected

    events = raw_events(directory)
    assert [event.step for event in events] == expected
    accumulator = EventAccumulator(str(directory))
    accumulator.Reload()
    scalars = accumulator.Scalars("ray/tune/env_runners/num_env_steps_sampled_lifetime")
    assert [(s.step, s.value) for s in scalars] == [(i, i * 4000.0) for i in expected]
    # No left-overs of replaced files either.
    assert not list(directory.glob(".*"))


def json_flat(result: dict) -> set[str]:
    return {
        f"{prefix}{key}"
        for prefix, part in _parts("", result)
        for key, value in part.items()
        if not isinstance(value, dict)
    }


def _parts(prefix: str, part: dict):
    yield prefix, part
    for key, value in part.items():
        if isinstance(value, dict):
            yield from _parts(f"{prefix}{key}/", value)


def write(directory: Path, first: int, last: int, resume_from: int | None = None) -> list[str]:
    records = TrialRecords(directory, first - 1 if resume_from is None else resume_from)
    for iteration in range(first, last + 1):
        assert records.append(row(iteration)) is None
    records.flush(durable=True)
    records.close()
    return records.warnings


def contents(directory: Path) -> dict[str, bytes]:
    names = ("result.json", "progress.csv")
    return {name: (directory / name).read_bytes() for name in names}


def test_a_fresh_run_is_complete_in_all_formats(tmp_path):
    assert write(tmp_path, 1, 8) == []
    assert_complete(tmp_path, 8)


def test_values_are_written_as_tune_writes_them(tmp_path):
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


def test_numbers_beyond_single_precision_do_not_stop_the_records(tmp_path):
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
def test_rows_after_the_checkpoint_are_cut_and_written_again(tmp_path, kept):
    write(tmp_path / "whole", 1, 12)
    write(tmp_path / "resumed", 1, 10)
    assert write(tmp_path / "resumed", kept + 1, 12) == []
    assert_complete(tmp_path / "resumed", 12)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


def test_only_event_files_with_something_to_drop_are_rewritten(tmp_path):
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
def test_a_torn_end_is_cut(tmp_path, name, tail):
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
def test_a_damaged_csv_is_rebuilt_from_the_json(tmp_path, damage):
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
def test_damaged_event_files_are_rebuilt_from_the_json(tmp_path, damage):
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


def test_a_deleted_result_json_is_said_once_and_loses_nothing_else(tmp_path):
    write(tmp_path, 1, 6)
    (tmp_path / "result.json").unlink()
    warnings = write(tmp_path, 6, 8, resume_from=5)
    assert len(warnings) == 1 and "iteration 5" in warnings[0]
    write(tmp_path, 9, 9)
    assert [event.step for event in raw_events(tmp_path)] == list(range(1, 10))
    assert pd.read_csv(tmp_path / "progress.csv")["training_iteration"].tolist() == [*range(1, 10)]
    lines = (tmp_path / "result.json").read_text().splitlines()
    assert [json.loads(line)["training_iteration"] for line in lines] == [6, 7, 8, 9]


def test_a_fork_does_not_miss_its_parents_rows(tmp_path):
    records = TrialRecords(tmp_path, 12, starts_after=12)
    records.append(row(13))
    records.close()
    assert records.warnings == []
    assert [event.step for event in raw_events(tmp_path)] == [13]


def test_an_iteration_cannot_be_recorded_twice(tmp_path):
    records = TrialRecords(tmp_path)
    records.append(row(1))
    with pytest.raises(ValueError, match="iteration 1 was reported after iteration 1"):
        records.append(row(1))
    records.close()
    assert_complete_iterations(tmp_path, [1])


def assert_complete_iterations(directory: Path, expected: list[int]) -> None:
    lines = (directory / "result.json").read_text().splitlines()
    assert [json.loads(line)["training_iteration"] for line in lines] == expected


WRITER = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_records import row
from raytrain.reporting import TrialRecords

directory, committed, stop = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

def train():
    done = int(committed.read_text())
    records = TrialRecords(directory, done)
    assert records.warnings == [], records.warnings
    for iteration in range(done + 1, stop + 1):
        records.append(row(iteration))
        if iteration % 5 == 0:
            records.flush(durable=True)
            temporary = committed.with_suffix(".tmp")
            temporary.write_text(str(iteration))
            temporary.replace(committed)

# Each attempt is a fork, so that the imports are paid for once.
for seconds in map(float, sys.argv[4:]):
    child = os.fork()
    if not child:
        train()
        os._exit(0)
    time.sleep(seconds)  # the moment of the kill is the point
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the attempt ended before its kill"
train()
"""


def test_killed_many_times_every_iteration_is_there_once(tmp_path):
    """A real process is killed at any moment, opening included, and then gets to the end."""
    committed, directory = tmp_path / "committed", tmp_path / "trial"
    committed.write_text("0")
    seconds = np.random.default_rng(0).uniform(0.001, 0.06, 40)
    code = WRITER.format(tests=str(Path(__file__).parent))
    arguments = [str(directory), str(committed), "3000", *map(str, seconds)]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=200)
    assert_complete(directory, 3000)


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 256 KiB that can be filled and made read-only."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(DISK)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, leave: int) -> Path:
    ballast = place / "ballast"
    ballast.write_bytes(b"")
    with open(ballast, "ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
        file.truncate(max(0, ballast.stat().st_size - leave))
    return ballast


@pytest.mark.parametrize("leave", [0, 4096, 8192, 12288])
def test_a_full_disk_keeps_the_rows_until_there_is_space(small_disk, leave):
    directory = small_disk / "trial"
    records = TrialRecords(directory)
    for iteration in (1, 2, 3):
        records.append(row(iteration))
    ballast = fill(small_disk, leave)
    # Iteration 5 has a new column, for which the CSV has to be rewritten.
    said = [text for i in range(4, 41) if (text := records.append(row(i)))]
    assert len(said) == 1 and str(directory) in said[0] and "No space left" in said[0]
    assert records.warnings == said
    for name in ("result.json", "progress.csv"):
        assert (directory / name).read_bytes().endswith(b"\n")
    steps = [event.step for event in raw_events(directory)]
    assert steps == list(range(1, len(steps) + 1)) and 3 <= len(steps) < 40
    with pytest.raises(RecordsError, match="kept in memory"):
        records.flush(durable=True)
    assert records.waiting() > 0
    ballast.unlink()
    assert records.append(row(41)) is None
    records.flush(durable=True)
    assert records.waiting() == 0
    records.close()
    assert_complete(directory, 41)


def test_a_disk_that_is_full_at_the_start_is_used_once_it_has_space(small_disk):
    directory = small_disk / "trial"
    write(directory, 1, 6)
    (directory / "progress.csv").unlink()
    ballast = fill(small_disk, 0)
    records = TrialRecords(directory, 4)
    assert len(records.warnings) == 1
    for iteration in (5, 6, 7):
        records.append(row(iteration))
    ballast.unlink()
    records.flush(durable=True)
    records.close()
    assert_complete(directory, 7)


def test_a_read_only_disk_keeps_the_rows(small_disk):
    directory = small_disk / "trial"
    write(directory, 1, 3)
    # A file system with a file open for writing cannot be made read-only, so it is so at the start.
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    records = TrialRecords(directory, 3)
    records.append(row(4))
    assert len(records.warnings) == 1 and "Read-only" in records.warnings[0]
    with pytest.raises(RecordsError, match="Read-only"):
        records.flush(durable=True)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    records.flush(durable=True)
    records.close()
    assert_complete(directory, 4)


def test_a_mirrored_trial_continues_elsewhere(tmp_path):
    storage = pafs.SubTreeFileSystem(str(tmp_path / "storage"), pafs.LocalFileSystem())
    (tmp_path / "storage").mkdir()
    one, other = tmp_path / "one", tmp_path / "other"
    write(one, 1, 6)
    mirror = RecordsMirror(one, storage, "exp/trial")
    assert len(mirror.upload()) == 3
    assert mirror.upload() == []
    write(one, 6, 7, resume_from=5)  # replaces files
    mirror.upload()

    write(other, 1, 9)  # an attempt that storage knows nothing of
    assert len(RecordsMirror(other, storage, "exp/trial").download()) == 4
    write(other, 7, 10, resume_from=6)
    assert_complete(other, 10)


@pytest.mark.parametrize("length", [0, 1, 8, 127, 128, 129, 159, 160, 161, 1000, 4096, 9001])
def test_crc32c(length):
    data = np.random.default_rng(length).bytes(length)
    assert crc32c(data) == reference_crc32c(data)
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's check value


def test_the_event_log_survives_torn_lines_and_other_writers(tmp_path):
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


def test_the_event_log_on_a_full_disk_keeps_its_events(small_disk):
    log = EventLog(small_disk / "events.jsonl")
    log.write("a", "x" * 3000, attempt=1, iteration=1)
    ballast = fill(small_disk, 0)
    assert isinstance(log.write("b", "y" * 3000, attempt=1, iteration=2), OSError)
    ballast.unlink()
    assert log.write("c", "z", attempt=1, iteration=3) is None
    assert [event.kind for event in read_events(small_disk / "events.jsonl")] == ["a", "b", "c"]


def test_rows_are_compared_without_time_and_place():
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
