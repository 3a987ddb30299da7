"""What a person sees at a terminal, and what a log file gets."""

from __future__ import annotations

import sys
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from raytrain.driver.console import ConsoleReporter, StopTotals

STOP = StopTotals(timesteps=200_000, episode_return_mean=475)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Screen:
    """A reporter, its clock, and what it wrote."""

    def __init__(self, terminal: bool, width: int = 200) -> None:
        self.clock, self.file = Clock(), StringIO()
        console = Console(
            file=self.file,
            force_terminal=terminal,
            width=width,
            color_system=None,
            legacy_windows=False,
        )
        self.reporter = ConsoleReporter(console, clock=self.clock)

    def result(self, iteration: int, seconds: float = 1.0, trial: str = "t0", **more: Any) -> None:
        self.clock.now += seconds
        row = {
            "training_iteration": iteration,
            "num_env_steps_sampled_lifetime": iteration * 4000.0,
            "time_total_s": iteration * 1.0,
            "stop": {"window": 100, "episodes": 100, "episode_return_mean": iteration * 10.5},
            "env_runners": {"episode_return_mean": -1.0},
            **more,
        }
        self.reporter.result(trial, row)

    def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()


@pytest.fixture
def log() -> Any:
    return Screen(terminal=False)


def test_a_log_gets_one_line_now_and_then(log: Any) -> None:
    log.reporter.started("t0", stop=STOP)
    for iteration in range(1, 41):
        log.result(iteration)
    log.reporter.finished("done after 40 iterations")
    lines = log.lines()
    # The first, one every 15 s, and the last.
    assert [line.split()[1] for line in lines[:-1]] == ["4,000", "64,000", "124,000", "160,000"]
    assert lines[-1] == "done after 40 iterations"
    assert lines[1] == (
        "t0  64,000 of 200,000 steps (32%)  return 168.0 of 475 over 100 episodes  4,000 steps/s  "
        "34s left"
    )
    assert not set(log.file.getvalue()) & {"\x1b", "\r", "\x07"}


def test_the_last_result_is_not_printed_twice(log: Any) -> None:
    log.reporter.started("t0", stop=STOP)
    log.result(1)
    log.reporter.finished("done")
    assert len(log.lines()) == 2


def test_a_long_line_in_a_log_is_not_folded() -> None:
    narrow = Screen(terminal=False, width=40)
    narrow.reporter.event("t0", "warning", "\x1b[31ma sentence\x1b[0m\n" * 20)
    assert narrow.lines() == ["t0: " + " ".join(["a sentence"] * 20)]


def test_at_a_terminal_one_line_a_trial_lives() -> None:
    screen = Screen(terminal=True)
    screen.reporter.started("t0", stop=STOP)
    screen.reporter.started("t1", stop=STOP)
    screen.result(20, trial="t0")
    screen.reporter.checkpointed("t0", 20)
    screen.result(21, seconds=7, trial="t0")
    screen.reporter.event("t1", "warning", "an env runner was lost [x] and replaced")
    screen.reporter.finished("done")
    text = screen.file.getvalue()
    assert "\x1b[" in text  # the line is drawn over
    assert text.count("an env runner was lost [x] and replaced") == 1
    assert "84,000 of 200,000 steps (42%)  return 220.5 of 475 over 100 episodes" in text
    assert "checkpoint 20 (7s ago)" in text
    # What stays on the screen: the sentence, a line a trial, the summary.
    final = text.rsplit("\x1b[2K", 1)[1]
    assert [line.split()[0] for line in final.splitlines()[-3:-1]] == ["t0", "t1"]
    assert text.endswith("done\n")
    assert "\x1b[?25h" in text  # the cursor is there again


def test_an_event_is_said_once_until_the_trial_fails_again(log: Any) -> None:
    log.reporter.started("t0", stop=STOP)
    for _ in range(3):
        log.reporter.event("t0", "info", "the disk is full")
    log.reporter.failed("t0", "the node died", will_retry=True, survived="1 failure")
    log.reporter.event("t0", "info", "the disk is full")
    assert log.lines() == [
        "t0: the disk is full",
        "t0: the node died; begins again",
        "t0: the disk is full",
    ]


def test_failures_are_survived_and_the_rate_is_measured_anew(log: Any) -> None:
    log.reporter.started("t0", stop=STOP)
    log.result(1)
    log.result(2)
    log.reporter.checkpointed("t0", 2)
    log.reporter.failed("t0", "the node died", will_retry=True, survived="1 failure")
    log.clock.now += 1000  # the time that the restart takes does not count
    log.reporter.started("t0", stop=STOP, survived="1 failure")
    log.result(2)
    log.result(3, seconds=2)
    log.reporter.finished("done")
    assert log.lines()[-4] == "t0: the node died; continues from checkpoint 2"
    assert log.lines()[-2] == (
        "t0  12,000 of 200,000 steps (6%)  return 31.5 of 475 over 100 episodes  2,000 steps/s  "
        "1m34s left  checkpoint 2 (16m43s ago)  survived 1 failure"
    )
    log.reporter.failed("t0", "again", will_retry=False, survived="2 failures")
    assert log.lines()[-1] == "t0: failed: again"


def test_a_trial_of_an_earlier_start_whose_process_does_not_start_is_told_of(log: Any) -> None:
    log.reporter.checkpointed("t0", 8)
    log.reporter.failed("t0", "it could not start", will_retry=True, survived="1 failure")
    assert log.lines() == ["t0: it could not start; continues from checkpoint 8"]


def test_while_a_retry_starts_the_line_stands_still() -> None:
    screen = Screen(terminal=True)
    screen.reporter.started("t0", stop=STOP)
    screen.result(20)
    screen.reporter.failed("t0", "the node died", will_retry=True, survived="1 failure")
    screen.reporter.started("t0", stop=STOP)
    screen.reporter.close()
    final = screen.file.getvalue().rsplit("\x1b[2K", 1)[1]
    assert "t0  80,000 of 200,000 steps" in final


@pytest.mark.parametrize(
    ("stop", "left"),
    [
        (StopTotals(timesteps=400_000), "1m30s left"),
        (StopTotals(iterations=60), "50s left"),
        (StopTotals(timesteps=400_000, iterations=60, seconds=30), "20s left"),
        (StopTotals(timesteps=48_000, seconds=7300), "2s left"),
        (StopTotals(iterations=10 + 3600 * 50), "2d02h left"),
        (StopTotals(iterations=10 + 7260), "2h01m left"),
        (StopTotals(timesteps=1), " 0s left"),
        (StopTotals(episode_return_mean=475), None),
        (StopTotals(), None),
    ],
)
def test_the_time_left_is_that_of_the_first_end(log: Any, stop: Any, left: Any) -> None:
    log.reporter.started("t0", stop=stop)
    log.result(9)
    log.result(10)
    log.reporter.finished("done")
    line = log.lines()[-2]
    assert left in line if left else "left" not in line


def test_an_iteration_without_a_finished_episode_keeps_the_return(log: Any) -> None:
    log.reporter.started("t0", stop=StopTotals(iterations=50))
    none = {"stop": {"window": 100, "episodes": 0}}
    log.result(1, **none)
    assert "return" not in log.lines()[-1]
    log.result(2, stage="hard")
    log.result(3, seconds=20, **none)
    assert log.lines()[-1].startswith(
        "t0  iteration 3 of 50  12,000 steps  stage hard  return 21.0 over 100 episodes  "
    )


@pytest.mark.parametrize(
    ("stop", "target", "shown"),
    [
        (
            {"window": 100, "episodes": 43, "episode_return_mean": 21.6},
            None,
            "21.6 over 43 episodes",
        ),
        ({"window": 100, "episodes": 1, "episode_return_mean": 9.0}, None, "9.0 over 1 episode"),
        # Why a run goes on, though its return is reached.
        (
            {"window": 100, "episodes": 43, "episode_return_mean": 480.0},
            475,
            "480.0 of 475 over 43 of 100 episodes",
        ),
        # `stop.window: null`, or a row of a former version: the iteration's, as RLlib has it.
        ({"window": None}, 475, "-1.0 of 475"),
        ({}, None, "-1.0"),
    ],
)
def test_the_return_is_shown_with_the_episodes_that_it_is_the_mean_of(
    log: Any, stop: Any, target: Any, shown: str
) -> None:
    log.reporter.started("t0", stop=StopTotals(episode_return_mean=target))
    log.result(1, stop=stop)
    assert log.lines()[-1].endswith(f"  return {shown}")


def test_nothing_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = ConsoleReporter()
    reporter.started("t0", stop=STOP)
    reporter.event("t0", "error", "something happened")
    reporter.finished("done")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "t0: something happened\ndone\n"


def test_stdout_is_left_alone_while_the_line_lives(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(terminal=True)
    screen.reporter.started("t0", stop=STOP)
    sys.stdout.write("{}")
    screen.reporter.finished("done")
    assert capsys.readouterr().out == "{}" and "{}" not in screen.file.getvalue()


def test_a_retry_measures_within_the_attempt(log: Any) -> None:
    log.reporter.started("t0", stop=STOP)
    for iteration in range(1, 5):
        log.result(iteration)
    log.reporter.failed("t0", "the node died", will_retry=True, survived="1 failure")
    log.reporter.started("t0", stop=STOP)
    log.result(3, seconds=500)
    assert log.lines()[-1] == (
        "t0  12,000 of 200,000 steps (6%)  return 31.5 of 475 over 100 episodes  survived 1 failure"
    )
    log.result(4, seconds=20)
    assert "  200 steps/s  15m20s left" in log.lines()[-1]


def test_the_first_result_sets_the_point_only(log: Any) -> None:
    """A continued run: 50 iterations were not trained in a second."""
    log.reporter.started("t0", stop=STOP)
    log.result(10, seconds=30)  # the start of Ray and the environments' first steps
    assert log.lines() == [
        "t0  40,000 of 200,000 steps (20%)  return 105.0 of 475 over 100 episodes"
    ]
    log.result(11, seconds=20)
    assert log.lines()[-1].endswith(
        "return 115.5 of 475 over 100 episodes  200 steps/s  13m00s left"
    )
