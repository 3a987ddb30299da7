from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raytrain.arithmetic.settings import ROLES, ArithmeticSettings
from raytrain.trial.arithmetic import changed_settings, other_machines, record

SETTINGS = ArithmeticSettings(dict.fromkeys(ROLES, 1), hash_seed=1)
HERE, THERE = {"cpu": "this CPU"}, {"cpu": "that CPU"}


def entry(
    learner: str = "1:a", env_runner: str = "1:b", machine: Any = HERE, **settings: Any
) -> dict[str, Any]:
    computed_by = {"learner": (learner, machine), "env_runner": (env_runner, machine)}
    return record(replace(SETTINGS, **settings), computed_by)


def test_nothing_differs_from_itself() -> None:
    assert other_machines(entry(), entry(), local=frozenset()) is None
    assert changed_settings(entry(), entry()) is None


@pytest.mark.parametrize(
    ("now", "local", "expected"),
    [
        ({"learner": "1:x"}, {"learner"}, ("learner", "this machine computes differently: ")),
        ({"learner": "1:x"}, {}, ("learner", "the learner's machine computes differently: ")),
        ({"env_runner": "1:x"}, {}, ("env_runner", "the env runners' machine computes ")),
    ],
)
def test_a_role_that_computes_differently(now: Any, local: Any, expected: tuple[str, str]) -> None:
    found = other_machines(entry(), entry(**now, machine=THERE), local=frozenset(local))
    assert found is not None
    assert found[0] == expected[0]
    assert found[1].startswith(expected[1])
    assert found[1].endswith("that CPU; the run began on this CPU")


def test_what_an_older_raytrain_wrote_cannot_be_compared() -> None:
    assert other_machines({}, entry(), local=frozenset()) is None
    assert other_machines(entry(learner="0:z"), entry(), local=frozenset()) is None
    assert changed_settings({}, entry()) is None


def test_changed_settings_are_named() -> None:
    threads = {"trial": 2, "learner": 1, "env_runner": 1}
    assert changed_settings(entry(), entry(threads=threads)) == (
        "the threads of arithmetic changed from 1 to 2 (trial), 1 (learner), 1 (env_runner)"
    )
    assert changed_settings(entry(), entry(portable=True)) == (
        "debugging.portable changed from False to True"
    )
    assert changed_settings(entry(), entry(hash_seed=2)) == "the order of hashes changed"
