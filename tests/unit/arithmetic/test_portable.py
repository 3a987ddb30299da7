"""What `VARIABLES` says to the installed versions of NumPy and Numba."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

from raytrain.arithmetic.portable import VARIABLES

# Approximations whose bits are each maker's own.
APPROXIMATIONS = """
import numba
from raytrain.ppo.fast_update import kernels
loops = [kernels.add_bias_and_tanh, kernels.back_through_tanh, kernels.adam]
for loop in [*loops, kernels.categorical(), kernels.gaussian()]:
    compiled = numba.jit(loop.nopython_signatures[0], **loop.targetoptions)(loop.py_func)
    (code,) = compiled.inspect_asm().values()
    assert "xmm" in code, loop
    found = [name for name in ("zmm", "rcpps", "rcpss", "rsqrtps", "rsqrtss") if name in code]
    assert not found, (loop, found)
"""


def test_numpy_has_no_loops_for_more_than_avx2() -> None:
    known = np.show_config(mode="dicts")["SIMD Extensions"]
    names = {*known.get("found", []), *known.get("not found", [])}
    allowed = {"X86_V3", "SSSE3", "SSE41", "POPCNT", "SSE42", "AVX", "F16C", "FMA3", "AVX2"}
    assert names - allowed <= set(VARIABLES["NPY_DISABLE_CPU_FEATURES"].split())


def test_compiled_loops_have_no_approximations() -> None:
    command = [sys.executable, "-c", APPROXIMATIONS]
    subprocess.run(command, check=True, env={**os.environ, **VARIABLES})
