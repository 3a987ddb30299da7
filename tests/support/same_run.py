"""What makes a disturbed run the run that nothing disturbed."""

from __future__ import annotations

import csv
from pathlib import Path

from raytrain.records import differences, read_episodes
from raytrain.records.compare import comparable
from support.running import Reference, rows


def assert_same_run(trial: Path, reference: Reference) -> None:
    """Every record of `trial` equals the undisturbed run's, wall-clock left out."""
    found = rows(trial)
    assert [row["training_iteration"] for row in found] == list(range(1, len(reference.rows) + 1))
    assert [row["weights_sha256"] for row in found] == reference.digests()
    for row, expected in zip(found, reference.rows, strict=True):
        assert differences(comparable(row), comparable(expected)) == []
    with (trial / "progress.csv").open(newline="") as file:
        listed = [int(row["training_iteration"]) for row in csv.DictReader(file)]
    assert listed == list(range(1, len(found) + 1))
    assert tensorboard_steps(trial) == listed
    assert read_episodes(trial).equals(read_episodes(reference.trial))


def tensorboard_steps(trial: Path) -> list[int]:
    """Steps of one curve, from the raw records of all event files, in the order of the files."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    steps = []
    for path in sorted(trial.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            if any(
                value.tag == "ray/tune/num_env_steps_sampled_lifetime"
                for value in event.summary.value
            ):
                steps.append(event.step)
    return steps
