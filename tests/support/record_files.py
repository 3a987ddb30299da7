"""Rows to record, and what a trial's record files must hold when all of them are there."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ray.tune.logger.json import SafeFallbackEncoder
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

from raytrain.records import EpisodeHistory, TrialRecords


def row(iteration: int) -> dict[str, Any]:
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


def assert_complete(directory: Path, last: int, make: Any = row) -> None:
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


def json_flat(result: dict[str, Any]) -> set[str]:
    return {
        f"{prefix}{key}"
        for prefix, part in _parts("", result)
        for key, value in part.items()
        if not isinstance(value, dict)
    }


def _parts(prefix: str, part: dict[str, Any]) -> Iterator[Any]:
    yield prefix, part
    for key, value in part.items():
        if isinstance(value, dict):
            yield from _parts(f"{prefix}{key}/", value)


def write(directory: Path, first: int, last: int, resume_from: int | None = None) -> list[str]:
    records = TrialRecords(directory, first - 1 if resume_from is None else resume_from)
    for iteration in range(first, last + 1):
        assert records.append(row(iteration)) is None
    records.flush()
    records.close()
    return records.warnings


def finished(iteration: int) -> list[dict[str, Any]]:
    """What ends in an iteration: nothing in every fourth, custom metrics from the sixth on."""
    count = iteration * 7 % 4
    return [
        {
            "group": number % 2,
            "env_index": number,
            "return": iteration + number / 10,
            "length": 10 * number + 1,
            **({"custom/goals": number / 3} if iteration >= 6 else {}),
        }
        for number in range(count)
    ]


def append_episodes(history: EpisodeHistory, iteration: int) -> None:
    stage = None if iteration < 3 else "hard"
    history.append(iteration, iteration * 4000, stage, finished(iteration))
