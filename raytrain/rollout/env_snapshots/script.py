"""The script by which a strategy is tried: operations on an environment, and what each returned.

    reset(seed)  *  some steps  *  more steps  *  on to a terminal step  *  reset  *  some steps  *
    ... reset, steps, reset, steps

A snapshot is taken at each *. If no episode ends within the given number of steps, the reset comes
in mid-episode. The later resets have no seed: they test the environment's own generator. Actions
come from a separate generator. Before each operation numbers are drawn from the process's
generators, as a policy draws them.
"""

from __future__ import annotations

import copy
import random
import time
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from raytrain.policy.action_masks import RandomActions
from raytrain.policy.env_contract import Contract
from raytrain.rng import RngStreams
from raytrain.rollout.env_snapshots.base import user_code
from raytrain.rollout.env_snapshots.fingerprint import Frame, frame_of, generators

_EARLY_S = 2.0


@dataclass(frozen=True)
class Operation:
    """A call of `reset` (with a seed or without) or of `step`."""

    method: Literal["reset", "step"]
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Script:
    """`frames`: what each operation returned. `moments`: the operations after which a snapshot is
    taken, by index, with a description. `global_random`: see `Proof`."""

    operations: tuple[Operation, ...]
    frames: tuple[Frame, ...]
    moments: dict[int, str]
    global_random: tuple[str, ...]
    draws_torch: bool = True
    """Whether the policy's draws, and the streams, include Torch's."""
    num_early: int = 1
    """The number of operations in the first seconds."""

    def early(self) -> Script:
        """The first seconds of the script, for many processes."""
        number = self.num_early
        return replace(self, operations=self.operations[:number], frames=self.frames[:number])

    def for_fresh_process(self) -> Script:
        """The same script. Importing Torch takes seconds, and only an environment that draws from
        it needs it there."""
        return replace(self, draws_torch="torch" in self.global_random)

    def streams(self, state: dict[str, Any]) -> RngStreams:
        """Streams of a `RngStreams.to_state()`."""
        without_torch: dict[str, Any] = {"torch_cpu": None, "torch_cuda": []}
        return RngStreams.from_state(state if self.draws_torch else {**state, **without_torch})


def perform(env: Any, operation: Operation, draws_torch: bool) -> Frame:
    """One operation, after the draws of a policy, on the process's present generators."""
    _draw_like_a_policy(draws_torch)
    return (*frame_of(*_call(env, operation)[:4]), generators())


class FirstRun:
    """Steps an environment and writes the script. `steps`, `budget_s`: the most steps, and the
    seconds, in which to wait for an episode's end. `action_mask`: as in the config."""

    def __init__(
        self, env: Any, seed: int, steps: int, budget_s: float, action_mask: str | None = None
    ) -> None:
        self._env = env
        self.contract = Contract(env)
        self._seed = seed
        self._steps = steps
        self._random = np.random.default_rng(seed)
        self._actions = RandomActions(env.action_space, action_mask, self._random)
        self._observation: Any = None
        self._info: Any = None
        begun = time.monotonic()
        self._deadline, self._early = begun + budget_s, begun + _EARLY_S
        self._num_early = 1
        self._operations: list[Operation] = []
        self._frames: list[Frame] = []
        self._moments: dict[int, str] = {}
        self._global_random: set[str] = set()
        self._over = True

    def run(self) -> Script:
        self._reset(self._seed)
        self._snapshot_here("after the first reset")
        self._step(int(self._random.integers(3, max(4, self._steps // 10))))
        self._snapshot_here("in mid-episode")
        self._step(int(self._random.integers(3, max(4, self._steps // 5))))
        self._snapshot_here("deeper in an episode")
        for _ in range(self._steps):
            if self._over or time.monotonic() > self._deadline:
                break
            self._step(1)
        if self._over:
            self._snapshot_here("after an episode's last step")
        self._reset()
        self._snapshot_here("after a later reset")
        self._step(int(self._random.integers(5, max(6, self._steps // 8))))
        self._snapshot_here("in a later episode")
        for _ in range(2):
            self._step(3)
            self._reset()
        self._step(8)
        names = tuple(sorted(self._global_random))
        return Script(
            tuple(self._operations),
            tuple(self._frames),
            self._moments,
            names,
            num_early=self._num_early,
        )

    def _snapshot_here(self, moment: str) -> None:
        self._moments[len(self._operations) - 1] = moment

    def _reset(self, seed: int | None = None) -> None:
        self._do(Operation("reset", options={} if seed is None else {"seed": seed}))

    def _step(self, count: int) -> None:
        """Operations, of which one is a reset where an episode is over (as in a vector env)."""
        for _ in range(count):
            if self._over:
                self._reset()
            else:
                self._do(Operation("step", (self._actions.sample(self._info, self._observation),)))

    def _do(self, operation: Operation) -> None:
        _draw_like_a_policy(draws_torch=True)
        before = RngStreams.capture()
        *result, self._info = _call(self._env, operation, self.contract)
        frame = (*frame_of(*result), generators())
        self._observation = result[0]
        self._global_random.update(before.differing(RngStreams.capture()))
        self._over = bool(result[2] or result[3])
        self._operations.append(operation)
        self._frames.append(frame)
        if time.monotonic() < self._early:
            self._num_early = len(self._frames)


def _draw_like_a_policy(draws_torch: bool) -> None:
    random.random()
    np.random.random()
    if draws_torch:
        import torch

        torch.rand(1)


def _call(
    env: Any, operation: Operation, contract: Contract | None = None
) -> tuple[Any, Any, Any, Any, Any]:
    """Observation, reward, terminated, truncated and info; after a reset, those between are
    None."""
    method = operation.method
    with user_code(f"{method}()"):
        arguments = copy.deepcopy(operation.arguments)
        returned = getattr(env, method)(*arguments, **operation.options)
        if contract is not None:
            getattr(contract, method)(returned)
        if method == "reset":
            observation, info = returned
            return observation, None, None, None, info
        observation, reward, terminated, truncated, info = returned
        return observation, reward, terminated, truncated, info
