"""The same proof in a process that has never seen the environment.

In one process, state kept in a module or a class outlives the object it belongs to, and a snapshot
without it looks complete. So the snapshots are also restored in a new Python process, which is
given `make_env` (by cloudpickle), the snapshots and the expected frames, and answers with a
sentence. It imports what the environment imports and Gymnasium, nothing else of weight. Its
environments print what they like: the answer comes in a file.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
from gymnasium.envs import registration

from raytrain.rng import RngStreams
from raytrain.rollout.env_snapshots import continuation
from raytrain.rollout.env_snapshots.protocol import SnapshotError, Strategy
from raytrain.rollout.env_snapshots.rehearsal import Rehearsal, perform, user_code
from raytrain.rollout.env_snapshots.strategies import snapshotter
from raytrain.storage.scratch import scratch

_HANG_S = 300
"""Not a limit for slow environments, whose rehearsal is short; it ends a process that hangs."""


@dataclass(frozen=True)
class Taken:
    """A snapshot as storage would hold it, the streams at that moment, and the operation before."""

    index: int
    pickled: bytes
    streams: dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What the process is to do; without a strategy, the rehearsal from its start."""

    make_env: bytes
    specs: dict[str, bytes]
    rehearsal: Rehearsal
    strategy: Strategy | None
    taken: tuple[Taken, ...]


def failure_in_fresh_process(
    make_env: continuation.MakeEnv,
    rehearsal: Rehearsal,
    strategy: Strategy,
    taken: tuple[Taken, ...],
) -> str | None:
    """Why the snapshots do not continue there as here; None if they do."""
    return _ask(make_env, rehearsal, strategy, taken)["failure"]  # type: ignore[no-any-return]


def frames_in_fresh_process(
    make_env: continuation.MakeEnv, rehearsal: Rehearsal, start: Taken
) -> list[Any] | None:
    """What the rehearsal's operations return there; None if they fail."""
    return _ask(make_env, rehearsal, None, (start,))["frames"]  # type: ignore[no-any-return]


def answer(task_path: str, result_path: str) -> None:
    """The new process's main function."""
    task: Task = pickle.loads(Path(task_path).read_bytes())
    failure = frames = None
    try:
        with user_code("making the environment"):
            _register(task.specs)
            make_env = pickle.loads(task.make_env)
        frames = _from_start(make_env, task) if task.strategy is None else None
        if task.strategy is not None:
            _continue(make_env, task.strategy, task)
    except SnapshotError as error:
        failure = str(error)
    Path(result_path).write_text(json.dumps({"failure": failure, "frames": frames}))


def _continue(make_env: continuation.MakeEnv, strategy: Strategy, task: Task) -> None:
    own = snapshotter(strategy)
    copies = [
        continuation.restore(
            make_env,
            own,
            pickle.loads(each.pickled),
            RngStreams.from_state(each.streams),
            index=each.index,
            rehearsal=task.rehearsal,
        )
        for each in task.taken
    ]
    continuation.go_on(copies, task.rehearsal)


def _from_start(make_env: continuation.MakeEnv, task: Task) -> list[Any]:
    with RngStreams.from_state(task.taken[0].streams).active():
        with user_code("making the environment"):
            env = make_env()
        return [
            perform(env, each, task.rehearsal.draws_torch) for each in task.rehearsal.operations
        ]


def _ask(
    make_env: continuation.MakeEnv,
    rehearsal: Rehearsal,
    strategy: Strategy | None,
    taken: tuple[Taken, ...],
) -> dict[str, Any]:
    try:
        with user_code("sending the environment's constructor to a fresh process"):
            task = Task(
                cloudpickle.dumps(make_env), _registered_specs(), rehearsal, strategy, taken
            )
            pickled = cloudpickle.dumps(task)
    except SnapshotError as error:
        return {"failure": str(error), "frames": None}
    with scratch("proof") as directory:
        task_path, result_path = Path(directory, "task"), Path(directory, "result.json")
        task_path.write_bytes(pickled)
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from {__name__} import answer; answer({str(task_path)!r}, {str(result_path)!r}); "
            # A thread of the environment's would keep it alive.
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
            return {"failure": f"did not answer within {_HANG_S} s", "frames": None}
        if not result_path.exists():
            lines = ended.stderr.decode(errors="replace").strip().splitlines() or ["no output"]
            said = f"ended with exit code {ended.returncode} ({lines[-1][:300]})"
            return {"failure": said, "frames": None}
        result: dict[str, Any] = json.loads(result_path.read_text())
        return result


class _Registry(dict[str, Any]):
    """Gymnasium's registry, with the caller's specs. One is unpickled when it is asked for: that may
    import anything (RLlib's own are among them), and fail."""

    def __init__(self, present: dict[str, Any], pickled: dict[str, bytes]) -> None:
        super().__init__(present)
        self._pickled = {name: spec for name, spec in pickled.items() if name not in present}

    def _load(self, name: str) -> None:
        pickled = self._pickled.pop(name, None)
        if pickled is not None:
            super().__setitem__(name, pickle.loads(pickled))

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._pickled

    def __getitem__(self, name: str) -> Any:
        self._load(name)
        return super().__getitem__(name)

    def __setitem__(self, name: str, spec: Any) -> None:
        self._pickled.pop(name, None)
        super().__setitem__(name, spec)

    def get(self, name: str, default: Any = None) -> Any:
        self._load(name)
        return super().get(name, default)

    def values(self) -> Any:
        """Gymnasium looks at all specs for the newest version of a name: the id tells it that."""
        return [*super().values(), *(registration.EnvSpec(id=name) for name in self._pickled)]


def _register(specs: dict[str, bytes]) -> None:
    gym.registry = registration.registry = _Registry(registration.registry, specs)


def _registered_specs() -> dict[str, bytes]:
    """Gymnasium's registry as this process has it, by id: the caller may have registered
    environments in code that the new process does not run. Specs that do not pickle stay behind."""
    specs = {}
    for name, spec in gym.registry.items():
        if isinstance(spec.entry_point, str) and spec.entry_point.startswith("gymnasium."):
            continue  # registered by importing gymnasium
        try:
            specs[name] = cloudpickle.dumps(spec)
        except Exception:  # a user's entry point or argument: it may raise anything
            continue
    return specs
