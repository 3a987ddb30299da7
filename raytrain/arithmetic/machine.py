"""What explains that two processes compute differently: the CPU, what libraries choose by it, GPUs.

    {"cpu": "AMD EPYC 7763", "instructions": "avx2 fma",
     "libraries": "glibc 2.36, openblas 0.3.31 Haswell, torch AVX2",
     "variables": "MKL_CBWR=COMPATIBLE",
     "gpu": "NVIDIA H100 80GB HBM3, driver 580.159, CUDA 13.0, cuDNN 91900"}

Nothing here names a person, a host or a path.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from raytrain.errors import BadInput, RaytrainError


class OtherArithmetic(BadInput):
    """A process computes differently, and the config does not allow it."""


class OtherNodeNeeded(RaytrainError):
    """A process computes differently, and another node may compute alike. `nodes`: the ids of those
    that do not."""

    loss = "relocation"
    nodes: tuple[str, ...] = ()


_SEPARATORS = {"gpu": ", ", "libraries": ", ", "variables": ", ", "instructions": " "}

_CHOOSING = (
    "OPENBLAS_CORETYPE",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ATEN_CPU_CAPABILITY",
    "NPY_DISABLE_CPU_FEATURES",
    "NPY_ENABLE_CPU_FEATURES",
    "NUMBA_CPU_NAME",
    "NUMBA_CPU_FEATURES",
    "NUMBA_ENABLE_AVX",
    "NUMBA_DISABLE_INTEL_SVML",
    "ONEDNN_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "DNNL_DEFAULT_FPMATH_MODE",
    "GLIBC_TUNABLES",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
"""Environment variables by which libraries choose kernels. No other variable is recorded."""

# In the order of what they can do; those that libraries choose kernels by.
_INSTRUCTIONS = (
    "sse4_2",
    "avx",
    "fma",
    "avx2",
    "avx512f",
    "avx512_bf16",
    "amx_tile",
    "asimd",
    "sve",
)


@cache
def describe_machine() -> dict[str, str]:
    """Of this process, as it computes now: libraries that it has not imported are left out."""
    described = {"cpu": cpu_model(), "instructions": " ".join(_instructions())}
    described["libraries"] = ", ".join(_libraries())
    chosen = [f"{name}={os.environ[name]}" for name in _CHOOSING if os.environ.get(name)]
    if chosen:
        described["variables"] = ", ".join(chosen)
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        described["gpu"] = _gpu(torch)
    return described


def describe(machine: Mapping[str, str]) -> str:
    """A machine in a few words: `AMD EPYC 7763 with glibc 2.36, openblas 0.3.31 Haswell`."""
    return _with(machine, _unlike(machine, {"instructions": machine.get("instructions", "")}))


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """The end of a sentence: what `now` is, and what it was `before`."""
    here, there = _unlike(now, before), _unlike(before, now)
    if before.get("cpu") == now.get("cpu") and not here and not there:
        return f"{_with(now, [])}, described as before, rounds otherwise"
    return f"{_with(now, here)}; the run began on {_with(before, there)}"


def _with(machine: Mapping[str, str], parts: list[str]) -> str:
    return " with ".join(
        [machine.get("cpu", "an unknown CPU"), *([", ".join(parts)] if parts else [])]
    )


def _unlike(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """What the first has and the second lacks, besides the CPU."""
    return [
        part
        for key in ("gpu", "libraries", "variables", "instructions")
        for part in (one.get(key) or "").split(_SEPARATORS[key])
        if part and part not in (other.get(key) or "").split(_SEPARATORS[key])
    ]


def other_arithmetic(what: str, before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """A sentence without its end: that `what` computes differently, and the difference."""
    verb = "compute" if what.endswith("s") else "computes"
    return f"{what} {verb} differently: {difference(before, now)}"


def cpu_model() -> str:
    """As the CPU calls itself."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def require_portable() -> None:
    """Raise `BadInput` if this CPU cannot compute portably (see `portable`)."""
    missing = {"avx2", "fma"} - set(_instructions())
    if missing:
        raise BadInput(
            f"debugging.portable needs an x86-64 CPU with AVX2 and FMA; this one, {cpu_model()}, "
            f"lacks {' and '.join(sorted(map(str.upper, missing)))}. Leave the key out, or train "
            "on another machine."
        )


def _instructions() -> list[str]:
    lines = (line for line in _cpuinfo() if line.startswith(("flags", "Features")))
    flags = next(lines, "").split()
    return [name for name in _INSTRUCTIONS if name in flags]


def _cpuinfo() -> list[str]:
    """Its lines; none where there is no such file."""
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def _libraries() -> list[str]:
    import threadpoolctl

    found = {
        f"{entry['internal_api']} {entry['version']} {entry['architecture']}"
        for entry in threadpoolctl.threadpool_info()
        if "architecture" in entry
    }
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        found.add(f"torch {torch.backends.cpu.get_cpu_capability()}")
    if "numba" in sys.modules:
        found.add(f"numba {_numba_target()}")
    found.add(" ".join(platform.libc_ver()).strip() or platform.system())
    return sorted(found)


def _numba_target() -> str:
    import numba

    try:
        compiler = version("llvmlite")
    except PackageNotFoundError:
        compiler = "unknown"
    target = numba.config.CPU_NAME
    if target is None:
        import llvmlite.binding

        target = llvmlite.binding.get_host_cpu_name()
    return f"{target} (llvmlite {compiler})"


def _gpu(torch: Any) -> str:
    names = sorted({torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())})
    parts = [", ".join(names), f"CUDA {torch.version.cuda}"]
    parts.append(f"cuDNN {torch.backends.cudnn.version()}")
    driver = Path("/proc/driver/nvidia/version")
    if driver.exists():
        words = driver.read_text().split()
        numbers = [word for word in words if word.replace(".", "").isdigit() and "." in word]
        parts.append(f"driver {numbers[0]}" if numbers else "driver unknown")
    return ", ".join(parts)
