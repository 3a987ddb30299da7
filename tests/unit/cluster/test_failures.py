"""Which failures are retried, how deaths are told, and what a signal does before training begins."""

from __future__ import annotations

import pickle
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from raytrain.cluster.failures import able_to_travel, may_retry, why_it_died
from raytrain.driver.signals import InterruptedEarly, Interrupts
from raytrain.errors import BadInput, RaytrainError
from raytrain.storage import Location
from raytrain.trial.last_failure import RepeatedFailure, repeated_failure


def test_the_same_error_at_the_same_iteration_is_repeated(tmp_path: Any) -> None:
    def fails(iteration, error):
        return repeated_failure(Location.of(tmp_path), iteration, error)

    assert fails(7, ValueError("object at 0x7f00aa")) is None
    assert fails(8, ValueError("object at 0x7f00aa")) is None
    assert fails(8, ValueError("another")) is None
    repeated = fails(8, ValueError("another"))
    assert isinstance(repeated, RepeatedFailure)
    assert "Iteration 8 failed again with the same error" in str(repeated)
    assert not may_retry(repeated)


def test_addresses_do_not_make_errors_different(tmp_path: Any) -> None:
    trial = Location.of(tmp_path)
    assert repeated_failure(trial, 3, KeyError("<Thing at 0x7f0011>")) is None
    assert repeated_failure(trial, 3, KeyError("<Thing at 0x7f9922>")) is not None


def test_a_damaged_memory_remembers_nothing(tmp_path: Path) -> None:
    (tmp_path / "last_failure.json").write_text('{"iteration": 3, "err')
    assert repeated_failure(Location.of(tmp_path), 3, KeyError("x")) is None


def test_bad_input_is_not_retried_and_a_cause_is_looked_at() -> None:
    class FromRay(Exception):
        cause = BadInput("no such thing")

    assert may_retry(None)
    assert may_retry(OSError("gone"))
    assert not may_retry(FromRay())


def test_errors_cross_processes_whatever_their_arguments() -> None:
    class Local(Exception):
        pass

    class Odd(RaytrainError):
        pass

    assert str(able_to_travel(Local("boom"))) == "Local: boom"
    kept = ValueError("plain")
    assert able_to_travel(kept) is kept
    error = pickle.loads(pickle.dumps(BadInput("what was found")))
    assert (type(error), str(error), error.exit_code) == (BadInput, "what was found", 2)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Worker exit detail: ... connection error code 2. End of file. OOM", "killed or crashed"),
        ("killed by the memory monitor", "lack of memory"),
        (
            "The actor died because of an error raised in its creation task\n  x\nValueError: size",
            "it could not start: ValueError: size",
        ),
        ("something new", "something new"),
    ],
)
def test_deaths_are_told_in_a_few_words(said: str, told: str) -> None:
    assert told in why_it_died(RuntimeError(said))


def test_a_signal_before_training_ends_it_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts, pytest.raises(InterruptedEarly):
        signal.raise_signal(signal.SIGTERM)
    assert interrupts.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_during_training_a_signal_is_only_noted() -> None:
    with Interrupts() as interrupts, interrupts.deferred():
        signal.raise_signal(signal.SIGINT)
        assert interrupts.received is signal.SIGINT


def test_another_thread_takes_no_signals() -> None:
    before = signal.getsignal(signal.SIGINT)
    raised = []

    def enter() -> None:
        try:
            with Interrupts():
                pass
        except ValueError as error:
            raised.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert raised == []
    assert signal.getsignal(signal.SIGINT) is before
