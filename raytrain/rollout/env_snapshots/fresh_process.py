"""Calls of a function in processes that have never seen the environment.

In one process, state kept in a module or a class outlives the object it belongs to, and a
snapshot without it looks complete. So the snapshots are also restored in a new Python process. It
gets the function, `make_env` and the arguments (by cloudpickle) and imports what the environment
imports and Gymnasium, nothing else of weight. The environment may print what it likes: the answer
comes in a file.

A new process has the hash order of a PYTHONHASHSEED, which the caller chooses: Python fixes it when
it starts.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
from gymnasium.envs import registration

from raytrain.rollout.env_snapshots.base import SnapshotError, user_code

_HANG_S = 300
"""Not a limit for slow environments, whose script is short; it ends a process that hangs."""


def in_fresh_process(
    function: Callable[..., Any], make_env: Callable[[], Any], *arguments: Any, hash_seed: int
) -> Any:
    """`function(make_env, *arguments)` in a new process with this PYTHONHASHSEED. What it returns
    must pickle.

    Raises:
        SnapshotError: what the function raised there; or the process hung or died.
    """
    with fresh_processes([hash_seed]) as (process,):
        process.call(function, make_env, *arguments)
        return process.result()


@contextmanager
def fresh_processes(hash_seeds: Sequence[int]) -> Iterator[list[FreshProcess]]:
    """One process for each PYTHONHASHSEED; they end with the body. The objects of two of them have
    different addresses, in the low bits too."""
    # The new processes import this module too, and need nothing of storage.
    from raytrain.storage.scratch import scratch

    with scratch("proof") as directory, ExitStack() as stack:
        yield [
            stack.enter_context(FreshProcess(Path(directory, f"{number}"), number, hash_seed))
            for number, hash_seed in enumerate(hash_seeds)
        ]


class FreshProcess:
    """A process for one `call`. It imports what it needs while its caller does something else."""

    def __init__(self, path: Path, number: int, hash_seed: int) -> None:
        """`path`: where its files are; they have suffixes."""
        self._path = path
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from {__name__} import answer; answer({str(path)!r}, {number}); "
            # A thread of the environment would keep the process alive.
            "import atexit, os; atexit._run_exitfuncs(); os._exit(0)"
        )
        with path.with_suffix(".err").open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                env={**os.environ, "PYTHONHASHSEED": f"{hash_seed}"},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def __enter__(self) -> FreshProcess:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._process:
            self._process.kill()

    def call(
        self, function: Callable[..., Any], make_env: Callable[[], Any], *arguments: Any
    ) -> None:
        """Begin the call.

        Raises:
            SnapshotError: `make_env` cannot be sent.
        """
        with user_code("sending the environment's constructor to a fresh process"):
            pickled_env = cloudpickle.dumps(make_env)
            task = cloudpickle.dumps((_registered_specs(), pickled_env, function, arguments))
        self._path.with_suffix(".task").write_bytes(task)
        assert self._process.stdin is not None
        self._process.stdin.close()  # It waits for this.

    def result(self) -> Any:
        """What the function returned.

        Raises:
            SnapshotError: what the function raised; or the process hung or died.
        """
        try:
            code = self._process.wait(_HANG_S)
        except subprocess.TimeoutExpired:
            raise SnapshotError(f"did not answer within {_HANG_S} s") from None
        result = self._path.with_suffix(".result")
        if not result.exists():
            written = self._path.with_suffix(".err").read_text(errors="replace")
            last = (written.strip().splitlines() or ["no output"])[-1]
            raise SnapshotError(f"ended with exit code {code} ({last[:300]})")
        failure, returned = pickle.loads(result.read_bytes())
        if failure is not None:
            raise SnapshotError(failure)
        return returned


def answer(path: str, number: int) -> None:
    """The new process's main function."""
    sys.stdin.read()
    task, result = Path(path).with_suffix(".task"), Path(path).with_suffix(".result")
    specs, pickled_env, function, arguments = pickle.loads(task.read_bytes())
    # Objects of every size lie elsewhere than in the process before.
    padding = [bytes(size) for size in range(0, 512, 16) for _ in range(number)]
    failure = returned = None
    try:
        with user_code("making the environment"):
            gym.registry = registration.registry = _Registry(registration.registry, specs)
            make_env = pickle.loads(pickled_env)
        returned = function(make_env, *arguments)
    except SnapshotError as error:
        failure = str(error)
    del padding
    result.write_bytes(pickle.dumps((failure, returned)))


class _Registry(dict[str, Any]):
    """Gymnasium's registry, with the caller's specs. A spec is unpickled when it is looked up: that
    may import anything (RLlib's own are among them), and fail."""

    def __init__(self, present: dict[str, Any], pickled: dict[str, bytes]) -> None:
        super().__init__(present)
        self._pickled = dict(pickled)

    def __missing__(self, name: str) -> Any:
        spec = self[name] = pickle.loads(self._pickled.pop(name))
        return spec

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._pickled

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self._pickled else super().get(name, default)

    def values(self) -> Any:
        """Gymnasium searches all specs for the newest version of a name, for which it
        needs their ids."""
        others = self._pickled.keys() - self.keys()
        return [*super().values(), *(registration.EnvSpec(id=name) for name in others)]


def _registered_specs() -> dict[str, bytes]:
    """Gymnasium's registry as this process has it, by id: the caller may have
    registered environments in code that the new process does not run. Specs that do not
    pickle are left out."""
    specs = {}
    for name, spec in gym.registry.items():
        if isinstance(spec.entry_point, str) and spec.entry_point.startswith("gymnasium."):
            continue  # registered by importing gymnasium
        try:
            specs[name] = cloudpickle.dumps(spec)
        except Exception:  # a user's entry point or argument: it may raise anything
            continue
    return specs
