from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from raytrain.arithmetic.settings import ROLES, ArithmeticSettings

SETTINGS = ArithmeticSettings({"trial": 2, "learner": 1, "env_runner": 3}, hash_seed=17)


def test_settings_come_back_from_json() -> None:
    stored = json.loads(json.dumps(SETTINGS.to_dict()))
    assert ArithmeticSettings.read(stored) == SETTINGS


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"threads": {"trial": 1}},
        {"threads": {"trial": 1, "learner": 0, "env_runner": 1}},
        {"threads": {"trial": 1, "learner": True, "env_runner": 1}},
        {"hash_seed": -1},
        {"hash_seed": 2**32},
        {"hash_seed": "1"},
        {"portable": 1},
    ],
)
def test_damaged_settings_are_refused(wrong: dict[str, Any]) -> None:
    stored = {**SETTINGS.to_dict(), **wrong} if wrong else {}
    with pytest.raises(ValueError, match="arithmetic"):
        ArithmeticSettings.read(stored)


def test_every_thread_variable_is_set_whatever_the_environment_says() -> None:
    variables = SETTINGS.variables()
    for name in ("OMP", "MKL", "OPENBLAS"):
        assert variables[f"{name}_NUM_THREADS"] == "1"
    # Numba allows for no more than this number.
    assert variables["NUMBA_NUM_THREADS"] == "3"
    assert variables["PYTHONHASHSEED"] == "17"


PROGRAM = """
import sys
from raytrain.arithmetic.settings import use_threads
use_threads(int(sys.argv[1]))
import threadpoolctl, torch
pools = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
print(torch.get_num_threads(), sorted(set(pools)), hash("left"))
"""


def test_a_process_has_its_threads_whatever_its_environment_says() -> None:
    answers = set()
    for outside in (
        {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        {"MKL_NUM_THREADS": "3"},
    ):
        variables = {**os.environ, **outside, **SETTINGS.variables()}
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, "2"], env=variables, capture_output=True, check=True
        )
        answers.add(ended.stdout.decode().strip())
    (answer,) = answers
    assert answer.startswith("2 [2] ")


def test_roles_are_those_of_the_settings() -> None:
    assert set(SETTINGS.threads) == set(ROLES)
