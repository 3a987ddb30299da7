"""Which strategy snapshots this environment exactly, found by trying.

The environment is stepped through a rehearsal (`rehearsal.py`) twice: if two copies with one seed
differ, nothing can be exact. Then each strategy in turn: snapshots are taken along the rehearsal,
restored into other environment objects while the original goes on, stepped in turn with it, and
compared bit for bit to the rehearsal's end; and once more in a fresh process. The first strategy
with which everything is the same is the one.
"""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass, replace
from typing import Any

import gymnasium as gym

from raytrain.rng import RngStreams, preserved
from raytrain.rollout.env_snapshots import continuation
from raytrain.rollout.env_snapshots.continuation import Differs, MakeEnv
from raytrain.rollout.env_snapshots.fingerprint import Frame, difference
from raytrain.rollout.env_snapshots.fresh_process import (
    Taken,
    failure_in_fresh_process,
    frames_in_fresh_process,
)
from raytrain.rollout.env_snapshots.protocol import TRIED_IN_ORDER, SnapshotError, Strategy
from raytrain.rollout.env_snapshots.rehearsal import Rehearsal, Rehearsing, perform, user_code
from raytrain.rollout.env_snapshots.strategies import snapshotter


@dataclass(frozen=True)
class Attempt:
    """One strategy tried: whether it is exact, and what was seen."""

    strategy: Strategy
    ok: bool
    detail: str


@dataclass(frozen=True)
class Proof:
    """The strategy to use, whether it is exact, and why, in words for the user.

    `global_random` names the process's generators ("random", "numpy", "torch") that the
    environment draws from: its snapshots are exact only together with these (`RngStreams`).
    `warnings` are sentences on what the environment does that is probably not meant.
    """

    strategy: Strategy
    exact: bool
    reason: str
    attempts: tuple[Attempt, ...]
    global_random: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        found = asdict(self)
        found["attempts"] = [asdict(attempt) for attempt in self.attempts]
        found["global_random"] = list(self.global_random)
        found["warnings"] = list(self.warnings)
        return found


def prove(make_env: MakeEnv, *, seed: int = 0, steps: int = 200, budget_s: float = 20) -> Proof:
    """Try the strategies on scratch environments; the process's generators stay as they are.

    `steps` bounds how long an episode's end is waited for; `budget_s` bounds it in time, for slow
    environments (a third of it for the first run, which all others repeat).

    Raises:
        UserCodeFailed: the environment cannot be made, reset and stepped at all, or what it returns
            breaks Gymnasium's contract.
    """
    with preserved():
        rehearsal, warnings = _rehearse(make_env, seed, steps, budget_s)
        problem = _not_deterministic(make_env, rehearsal, seed)
        if problem is not None:
            return Proof("reset", False, problem, (), rehearsal.global_random, warnings)
        attempts: list[Attempt] = []
        for strategy in TRIED_IN_ORDER:
            attempts.append(_attempt(make_env, strategy, rehearsal, seed))
            if attempts[-1].ok:
                break
    last = attempts[-1]
    reasons = "; ".join(f"{each.strategy}: {each.detail}" for each in attempts)
    return Proof(
        last.strategy if last.ok else "reset",
        last.ok,
        f"{last.strategy}: {last.detail}" if last.ok else reasons,
        tuple(attempts),
        rehearsal.global_random,
        warnings,
    )


def _rehearse(
    make_env: MakeEnv, seed: int, steps: int, budget_s: float
) -> tuple[Rehearsal, tuple[str, ...]]:
    with _streams(seed).active():
        before = RngStreams.capture()
        with user_code("making the environment"):
            env = make_env()
        drawn = before.differing(RngStreams.capture())
        with user_code("the environment"):
            rehearsing = Rehearsing(env, seed, steps, budget_s / 3)
            rehearsal = rehearsing.run(seed)
        warnings = rehearsing.contract.warnings() + _closed(env)
    names = tuple(sorted({*drawn, *rehearsal.global_random}))
    return replace(rehearsal, global_random=names), warnings


def _closed(env: Any) -> tuple[str, ...]:
    try:
        with user_code("close()"):
            env.close()
    except SnapshotError as error:
        return (f"{error}. What close() should give back may be held until the process ends.",)
    return ()


def _not_deterministic(make_env: MakeEnv, rehearsal: Rehearsal, seed: int) -> str | None:
    with _streams(seed).active():
        with user_code("making the environment"):
            env = make_env()
        found = []
        for operation in rehearsal.operations:
            found.append(perform(env, operation, rehearsal.draws_torch))
            if found[-1] != rehearsal.frames[len(found) - 1]:
                break
        continuation.close(env)
    where = _first_difference(rehearsal.frames, found)
    if where is None:
        return None
    said = f"two copies with one seed differ {where}"
    apart = _in_processes_of_their_own(make_env, rehearsal, seed)
    if apart is not None and apart[0] is not None and apart[0] == apart[1]:
        return (
            f"{said}, though each is the same in a process of its own: copies of this environment "
            "in one process share state (a counter or a cache kept in a module or a class)"
        )
    return (
        f"{said}: the environment itself is not deterministic (it uses the time, the system's "
        "entropy, or a generator that reset(seed=...) does not set)"
    )


def _in_processes_of_their_own(
    make_env: MakeEnv, rehearsal: Rehearsal, seed: int
) -> list[Any] | None:
    child, state = _for_a_process_without_torch(rehearsal, _streams(seed).to_state())
    start = Taken(0, b"", state)
    return [frames_in_fresh_process(make_env, child, start) for _ in range(2)]


def _attempt(make_env: MakeEnv, strategy: Strategy, rehearsal: Rehearsal, seed: int) -> Attempt:
    try:
        taken = _in_this_process(make_env, strategy, rehearsal, seed)
    except SnapshotError as error:
        return Attempt(strategy, False, f"{error}{_hint(make_env, strategy, error)}")
    child = rehearsal
    sent = []
    for each in taken:
        child, state = _for_a_process_without_torch(rehearsal, each.streams)
        sent.append(replace(each, streams=state))
    failure = failure_in_fresh_process(make_env, child, strategy, tuple(sent))
    if failure is not None:
        return Attempt(
            strategy,
            False,
            f"in a fresh process: {failure} (state kept in a module or a class, outside the "
            "environment object, is not in a snapshot)",
        )
    steps = len(rehearsal.operations)
    detail = (
        f"{len(taken)} snapshots over {steps} steps continue identically, here and in a fresh "
        "process"
    )
    if rehearsal.global_random:
        names = ", ".join(rehearsal.global_random)
        detail += (
            f"; the environment draws from the process's generators ({names}), which are saved "
            "with it"
        )
    return Attempt(strategy, True, detail)


def _in_this_process(
    make_env: MakeEnv, strategy: Strategy, rehearsal: Rehearsal, seed: int
) -> tuple[Taken, ...]:
    """Snapshots along the rehearsal; their copies go on in turn with the original.

    Raises:
        SnapshotError: this strategy is not exact; the message says what was seen.
    """
    own = snapshotter(strategy)
    streams, elsewhere = _streams(seed), _streams(seed, 1)
    taken: list[Taken] = []
    copies: list[continuation.Copy] = []
    with streams.active():
        original = continuation.make(make_env, own)
    envs = [original]
    try:
        for index, operation in enumerate(rehearsal.operations):
            with streams.active():
                found = perform(original, operation, rehearsal.draws_torch)
            different = difference(rehearsal.frames[index], found)
            if different:
                raise Differs(
                    f"the original's {different} at step {index} once "
                    + ("copies of it are stepped: they share state" if copies else "it is recorded")
                )
            for each in copies:
                each.step(rehearsal)
            if index not in rehearsal.moments:
                continue
            with user_code(f"taking a snapshot {rehearsal.moments[index]}"):
                pickled = pickle.dumps(own.take(original))
            state = streams.to_state()
            taken.append(Taken(index, pickled, state))
            with elsewhere.active():
                copies.append(
                    continuation.restore(
                        make_env,
                        own,
                        pickle.loads(pickled),
                        RngStreams.from_state(state),
                        index=index,
                        rehearsal=rehearsal,
                    )
                )
            envs.append(copies[-1].env)
    finally:
        for env in envs:
            continuation.close(env)
    return tuple(taken)


def _for_a_process_without_torch(
    rehearsal: Rehearsal, streams: dict[str, Any]
) -> tuple[Rehearsal, dict[str, Any]]:
    """Importing Torch takes seconds; only an environment that draws from it needs it there."""
    if "torch" in rehearsal.global_random:
        return rehearsal, streams
    return (
        replace(rehearsal, draws_torch=False),
        {**streams, "torch_cpu": None, "torch_cuda": []},
    )


def _streams(*entropy: int) -> RngStreams:
    return RngStreams.seeded(*entropy)


def _first_difference(expected: tuple[Frame, ...], found: list[Frame]) -> str | None:
    for index, (one, other) in enumerate(zip(expected, found, strict=False)):
        different = difference(one, other)
        if different:
            return f"at step {index} ({different})"
    return None


def _hint(make_env: MakeEnv, strategy: Strategy, error: SnapshotError) -> str:
    if strategy != "pickle" or not isinstance(error, Differs):
        return ""
    with user_code("making the environment"):
        env = make_env()
    rebuilt = isinstance(env.unwrapped, gym.utils.EzPickle)
    continuation.close(env)
    return (
        " (EzPickle environments are rebuilt from their constructor arguments)" if rebuilt else ""
    )
