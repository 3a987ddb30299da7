"""CPUs on which the digests of portable arithmetic were never computed."""

from __future__ import annotations

from typing import Any

import pytest

from raytrain.arithmetic.machine import describe_machine


def unseen(test: Any) -> Any:
    """Have a test that compares with such digests run by `make test-all` alone on a CPU with
    AVX-512: they were seen on CPUs that have AVX2 alone, a real one and an emulated one."""
    has_avx512 = "avx512f" in describe_machine()["instructions"].split()
    return pytest.mark.slow(test) if has_avx512 else test
