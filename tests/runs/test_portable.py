"""Portable arithmetic: runs end with the weights that are written down here, on every x86-64 CPU
with AVX2, and whatever kernels the environment asks for.

The digests change with every change to what a run computes, and with the versions of libraries.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence

import pytest
from support.paths import ENVS, ROOT, TESTS
from support.unseen_cpus import unseen

from raytrain.arithmetic.portable import VARIABLES

GOLDEN = {
    "mlp": "599d76ea9c80f4591a22e2f30d3f93ac752572cc9d218ca701204dd185bb4c4e",
    "wide-mlp": "443dc6c3564e6c8987fd6f11cc44afbc9dd3507064825562c527bf08984714ef",
    "pendulum": "893cd6fe3520e294224a8c0f4ae8e39c775f4e177d43971b8b834058dbdd38ed",
    "cnn": "21eaa57b89cf82a5dd3ee9ae2e95d49b0ef861da00d06719ec64a1a502d6bbf2",
    "lstm": "41bd1ec09d226a0af5639cd645c6a5fea11c0a2ddba8800731c4fc8e43371703",
}
OTHERS = {
    **{f"OpenBLAS {core}": {"OPENBLAS_CORETYPE": core} for core in ("Zen", "SkylakeX")},
    **{f"OpenBLAS {core}": {"OPENBLAS_CORETYPE": core} for core in ("Sandybridge", "Prescott")},
    **{f"MKL {mode}": {"MKL_CBWR": mode} for mode in ("COMPATIBLE", "AVX2")},
    **{f"Torch {name}": {"ATEN_CPU_CAPABILITY": name} for name in ("default", "avx2")},
    "NumPy": {"NPY_DISABLE_CPU_FEATURES": "X86_V3 AVX2 FMA3"},
    "Numba": {"NUMBA_CPU_NAME": "generic"},
    "oneDNN": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
}
ALL = {name: value for other in OTHERS.values() for name, value in other.items()}
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def digests(
    variables: Mapping[str, str], *names: str, python: Sequence[str] = (sys.executable,)
) -> object:
    paths = os.pathsep.join(map(str, (ROOT, TESTS, ENVS)))
    env = {**os.environ, **ONE_THREAD, **variables, "PYTHONPATH": paths}
    command = [*python, "-m", "support.portable_runs", *names]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_weights_are_those_of_every_machine() -> None:
    assert digests(VARIABLES) == GOLDEN


@pytest.mark.slow
@unseen
def test_other_kernels_asked_for_from_outside_change_nothing() -> None:
    assert digests({**ALL, **VARIABLES}) == GOLDEN


@pytest.mark.slow
@pytest.mark.parametrize("other", OTHERS)
def test_each_of_them_changes_nothing(other: str) -> None:
    assert digests({**OTHERS[other], **VARIABLES}) == GOLDEN


@pytest.mark.slow
def test_without_portable_arithmetic_they_change_the_weights() -> None:
    """Otherwise the tests above could not fail."""
    assert digests({}, "wide-mlp") != digests(ALL, "wide-mlp")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("qemu-x86_64-static"), reason="qemu-user is not installed")
def test_an_emulated_cpu_of_another_maker_agrees() -> None:
    """One with Intel's name, and with other caches and approximate instructions than any CPU."""
    emulated = ("qemu-x86_64-static", "-cpu", "Haswell", sys.executable)
    assert digests(VARIABLES, python=emulated) == GOLDEN
