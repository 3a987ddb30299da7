"""Which failures are retried, and how deaths are told."""

from __future__ import annotations

import pickle

import pytest

from raytrain.cluster.failures import able_to_travel, may_retry, why_it_died
from raytrain.errors import BadInput, RaytrainError


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
def test_why_a_process_died_is_said_in_a_few_words(said: str, told: str) -> None:
    assert told in why_it_died(RuntimeError(said))
