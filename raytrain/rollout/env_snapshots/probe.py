"""Which strategy snapshots this environment exactly, found by trying.

The environment is stepped through a script (see `script`) twice: if two copies with one seed
differ, nothing can be exact. Then each strategy is tried in turn: snapshots are taken along the
script, restored into other environment objects while the original continues, stepped in turn with
it, and compared bit for bit to the script's end; and once more in a fresh process. The first
strategy with which everything is the same is used.

The processes of a run have a hash order that this one has not. If the environment depends on it
(see `hash_order`), all of this is done again in a process that has it.
"""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import gymnasium as gym

from raytrain import rng
from raytrain.rng import RngStreams, preserved
from raytrain.rollout.env_snapshots.base import (
    TRIED_IN_ORDER,
    SnapshotError,
    Strategy,
    UserCodeFailed,
    user_code,
)
from raytrain.rollout.env_snapshots.comparison import (
    Copy,
    Differs,
    MakeEnv,
    Taken,
    close,
    continue_all,
    frames_from_start,
    make,
    restore,
)
from raytrain.rollout.env_snapshots.fingerprint import difference
from raytrain.rollout.env_snapshots.fresh_process import fresh_processes, in_fresh_process
from raytrain.rollout.env_snapshots.hash_order import HashOrders
from raytrain.rollout.env_snapshots.script import FirstRun, Script, perform
from raytrain.rollout.env_snapshots.strategies import snapshotter
from raytrain.rollout.env_snapshots.witness import Seen, witnessed

_REPEATS = 3
_BY_CHANCE = (
    "it uses the time, the system's entropy, a generator that reset(seed=...) does not set, or the "
    "addresses of objects, as the order of a set of them does"
)
_CHANCE = f"new processes with one seed differ: the environment is not deterministic ({_BY_CHANCE})"
_HASH_ORDER = (
    "What it returns depends on the hash order of strings (a set of strings, or hash()). A run "
    "sets PYTHONHASHSEED in all its processes, so it is exact. Elsewhere, set it to the run's "
    "(arithmetic.settings.hash_seed in experiment.json), or sort."
)


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
    `warnings` are sentences on what the environment does that is probably not meant. `imports` and
    `reads` are what it was seen to use in a fresh process (see `witness.Seen`). `hash_order`: it is
    exact only under the run's PYTHONHASHSEED, with which it was tried.
    """

    strategy: Strategy
    exact: bool
    reason: str
    attempts: tuple[Attempt, ...]
    global_random: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    hash_order: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


def prove(
    make_env: MakeEnv,
    *,
    seed: int = 0,
    steps: int = 200,
    budget_s: float = 20,
    hash_seed: int | None = None,
    action_mask: str | None = None,
) -> Proof:
    """Try the strategies on scratch environments; the process's generators do not change.

    `steps` is the number of steps in which an episode's end is waited for, and `budget_s` the time,
    for slow environments (a third of it for the first run, which all others repeat). `hash_seed` is
    the run's PYTHONHASHSEED, by default that of a run with this seed. `action_mask`: as in the
    config; only actions that are allowed are tried.

    Raises:
        UserCodeFailed: the environment cannot be made, reset and stepped at all, or what it returns
            breaks Gymnasium's contract.
    """
    own = rng.hash_seed(seed) if hash_seed is None else hash_seed
    with preserved(), HashOrders(own) as orders:
        script, warnings = _first_run(make_env, seed, steps, budget_s, action_mask)
        orders.begin(make_env, script, RngStreams.seeded(seed).to_state())
        here = _proof(make_env, script, warnings, seed, own)
        effect = orders.effect() if here.attempts else "none"
    if effect == "none":
        return here
    if effect == "chance":
        return replace(here, strategy="reset", exact=False, reason=_CHANCE)
    # This process has another hash order than the run.
    try:
        proof: Proof = in_fresh_process(
            partial(_prove_here, action_mask=action_mask),
            make_env,
            seed,
            steps,
            budget_s,
            own,
            hash_seed=own,
        )
    except SnapshotError as error:
        raise UserCodeFailed(f"with PYTHONHASHSEED={own}, as in the run: {error}") from None
    if not proof.exact:
        return proof
    return replace(proof, hash_order=True, warnings=(*proof.warnings, _HASH_ORDER))


def _prove_here(
    make_env: MakeEnv,
    seed: int,
    steps: int,
    budget_s: float,
    hash_seed: int,
    *,
    action_mask: str | None,
) -> Proof:
    """The proof in a process that has the run's hash order."""
    script, warnings = _first_run(make_env, seed, steps, budget_s, action_mask)
    return _proof(make_env, script, warnings, seed, hash_seed)


def _proof(
    make_env: MakeEnv, script: Script, warnings: tuple[str, ...], seed: int, hash_seed: int
) -> Proof:
    problem = _not_deterministic(make_env, script, seed, hash_seed)
    if problem is not None:
        return Proof("reset", False, problem, (), script.global_random, warnings)
    attempts: list[Attempt] = []
    seen = Seen()
    for strategy in TRIED_IN_ORDER:
        attempt, seen = _attempt(make_env, strategy, script, seed, hash_seed)
        attempts.append(attempt)
        if attempt.ok:
            break
    exact = attempts[-1].ok
    reasons = [f"{attempt.strategy}: {attempt.detail}" for attempt in attempts]
    return Proof(
        attempts[-1].strategy if exact else "reset",
        exact,
        reasons[-1] if exact else "; ".join(reasons),
        tuple(attempts),
        script.global_random,
        warnings,
        *seen,
    )


def _first_run(
    make_env: MakeEnv, seed: int, steps: int, budget_s: float, action_mask: str | None
) -> tuple[Script, tuple[str, ...]]:
    with RngStreams.seeded(seed).active():
        before = RngStreams.capture()
        env = make(make_env)
        drawn = before.differing(RngStreams.capture())
        with user_code("the environment"):
            first_run = FirstRun(env, seed, steps, budget_s / 3, action_mask)
            script = first_run.run()
        warnings = first_run.contract.warnings() + _closed(env)
    names = tuple(sorted({*drawn, *script.global_random}))
    return replace(script, global_random=names), warnings


def _closed(env: Any) -> tuple[str, ...]:
    try:
        with user_code("close()"):
            env.close()
    except SnapshotError as error:
        return (f"{error}. What close() should release may be held until the process ends.",)
    return ()


def _not_deterministic(make_env: MakeEnv, script: Script, seed: int, hash_seed: int) -> str | None:
    streams = RngStreams.seeded(seed).to_state()
    frames = frames_from_start(make_env, script, streams, to_end=False)
    index = len(frames) - 1
    different = difference(script.frames[index], frames[index])
    if not different:
        return None
    message = f"two copies with one seed differ at step {index} ({different})"
    child = script.for_fresh_process()
    with fresh_processes([hash_seed] * _REPEATS) as processes:
        try:
            for process in processes:
                process.call(frames_from_start, make_env, child, streams)
            one, *others = (process.result() for process in processes)
        except SnapshotError:
            one, others = [], [None]
    if all(other == one for other in others):
        return (
            f"{message}, though each is the same in a process of its own: copies of this "
            "environment in one process share state (a counter or a cache in a module or a class), "
            "or it depends on the addresses of objects, as the order of a set of them does"
        )
    return f"{message}: the environment itself is not deterministic ({_BY_CHANCE})"


def _attempt(
    make_env: MakeEnv, strategy: Strategy, script: Script, seed: int, hash_seed: int
) -> tuple[Attempt, Seen]:
    try:
        taken = _in_this_process(make_env, strategy, script, seed)
    except SnapshotError as error:
        return Attempt(strategy, False, f"{error}{_hint(make_env, strategy, error)}"), Seen()
    try:
        child = script.for_fresh_process()
        seen = in_fresh_process(
            witnessed, make_env, continue_all, strategy, child, taken, hash_seed=hash_seed
        )
    except SnapshotError as error:
        detail = (
            f"in a fresh process: {error} (state kept in a module or a class, outside the "
            "environment object, is not in a snapshot)"
        )
        return Attempt(strategy, False, detail), Seen()
    detail = (
        f"{len(taken)} snapshots over {len(script.operations)} steps continue identically, here "
        "and in a fresh process"
    )
    if script.global_random:
        names = ", ".join(script.global_random)
        detail += (
            f"; the environment draws from the process's generators ({names}), which are saved "
            "with it"
        )
    return Attempt(strategy, True, detail), seen


def _in_this_process(
    make_env: MakeEnv, strategy: Strategy, script: Script, seed: int
) -> list[Taken]:
    """Snapshots along the script; their copies are stepped in turn with the original.

    Raises:
        SnapshotError: this strategy is not exact; the message says what was seen.
    """
    own = snapshotter(strategy)
    streams, elsewhere = RngStreams.seeded(seed), RngStreams.seeded(seed, 1)
    taken: list[Taken] = []
    copies: list[Copy] = []
    with streams.active(), user_code("making the environment"):
        original = own.wrap(make_env())
    try:
        for index, operation in enumerate(script.operations):
            with streams.active():
                frame = perform(original, operation, script.draws_torch)
            different = difference(script.frames[index], frame)
            if different:
                raise Differs(
                    f"the original's {different} at step {index} once "
                    + ("copies of it are stepped: they share state" if copies else "it is recorded")
                )
            for copy in copies:
                copy.step(script)
            if index not in script.moments:
                continue
            with user_code(f"taking a snapshot {script.moments[index]}"):
                pickled = pickle.dumps(own.take(original))
            taken.append(Taken(index, pickled, streams.to_state()))
            with elsewhere.active():
                copies.append(restore(make_env, own, taken[-1], script))
    finally:
        for env in (original, *(copy.env for copy in copies)):
            close(env)
    return taken


def _hint(make_env: MakeEnv, strategy: Strategy, error: SnapshotError) -> str:
    if strategy != "pickle" or not isinstance(error, Differs):
        return ""
    env = make(make_env)
    rebuilt = isinstance(env.unwrapped, gym.utils.EzPickle)
    close(env)
    return " (EzPickle environments are rebuilt from constructor arguments)" if rebuilt else ""
