"""When a checkpoint is due and when a run ends: the same iterations whether or not
it was resumed."""

from __future__ import annotations

from raytrain.config.schema import Checkpoint
from raytrain.ppo.stopping import Progress
from raytrain.trial.saving import is_due


def at(iteration: int, timesteps: int = 0, episodes: int = 0, time_s: float = 0.0) -> Progress:
    return Progress(iteration, timesteps, episodes, time_s)


def test_every_so_many_iterations() -> None:
    every = Checkpoint(checkpoint_frequency=3)
    due = [k for k in range(1, 10) if is_due(every, at(k), at(k - 1), 0.0)]
    assert due == [3, 6, 9]


def test_a_multiple_that_was_passed_is_due_once() -> None:
    every = Checkpoint(checkpoint_frequency=0, every_timesteps=1000)
    steps = [0, 600, 1200, 1800, 2400, 3600]
    pairs = zip(enumerate(steps[1:], 1), steps, strict=False)
    due = [k for (k, now), before in pairs if is_due(every, at(k, now), at(k - 1, before), 0.0)]
    assert due == [2, 4, 5]


def test_episodes_and_seconds() -> None:
    episodes = Checkpoint(checkpoint_frequency=0, every_episodes=10)
    assert is_due(episodes, at(1, 0, 10), at(0, 0, 9), 0.0)
    assert not is_due(episodes, at(1, 0, 19), at(0, 0, 10), 0.0)
    seconds = Checkpoint(checkpoint_frequency=0, every_seconds=5)
    assert is_due(seconds, at(1, 0, 0, 12.0), at(0), 7.0)
    assert not is_due(seconds, at(1, 0, 0, 11.9), at(0), 7.0)


def test_nothing_set_is_never_due() -> None:
    nothing = Checkpoint(checkpoint_frequency=0)
    assert not is_due(nothing, at(100, 10**6, 10**4, 1e5), at(99), 0.0)
