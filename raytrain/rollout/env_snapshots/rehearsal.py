"""The course of episodes on which a strategy is tried: what is done, and what came of it.

    reset(seed)  *  some steps  *  more steps  *  on to a terminal step  *  reset  *  some steps  *
    ... reset, steps, reset, steps

At each * a snapshot is taken. Where no episode ends within the given number of steps, the reset
comes in mid-episode. The later resets come without a seed: they prove the environment's own
generator. Actions come from a generator of their own; between two operations, numbers are drawn
from the process's generators, as a policy does.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from raytrain.config.user_code import (
    EnvironmentFailed,
    by_the_code_itself,
    describe,
    failed,
    no_exit,
)
from raytrain.policy.env_contract import Contract
from raytrain.rng import RngStreams
from raytrain.rollout.env_snapshots.fingerprint import Frame, frame_of
from raytrain.rollout.env_snapshots.protocol import SnapshotError


@dataclass(frozen=True)
class Operation:
    """A reset (with a seed or without), or a step."""

    is_reset: bool
    seed: int | None = None
    action: Any = None


@dataclass(frozen=True)
class Rehearsal:
    """Operations, what each returned, and after which of them a snapshot is taken (with the words
    that describe the moment)."""

    operations: tuple[Operation, ...]
    frames: tuple[Frame, ...]
    moments: dict[int, str]
    global_random: tuple[str, ...]
    draws_torch: bool
    """Whether the policy's draws include Torch's, which a fresh process does not import."""


class UserCodeFailed(SnapshotError, EnvironmentFailed):
    """The environment, or its pickling, raised: the message says during what, and where."""


@contextmanager
def user_code(doing: str) -> Iterator[None]:
    """Turns whatever a user's environment raises into a sentence."""
    try:
        with no_exit():
            yield
    except SnapshotError:
        raise
    except EnvironmentFailed as error:
        raise _as_user_code_failed(error) from error
    except BaseException as error:
        # The environment is the user's and its objects raise whatever they like when they are
        # stepped, pickled or rebuilt. Each of these is an answer to the question being asked.
        if not by_the_code_itself(error):
            raise
        found = failed(f"{doing} raised {describe(error)}", error)
        raise _as_user_code_failed(found) from error


def _as_user_code_failed(error: EnvironmentFailed) -> UserCodeFailed:
    found = UserCodeFailed(str(error))
    found.trace = error.trace
    return found


def perform(env: Any, operation: Operation, draws_torch: bool) -> Frame:
    """One operation, after the draws of a policy, on the process's present generators."""
    draw_like_a_policy(draws_torch)
    return _perform(env, operation)


def draw_like_a_policy(draws_torch: bool) -> None:
    random.random()
    np.random.random()
    if draws_torch:
        import torch

        torch.rand(1)


class Rehearsing:
    """Steps an environment through a rehearsal for the first time."""

    def __init__(self, env: Any, seed: int, steps: int, budget_s: float) -> None:
        self._env = env
        self.contract = Contract(env)
        self._steps = steps
        self._random = np.random.default_rng(seed)
        # A copy: the environment may draw from its own space.
        self._actions = copy.deepcopy(env.action_space)
        self._actions.seed(int(self._random.integers(2**31)))
        self._deadline = time.monotonic() + budget_s
        self._operations: list[Operation] = []
        self._frames: list[Frame] = []
        self._moments: dict[int, str] = {}
        self._global_random: set[str] = set()
        self._over = True

    def run(self, seed: int) -> Rehearsal:
        self._reset(seed)
        self._snapshot_here("after the first reset")
        self._step_on(int(self._random.integers(3, max(4, self._steps // 10))))
        self._snapshot_here("in mid-episode")
        self._step_on(int(self._random.integers(3, max(4, self._steps // 5))))
        self._snapshot_here("deeper in an episode")
        for _ in range(self._steps):
            if self._over or time.monotonic() > self._deadline:
                break
            self._step_on(1)
        if self._over:
            self._snapshot_here("after an episode's last step")
        self._reset()
        self._snapshot_here("after a later reset")
        self._step_on(int(self._random.integers(5, max(6, self._steps // 8))))
        self._snapshot_here("in a later episode")
        for _ in range(2):
            self._step_on(3)
            self._reset()
        self._step_on(8)
        return Rehearsal(
            tuple(self._operations),
            tuple(self._frames),
            self._moments,
            tuple(sorted(self._global_random)),
            True,
        )

    def _snapshot_here(self, moment: str) -> None:
        self._moments[len(self._operations) - 1] = moment

    def _reset(self, seed: int | None = None) -> None:
        self._do(Operation(is_reset=True, seed=seed))

    def _step_on(self, count: int) -> None:
        """Operations, of which one is a reset where an episode is over (as in a vector env)."""
        for _ in range(count):
            if self._over:
                self._reset()
            else:
                self._do(Operation(is_reset=False, action=self._actions.sample()))

    def _do(self, operation: Operation) -> None:
        draw_like_a_policy(draws_torch=True)
        before = RngStreams.capture()
        result = _call(self._env, operation, self.contract)
        self._global_random.update(before.differing(RngStreams.capture()))
        self._over = bool(result[2] or result[3])
        self._operations.append(operation)
        self._frames.append(frame_of(*result))


def _perform(env: Any, operation: Operation) -> Frame:
    return frame_of(*_call(env, operation))


def _call(
    env: Any, operation: Operation, contract: Contract | None = None
) -> tuple[Any, Any, Any, Any]:
    """Observation, reward, terminated and truncated; the last three are None of a reset."""
    if not operation.is_reset:
        with user_code("step()"):
            returned = env.step(copy.deepcopy(operation.action))
            if contract is not None:
                contract.step(returned)
            observation, reward, terminated, truncated, _ = returned
        return observation, reward, terminated, truncated
    with user_code("reset()"):
        arguments = {} if operation.seed is None else {"seed": operation.seed}
        returned = env.reset(**arguments)
        if contract is not None:
            contract.reset(returned)
        observation, _ = returned
    return observation, None, None, None
