"""All env groups of a trial: sampling in step, exact recovery of a lost runner, snapshots.

RLlib's own way of talking to env runners is built to go on without some of them: a push of weights
may be dropped, a late or dead runner's share is made up by the others, and nobody is told. Here
every call names its runner, every answer is waited for, and a runner that died is started again
with the state that its group had before the fragment, so that the iteration's data do not change.

    iteration k:   rollout(sync k-1) on all runners   -> episodes, metrics, snapshot k  (group order)
                   learn
                   publish(weights)                   -> sync k, sent with the next rollout
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayTaskError
from ray.rllib.core import (
    COMPONENT_ENV_TO_MODULE_CONNECTOR,
    COMPONENT_MODULE_TO_ENV_CONNECTOR,
)
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED, NUM_ENV_STEPS_SAMPLED_LIFETIME

from raytrain import _ray
from raytrain.errors import RaytrainError
from raytrain.faults import why_it_died
from raytrain.trainable.filters import merge_connector_states
from raytrain.trainable.runner import GroupEnvRunner, Rollout, RunnerSettings
from raytrain.trainable.snapshots import Strategy

logger = logging.getLogger(__name__)

_RESTART_DEADLINE_S = 300.0
_MAX_LOSSES_IN_A_ROW = 5


class RunnerLost(RaytrainError):
    """An env runner died and could not be started again."""


class NoNewEnvSteps(RaytrainError):
    """An iteration brought no new environment steps."""


@dataclass
class Collected:
    """The data of one iteration, merged in group order."""

    episodes: list[Any] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    finished: list[dict[str, Any]] = field(default_factory=list)
    env_steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Means over the groups of what a `Rollout` says it took."""


class EnvGroups:
    """The groups of one RLlib `EnvRunnerGroup` (training or evaluation), by group index.

    `tell` receives one plain sentence for each loss and recovery. `hosts` says which actor (by the
    index of its own group) hosts each group, 0 .. n - 1; without it every actor hosts its own.
    """

    def __init__(
        self,
        runners: Any,
        *,
        strategy: str,
        tell: Callable[[str], None],
        sample_timeout_s: float,
        hosts: Mapping[int, int] | None = None,
    ) -> None:
        self._local: GroupEnvRunner | None = runners.local_env_runner
        actors = {index - 1: actor for index, actor in _ray.runner_actors(runners).items()}
        self._hosts = dict(hosts) if hosts is not None else {index: index for index in actors}
        self._actors: dict[int, Any] = {
            index: actors[host] for index, host in sorted(self._hosts.items())
        }
        self._strategy = cast(Strategy, strategy)  # A name that is none is refused by the runners.
        self._tell = tell
        self._patience_s = sample_timeout_s
        self._sync: Any = None
        self._snapshots: dict[int, bytes | None] = dict.fromkeys(self.indices)
        self._connector_states: dict[int, dict[str, Any]] = {}
        self._iteration = 0
        self._settings: dict[int, RunnerSettings] = {}

    @property
    def indices(self) -> list[int]:
        """Group indices, ascending."""
        return list(self._actors) or [0]

    # -- life ------------------------------------------------------------------------------------

    def start(self, sync: dict[str, Any], snapshots: dict[int, bytes], *, iteration: int) -> None:
        """Give every group its state, and wait until every runner holds the weights of `sync`.
        A group without a snapshot starts anew."""
        self._iteration = iteration
        self._snapshots = {index: snapshots.get(index) for index in self.indices}
        if self._local is not None:
            # Without remote runners this is the group's host; with them it keeps the connectors.
            snapshot = None if self._actors else self._snapshots[0]
            expected = self._local.adopt(self._strategy, sync, snapshot, iteration=iteration)
        if not self._actors:
            return
        self._set_sync(sync)
        held = {
            index: self._call(index, partial(self._adopt, index=index)) for index in self.indices
        }
        if self._local is not None:
            wrong = [index for index, digest in held.items() if digest != expected]
            if wrong:
                raise RunnerLost(
                    f"Env runners of groups {wrong} do not hold the restored weights. "
                    "Start the same command again; if it stays, this is a defect of raytrain."
                )

    def sample(self, min_env_steps: int) -> Collected:
        """Sample fragments from all groups in step until there are `min_env_steps` steps."""
        collected = Collected()
        while collected.env_steps < min_env_steps:
            rollouts = self._rollouts()
            steps = sum(_steps_of(rollout) for rollout in rollouts)
            if steps == 0:
                raise NoNewEnvSteps(
                    f"Iteration {self._iteration + 1} got no new environment steps from "
                    f"{len(rollouts)} env group(s). An iteration without data is not a result: look "
                    "at the environment's reset() and step()."
                )
            collected.env_steps += steps
            for rollout in rollouts:
                collected.episodes.extend(rollout.episodes)
                collected.metrics.append(rollout.metrics)
                collected.finished.extend(rollout.finished)
                for part, seconds in rollout.seconds.items():
                    mean = collected.seconds.get(part, 0.0) + seconds / len(rollouts)
                    collected.seconds[part] = mean
        return collected

    def publish(self, weights: dict[str, Any], env_steps_sampled: int, *, iteration: int) -> None:
        """Make new weights (RLlib's module state with its sequence number) and the merged connector
        states what the next rollout of every group starts from."""
        self._iteration = iteration
        sync = {**weights, NUM_ENV_STEPS_SAMPLED_LIFETIME: int(env_steps_sampled)}
        if self._actors:
            sync.update(self._merged_connectors())
        if self._local is not None:
            self._local.take_over(sync)
        if self._actors:
            self._set_sync(sync)

    def take_over(self, sync: dict[str, Any]) -> None:
        """Hand `sync` to every runner and wait until all have it (evaluation)."""
        if self._local is not None:
            self._local.take_over(sync)
        self._set_sync(sync)
        for index in sorted(set(self._hosts.values())):
            # Of whichever of its groups: an actor takes it over for all.
            self._call(self._hosted_by(index)[0], lambda actor: actor.take_over.remote(self._sync))

    def use_settings(self, settings: RunnerSettings, *, iteration: int) -> None:
        """Let every group go on with another config in the process where it is; episodes begin
        anew."""
        self._iteration = iteration
        if self._local is not None:
            self._local.use_settings(settings, iteration=iteration)
        calls = {index: partial(self._change, settings, index=index) for index in self._actors}
        running = {index: call(self._actors[index]) for index, call in calls.items()}
        for index, call in calls.items():
            # Known for the group only now: a runner that dies meanwhile is set up as it was before.
            self._snapshots[index] = self._call(index, call, running=running[index])
            self._settings[index] = settings

    def take_finished(self) -> list[dict[str, Any]]:
        """Rows of the episodes that ended outside of `sample` (RLlib's evaluation), in group order."""
        if not self._actors:
            return [] if self._local is None else self._local.take_finished()
        return [
            row
            for index in self.indices
            for row in self._call(index, lambda actor: actor.take_finished.remote())
        ]

    def snapshots(self) -> dict[int, bytes]:
        """The state of every group at this moment."""
        if not self._actors:
            return (
                {}
                if self._local is None or self._local.env is None
                else {0: self._local.snapshot()}
            )
        missing = [index for index, snapshot in self._snapshots.items() if snapshot is None]
        for index in missing:
            self._snapshots[index] = self._call(index, partial(_snapshot, index=index))
        return {index: bytes(data) for index, data in self._snapshots.items() if data is not None}

    def take_snapshots_again(self) -> None:
        """Forget kept snapshots: the runners were used by somebody else (RLlib's evaluation)."""
        self._snapshots = dict.fromkeys(self.indices)

    def why_not_into_arrays(self) -> str | None:
        """Why the groups are sampled in RLlib's own, slower way; None if they are not."""
        first = self.indices[0]
        if not self._actors:
            return None if self._local is None else self._local.why_not_into_arrays()
        reason: str | None = self._call(first, lambda actor: actor.why_not_into_arrays.remote())
        return reason

    def connector_state(self) -> dict[str, Any]:
        """State of the (merged) connector pipelines."""
        return {} if self._local is None else self._local.connector_state()

    # -- inside ----------------------------------------------------------------------------------

    def _set_sync(self, sync: dict[str, Any]) -> None:
        self._sync = ray.put(sync)

    def _rollouts(self) -> list[Rollout]:
        if not self._actors:
            assert self._local is not None
            return [self._local.rollout(None, snapshot=False)]
        running = {index: self._rollout(actor, index) for index, actor in self._actors.items()}
        rollouts = []
        for index in self.indices:
            rollout = self._call(index, partial(self._rollout, index=index), running=running[index])
            self._snapshots[index] = rollout.snapshot
            self._connector_states[index] = rollout.connectors
            rollouts.append(rollout)
        return rollouts

    def _rollout(self, actor: Any, index: int) -> Any:
        return actor.rollout.remote(self._sync, snapshot=True, group=index)

    def _adopt(self, actor: Any, index: int) -> Any:
        settings = self._settings.get(index)
        return actor.adopt.remote(
            self._strategy if settings is None else settings.strategy,
            self._sync,
            self._snapshots[index],
            iteration=self._iteration,
            group=index,
            settings=settings,
        )

    def _change(self, settings: RunnerSettings, actor: Any, *, index: int) -> Any:
        return actor.use_settings.remote(settings, iteration=self._iteration, group=index)

    def _hosted_by(self, host: int) -> list[int]:
        return [index for index in self.indices if self._hosts[index] == host]

    def _call(self, index: int, call: Callable[[Any], Any], *, running: Any = None) -> Any:
        """The result of `call(actor)`. If the runner dies, it is started again as it was before."""
        losses = 0
        while True:
            try:
                return self._wait(
                    index, running if running is not None else call(self._actors[index])
                )
            except RayTaskError as error:
                # What was raised, and not a class that Ray makes of it: that one's text differs
                # from time to time, so that a failure that comes back would not be recognised.
                raise (error.cause if isinstance(error.cause, Exception) else error) from error
            except RayActorError as error:
                losses += 1
                running = None
                if losses > _MAX_LOSSES_IN_A_ROW or not _comes_back(error):
                    raise RunnerLost(
                        f"The env runner of group {index} died {losses} times in a row and is given "
                        f"up: {why_it_died(error)}"
                    ) from None
                self._revive(index, error)

    def _wait(self, index: int, reference: Any) -> Any:
        waited = 0.0
        while True:
            try:
                return ray.get(reference, timeout=self._patience_s)
            except GetTimeoutError:
                waited += self._patience_s
                self._tell(
                    f"The env runner of group {index} has been busy for {waited:.0f} s and is waited "
                    "for; is a step of its environment hanging?"
                )

    def _revive(self, index: int, error: RayActorError) -> None:
        """Wait for Ray to start the actor again and give it the last snapshots of its groups."""
        began = time.monotonic()
        deadline = began + _RESTART_DEADLINE_S
        while True:
            try:
                for each in self._hosted_by(self._hosts[index]):
                    ray.get(self._adopt(self._actors[each], each), timeout=_RESTART_DEADLINE_S)
                break
            except (RayActorError, GetTimeoutError) as again:
                if time.monotonic() > deadline or not _comes_back(again):
                    raise RunnerLost(
                        f"The env runner of group {index} was lost and did not come back within "
                        f"{_RESTART_DEADLINE_S:.0f} s: {why_it_died(error)}"
                    ) from None
                time.sleep(0.1)
        cost = "nothing is lost"
        if self._strategy == "reset":
            cost = "its running episodes are lost, since the environment cannot be restored"
        self._tell(
            f"The env runner of group {index} died ({why_it_died(error)}). Its fragment of iteration "
            f"{self._iteration + 1} is sampled again from the group's last state by a new process; "
            f"{cost} ({time.monotonic() - began:.1f} s)."
        )

    def _merged_connectors(self) -> dict[str, Any]:
        """All runners' connector states in one, in group order."""
        assert self._local is not None
        before = self._local.connector_state()
        pipelines = dict(
            zip(
                (COMPONENT_ENV_TO_MODULE_CONNECTOR, COMPONENT_MODULE_TO_ENV_CONNECTOR),
                _ray.connectors(self._local),
                strict=True,
            )
        )
        merged = {}
        for component, pipeline in pipelines.items():
            states = [
                self._connector_states[index][component]
                for index in self.indices
                if self._connector_states.get(index, {}).get(component)
            ]
            if states:
                merged[component] = merge_connector_states(pipeline, before[component], states)
        return merged


def _snapshot(actor: Any, index: int) -> Any:
    return actor.snapshot.remote(index)


def _comes_back(error: BaseException) -> bool:
    """Whether Ray restarts the actor: a dead one without restarts left, or killed on purpose, stays
    dead and says so at once."""
    if not isinstance(error, ActorDiedError):
        return True
    text = str(error)
    return "max_restarts" not in text and "ray.kill" not in text and "out of scope" not in text


def _steps_of(rollout: Rollout) -> int:
    """Environment steps of a rollout. RLlib's count of a rollout without a step is NaN."""
    steps = float(rollout.metrics.get(NUM_ENV_STEPS_SAMPLED, 0))
    return 0 if math.isnan(steps) else int(steps)
