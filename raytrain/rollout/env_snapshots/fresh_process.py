"""Calls of a function in a process that has never seen the environment.

In one process, state kept in a module or a class outlives the object it belongs to, and a
snapshot without it looks complete. So the snapshots are also restored in a new Python process. It
gets the function, `make_env` and the arguments (by cloudpickle) and imports what the environment
imports and Gymnasium, nothing else of weight. The environment may print what it likes: the answer
comes in a file.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
from gymnasium.envs import registration

from raytrain.rollout.env_snapshots.base import SnapshotError, user_code
from raytrain.storage.scratch import scratch

_HANG_S = 300
"""Not a limit for slow environments, whose script is short; it ends a process that hangs."""


def in_fresh_process(
    function: Callable[..., Any], make_env: Callable[[], Any], *arguments: Any
) -> Any:
    """`function(make_env, *arguments)` there. What it returns must pickle.

    Raises:
        SnapshotError: what the function raised there; or the process hung or died.
    """
    with user_code("sending the environment's constructor to a fresh process"):
        pickled_env = cloudpickle.dumps(make_env)
        task = cloudpickle.dumps((_registered_specs(), pickled_env, function, arguments))
    with scratch("proof") as directory:
        task_path, result_path = Path(directory, "task"), Path(directory, "result")
        task_path.write_bytes(task)
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from {__name__} import answer; answer({str(task_path)!r}, {str(result_path)!r}); "
            # A thread of the environment would keep the process alive.
            "import atexit, os; atexit._run_exitfuncs(); os._exit(0)"
        )
        try:
            ended = subprocess.run(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_HANG_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SnapshotError(f"did not answer within {_HANG_S} s") from None
        if not result_path.exists():
            lines = ended.stderr.decode(errors="replace").strip().splitlines() or ["no output"]
            raise SnapshotError(f"ended with exit code {ended.returncode} ({lines[-1][:300]})")
        failure, result = pickle.loads(result_path.read_bytes())
    if failure is not None:
        raise SnapshotError(failure)
    return result


def answer(task_path: str, result_path: str) -> None:
    """The new process's main function."""
    specs, pickled_env, function, arguments = pickle.loads(Path(task_path).read_bytes())
    failure = result = None
    try:
        with user_code("making the environment"):
            gym.registry = registration.registry = _Registry(registration.registry, specs)
            make_env = pickle.loads(pickled_env)
        result = function(make_env, *arguments)
    except SnapshotError as error:
        failure = str(error)
    Path(result_path).write_bytes(pickle.dumps((failure, result)))


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
