"""Portable arithmetic: the same bits on every x86-64 CPU with AVX2 and FMA, whoever made it.

Libraries choose their loops by the CPU that they find. `VARIABLES` makes each choose its loops for
AVX2, before it is loaded. What is left after that differs between CPUs of different makers all the
same, so `make_portable` takes it out of Torch:

    MKL                   its sums differ by the maker of the CPU. Its compatible mode, which does
                          not, multiplies float32 matrices at a fifth of the speed. NumPy's OpenBLAS
                          multiplies them instead
    MKL's roots, asin,    begin with instructions (such as rsqrtps) that have other bits on CPUs of
    acos and atan         another maker, in its compatible mode too. NumPy computes them instead
    oneDNN and NNPACK     cut convolutions and LSTMs into blocks by the sizes of the CPU's caches
"""

from __future__ import annotations

import os
from functools import cache

from raytrain.arithmetic.machine import require_portable

MARK = "RAYTRAIN_PORTABLE"

VARIABLES: dict[str, str] = {
    MARK: "1",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "COMPATIBLE",
    # Should oneDNN be called in spite of `make_portable`, by a library of the user's.
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    # What NumPy has loops for besides AVX2 and FMA: as 2.4 calls it, and as earlier versions do.
    # NumPy ignores names that it does not know.
    "NPY_DISABLE_CPU_FEATURES": (
        "X86_V4 AVX512F AVX512CD AVX512_KNL AVX512_KNM AVX512_SKX AVX512_CLX AVX512_CNL "
        "AVX512_ICL AVX512_SPR"
    ),
    "NUMBA_CPU_NAME": "haswell",
    # Haswell has both. They are named so that Numba does not ask the CPU, and so that its cache on
    # disk, whose key holds these texts, keeps these loops apart from all others.
    "NUMBA_CPU_FEATURES": "+avx2,+fma",
    # Intel's library of vector functions, which Numba uses where it is installed.
    "NUMBA_DISABLE_INTEL_SVML": "1",
}
"""Environment variables that each process must have before it loads NumPy, Torch or Numba."""


def is_portable() -> bool:
    """Whether this process computes portably."""
    return os.environ.get(MARK) == "1"


@cache
def make_portable() -> None:
    """Call in a process with `VARIABLES` before it computes anything. In others this does nothing;
    neither does a second call. Raises `BadInput` on a CPU without AVX2 and FMA."""
    if is_portable():
        from raytrain.arithmetic import portable_torch

        require_portable()
        portable_torch.replace_kernels()
