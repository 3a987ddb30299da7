from __future__ import annotations

import os
import pickle

import pytest

from raytrain.arithmetic.machine import (
    OtherNodeNeeded,
    describe,
    describe_machine,
    difference,
    other_arithmetic,
)

INTEL = {
    "cpu": "Intel Xeon Platinum 8481C",
    "instructions": "avx2 avx512f",
    "libraries": "glibc 2.36, openblas 0.3.31 SkylakeX",
}
AMD = {
    "cpu": "AMD EPYC 7B13",
    "instructions": "avx2",
    "libraries": "glibc 2.36, openblas 0.3.31 Haswell",
}


def test_a_difference_names_both_machines_and_only_what_differs() -> None:
    assert other_arithmetic("this machine", AMD, INTEL) == (
        "this machine computes differently: Intel Xeon Platinum 8481C with openblas 0.3.31 "
        "SkylakeX, avx512f; the run began on AMD EPYC 7B13 with openblas 0.3.31 Haswell"
    )
    assert other_arithmetic("the env runners", AMD, INTEL).startswith("the env runners compute ")


def test_a_variable_that_chooses_kernels_is_named() -> None:
    chosen = {**AMD, "variables": "MKL_CBWR=COMPATIBLE"}
    assert difference(AMD, chosen) == (
        "AMD EPYC 7B13 with MKL_CBWR=COMPATIBLE; the run began on AMD EPYC 7B13"
    )


def test_machines_that_are_described_alike() -> None:
    assert difference(AMD, dict(AMD)) == "AMD EPYC 7B13, described as before, rounds otherwise"


def test_this_machine_is_described_without_paths_and_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    described = describe_machine.__wrapped__()
    text = describe(described)
    assert described["cpu"] in text
    assert "MKL_CBWR=COMPATIBLE" in text
    assert "hidden" not in str(described)
    assert os.sep not in str(described).replace("MKL_CBWR", "")


def test_the_nodes_to_leave_survive_pickling() -> None:
    needed = OtherNodeNeeded("it computes differently")
    needed.nodes = ("a", "b")
    assert pickle.loads(pickle.dumps(needed)).nodes == ("a", "b")
