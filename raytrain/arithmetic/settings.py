"""The settings of arithmetic that a run has from its first start to its end.

They are in `experiment.json`. Every process of the run gets them: as environment variables, which
libraries read when they are imported, and by `use_threads` in the process.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from raytrain.arithmetic import portable

Role: TypeAlias = Literal["trial", "learner", "env_runner"]
THREADS = "threads"
"""The key of `learner_config_dict` under which processes find their numbers of threads."""
ROLES: tuple[Role, ...] = ("trial", "learner", "env_runner")

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
# Other ways to have other numbers, from outside.
_FIXED_VARIABLES = {
    "OMP_DYNAMIC": "FALSE",
    "OMP_THREAD_LIMIT": "2147483647",
    "MKL_DYNAMIC": "FALSE",
    "MKL_DOMAIN_NUM_THREADS": "",
    # How Numba compiles an environment's loops.
    "NUMBA_OPT": "3",
}


@dataclass(frozen=True)
class ArithmeticSettings:
    """`threads`: of arithmetic, in each process of a role. `hash_seed`: PYTHONHASHSEED of every
    process. `portable`: see `portable`."""

    threads: Mapping[Role, int]
    hash_seed: int
    portable: bool = False

    @classmethod
    def read(cls, plain: Any) -> ArithmeticSettings:
        """What `to_dict` wrote. Raises ValueError for anything else."""
        try:
            threads = {role: _count(plain["threads"][role]) for role in ROLES}
            hash_seed, is_portable = plain["hash_seed"], plain["portable"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"arithmetic: {plain!r} lacks {error}") from None
        if (
            type(hash_seed) is not int
            or not 0 <= hash_seed < 2**32
            or type(is_portable) is not bool
        ):
            raise ValueError(f"arithmetic: {plain!r} has no valid hash_seed and portable")
        return cls(threads, hash_seed, is_portable)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def variables(self) -> dict[str, str]:
        """Environment variables of every process of the run, set before it starts."""
        # A process with more threads sets its number itself; Numba allows for no more than this.
        threads = dict.fromkeys(_THREAD_VARIABLES, "1")
        threads["NUMBA_NUM_THREADS"] = str(max(self.threads.values()))
        hash_order = {"PYTHONHASHSEED": str(self.hash_seed)}
        return {**threads, **_FIXED_VARIABLES, **hash_order, **self._kernels()}

    def _kernels(self) -> dict[str, str]:
        return portable.VARIABLES if self.portable else {portable.MARK: "0"}


def use_threads(number: int) -> None:
    """Compute with so many threads in this process, whatever its environment says."""
    import threadpoolctl
    import torch

    torch.set_num_threads(number)
    threadpoolctl.threadpool_limits(number)
    if "numba" in sys.modules:
        numba: Any = importlib.import_module("numba")
        numba.set_num_threads(min(number, numba.config.NUMBA_NUM_THREADS))


def use_threads_of(role: Role, settings: Mapping[str, Any]) -> None:
    """The same with the number under `THREADS` in `settings`, if there is one."""
    number = settings.get(THREADS, {}).get(role)
    if number is not None:
        use_threads(number)


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"arithmetic: {value!r} is not a number of threads")
    return value
