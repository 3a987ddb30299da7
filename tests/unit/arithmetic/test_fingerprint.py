"""Fingerprints of this machine, and of others that libraries' variables stand for."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from raytrain.arithmetic.fingerprint import Fingerprint, FixedNumbers, comparable

PROGRAM = """
import torch
from raytrain.arithmetic.fingerprint import Fingerprint, add_libraries
fingerprint = Fingerprint()
add_libraries(fingerprint)
print(fingerprint.text())
"""


def of_a_process(**variables: str) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **variables}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, check=True
    )
    return ended.stdout.decode().strip()


@pytest.fixture(scope="module")
def usual() -> str:
    return of_a_process()


def test_processes_of_one_machine_have_one_fingerprint(usual: str) -> None:
    assert of_a_process(PYTHONHASHSEED="5") == usual


@pytest.mark.parametrize(
    "variables",
    [
        {"OPENBLAS_CORETYPE": "Sandybridge"},
        {"MKL_CBWR": "COMPATIBLE"},
        {"ATEN_CPU_CAPABILITY": "default"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_other_kernels_have_another_fingerprint(usual: str, variables: dict[str, str]) -> None:
    other = of_a_process(**variables)
    assert other != usual
    assert comparable(other, usual)


def test_every_value_type_and_shape_counts() -> None:
    values = [
        np.zeros(4, np.float32),
        np.zeros(4, np.float64),
        np.zeros((2, 2), np.float32),
        np.array([0, 0, 0, -0.0], np.float32),
        np.array([0, 0, 0, 1e-45], np.float32),
    ]
    texts = []
    for value in values:
        fingerprint = Fingerprint()
        fingerprint.add(value)
        texts.append(fingerprint.text())
    assert len(set(texts)) == len(values)


def test_fixed_numbers_are_these_on_every_machine() -> None:
    numbers = FixedNumbers()
    assert numbers.uniform((3,)).tolist() == [
        0.7012484073638916,
        0.27392327785491943,
        0.022272944450378418,
    ]
    assert numbers.integers(10, (5,)).tolist() == [2, 3, 0, 0, 0]


def test_fingerprints_of_another_format_cannot_be_compared() -> None:
    assert not comparable("1:ab", "2:ab")
    assert not comparable("1-8:ab", "1-4:ab")
    assert comparable("1-8:ab", "1-8:cd")
