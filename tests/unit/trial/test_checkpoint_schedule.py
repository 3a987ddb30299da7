"""When a checkpoint is due and when a run ends: the same iterations whether or not
it was resumed."""

from __future__ import annotations

from raytrain.ppo.stopping import Progress
from raytrain.trial.checkpoint_schedule import CheckpointSchedule


def at(iteration: int, timesteps: int = 0, episodes: int = 0, time_s: float = 0.0) -> Progress:
    return Progress(iteration, timesteps, episodes, time_s)


def test_every_so_many_iterations() -> None:
    cadence = CheckpointSchedule(iterations=3)
    due = [k for k in range(1, 10) if cadence.due(at(k), at(k - 1), 0.0)]
    assert due == [3, 6, 9]


def test_a_multiple_that_was_passed_is_due_once() -> None:
    cadence = CheckpointSchedule(timesteps=1000, episodes=None)
    steps = [0, 600, 1200, 1800, 2400, 3600]
    pairs = zip(enumerate(steps[1:], 1), steps, strict=False)
    due = [k for (k, now), before in pairs if cadence.due(at(k, now), at(k - 1, before), 0.0)]
    assert due == [2, 4, 5]


def test_episodes_and_seconds() -> None:
    assert CheckpointSchedule(episodes=10).due(at(1, 0, 10), at(0, 0, 9), 0.0)
    assert not CheckpointSchedule(episodes=10).due(at(1, 0, 19), at(0, 0, 10), 0.0)
    assert CheckpointSchedule(seconds=5).due(at(1, 0, 0, 12.0), at(0), 7.0)
    assert not CheckpointSchedule(seconds=5).due(at(1, 0, 0, 11.9), at(0), 7.0)


def test_nothing_set_is_never_due() -> None:
    assert not CheckpointSchedule().due(at(100, 10**6, 10**4, 1e5), at(99), 0.0)
