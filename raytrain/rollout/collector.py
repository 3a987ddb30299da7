"""All env groups of a trial: sampling in step, exact recovery of a lost runner, snapshots.

RLlib's own way of talking to env runners is built to go on without some of them: a push of weights
may be dropped, a late or dead runner's share is made up by the others, and nobody is told. Here
every question is asked of every group until it is answered (see `group_calls`), by whichever actor hosts
the group (see `runner_pool`), from the state that the group had before the fragment; so the iteration's data do
not depend on what dies.

    iteration k:   rollout(sync k-1) of all groups    -> episodes, metrics, snapshot k  (group order)
                   learn
                   publish(weights)                   -> sync k, sent with the next rollout
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, cast

import ray
from ray.rllib.core import (
    COMPONENT_ENV_TO_MODULE_CONNECTOR,
    COMPONENT_MODULE_TO_ENV_CONNECTOR,
)
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from raytrain import _ray
from raytrain.checkpoint import weights_sha256
from raytrain.errors import RaytrainError
from raytrain.rollout.env_runner import GroupEnvRunner, RunnerSettings
from raytrain.rollout.env_snapshots import Strategy
from raytrain.rollout.filters import merge_connector_states
from raytrain.rollout.group_calls import GroupCall, RetryingCall, RunnerLost
from raytrain.rollout.rollout import Collected, Rollout
from raytrain.rollout.runner_pool import RunnerPool, RunnerRules
from raytrain.rollout.timeout import RolloutTimeout


class NoNewEnvSteps(RaytrainError):
    """An iteration brought no new environment steps."""


class RolloutCollector:
    """The groups of one RLlib `EnvRunnerGroup` (training or evaluation), by group index.

    `tell` receives one plain sentence for each loss and recovery. `lost_exactness` is called with the
    reason when samples are lost for good, which `rules` may allow. Evaluation's groups stay at their
    own actors (`elastic`), as RLlib talks to these directly.
    """

    def __init__(
        self,
        runners: Any,
        *,
        strategy: str,
        tell: Callable[[str], None],
        sample_timeout_s: float | None,
        rules: RunnerRules | None = None,
        elastic: bool = True,
        lost_exactness: Callable[[str], None] = lambda why: None,
    ) -> None:
        self._local: GroupEnvRunner | None = runners.local_env_runner
        reserved = {
            index - 1: actor for index, actor in _ray.runners.runner_actors(runners).items()
        }
        self._rules = rules or RunnerRules()
        self._elastic = elastic
        self._indices = list(range(runners.groups)) if reserved else []
        self._pool = RunnerPool(
            reserved,
            runners.further,
            most=len(reserved) + len(runners.further),
            make=runners.make if elastic else None,
            tell=tell,
        )
        self._expected = len(reserved) + runners.had_room_for
        self._strategy = cast(Strategy, strategy)  # A name that is none is refused by the runners.
        self._tell = tell
        self._lost_exactness = lost_exactness
        self._tell_after_s = sample_timeout_s
        self._timeout = RolloutTimeout(self._rules.timeout_s)
        self._sync: Any = None
        self._digest: str | None = None
        self._snapshots: dict[int, bytes | None] = dict.fromkeys(self.indices)
        self._connector_states: dict[int, dict[str, Any]] = {}
        self._iteration = 0
        self._settings: RunnerSettings | None = None
        self._short_in_a_row = 0
        self._fragments_dropped = 0

    @property
    def indices(self) -> list[int]:
        """Group indices, ascending."""
        return self._indices or [0]

    @property
    def actors(self) -> dict[int, Any]:
        """The actors that are there, by index. Safe to read in any thread."""
        return {host.index: host.actor for host in self._pool.up}

    @property
    def counts(self) -> dict[str, int]:
        """Under RLlib's names: actors that are there, and, since this process began, how many were lost
        and how many fragments were given up."""
        return {
            "num_healthy_workers": len(self._pool.up),
            "num_remote_worker_restarts": self._pool.failures,
            "num_env_runners_dropped_lifetime": self._fragments_dropped,
        }

    # -- life ------------------------------------------------------------------------------------

    def start(self, sync: dict[str, Any], snapshots: dict[int, bytes], *, iteration: int) -> None:
        """Give every group its state, and wait until every runner holds the weights of `sync`.
        A group without a snapshot starts anew."""
        self._iteration = iteration
        self._snapshots = {index: snapshots.get(index) for index in self.indices}
        if self._local is not None:
            # Without remote runners this is the group's host; with them it keeps the connectors.
            snapshot = None if self._indices else self._snapshots[0]
            self._local.load_group(self._strategy, sync, snapshot, iteration=iteration)
        if not self._indices:
            return
        self._set_sync(sync)
        self._pool.wait_for(self._expected)
        for host in self._pool.up:
            host.loaded.clear()
        self._settle()
        self._ask_all(None)

    def stop(self) -> None:
        """End the actors that RLlib does not end by itself."""
        self._pool.stop()

    def sample(self, min_env_steps: int) -> Collected:
        """Sample fragments from all groups in step until there are `min_env_steps` steps; or fewer, if
        fragments were lost and the rules allow it."""
        self._settle()
        self._connector_states.clear()
        collected, missing = Collected(), 0.0
        dropped: set[int] = set()
        while collected.env_steps + missing < min_env_steps:
            rollouts, lost = self._rollouts(dropped)
            steps = collected.add(rollouts)
            if steps == 0:
                raise NoNewEnvSteps(
                    f"Iteration {self._iteration + 1} got no new environment steps from "
                    f"{len(rollouts)} env group(s). An iteration without data is not a result: look "
                    "at the environment's reset() and step()."
                )
            # What was lost is not made up for by further fragments of the others.
            missing += len(lost) * steps / len(rollouts)
            dropped |= lost
        self._note_dropped(dropped)
        return collected

    def publish(self, weights: dict[str, Any], env_steps_sampled: int, *, iteration: int) -> None:
        """Make new weights (RLlib's module state with its sequence number) and the merged connector
        states what the next rollout of every group starts from."""
        self._iteration = iteration
        sync = {**weights, NUM_ENV_STEPS_SAMPLED_LIFETIME: int(env_steps_sampled)}
        if self._indices:
            sync.update(self._merged_connectors())
        if self._local is not None:
            self._local.take_over(sync)
        if self._indices:
            self._set_sync(sync)

    def take_over(self, sync: dict[str, Any]) -> None:
        """Hand `sync` to every runner and wait until all have it (evaluation)."""
        if self._local is not None:
            self._local.take_over(sync)
        if self._indices:
            self._set_sync(sync)
            self._ask_all(lambda actor, group, limit_s: actor.take_over.remote(self._sync))

    def use_settings(self, settings: RunnerSettings, *, iteration: int) -> None:
        """Let every group go on with another config in the process where it is; episodes begin
        anew."""
        self._iteration = iteration
        if self._local is not None:
            self._local.use_settings(settings, iteration=iteration)
        if self._indices:
            answers = self._ask_all(
                lambda actor, group, limit_s: actor.use_settings.remote(
                    settings, iteration=iteration, group=group
                )
            )
            self._snapshots.update(answers)
        # Only now: a group whose actor died meanwhile was set up as it was before, and asked again.
        self._settings, self._strategy = settings, settings.strategy

    def take_finished(self) -> list[dict[str, Any]]:
        """Rows of the episodes that ended outside of `sample` (RLlib's evaluation), in group order."""
        if not self._indices:
            return [] if self._local is None else self._local.take_finished()
        answers = self._ask_all(lambda actor, group, limit_s: actor.take_finished.remote(group))
        return [row for rows in answers.values() for row in rows]

    def snapshots(self) -> dict[int, bytes]:
        """The state of every group at this moment."""
        if not self._indices:
            return (
                {}
                if self._local is None or self._local.env is None
                else {0: self._local.snapshot()}
            )
        missing = [index for index, snapshot in self._snapshots.items() if snapshot is None]
        if missing:
            self._snapshots.update(
                self._ask_all(lambda actor, group, limit_s: actor.snapshot.remote(group), missing)
            )
        return {index: bytes(data) for index, data in self._snapshots.items() if data is not None}

    def take_snapshots_again(self) -> None:
        """Forget kept snapshots: the runners were used by somebody else (RLlib's evaluation)."""
        self._snapshots = dict.fromkeys(self.indices)

    def why_not_into_arrays(self) -> str | None:
        """Why the groups are sampled in RLlib's own, slower way; None if they are not."""
        if not self._indices:
            return None if self._local is None else self._local.why_not_into_arrays()
        first = self._indices[:1]
        reasons: dict[int, str | None] = self._ask_all(
            lambda actor, group, limit_s: actor.why_not_into_arrays.remote(), first
        )
        return reasons[first[0]]

    def present_sampling(self) -> str:
        """How far the sampling in this process is, as the end of a sentence; empty if that is not known.
        Safe to call in any thread."""
        return "" if self._indices or self._local is None else self._local.present_sampling()

    def weight_names(self) -> list[str]:
        """Names of the parameters and buffers that the runners' module has."""
        assert self._local is not None
        return list(self._local.module.state_dict())

    def connector_state(self) -> dict[str, Any]:
        """State of the (merged) connector pipelines."""
        return {} if self._local is None else self._local.connector_state()

    # -- inside ----------------------------------------------------------------------------------

    def _set_sync(self, sync: dict[str, Any]) -> None:
        self._sync, self._digest = ray.put(sync), None

    def _settle(self) -> None:
        """Let the groups be where the actors are."""
        if not self._indices:
            return
        if not self._elastic:
            self._pool.assign_to_own(self._indices)
            self._pool.refresh()
            return
        self._pool.scale()
        for host, group in self._pool.assign(self._indices):
            host.actor.release.remote(group)

    def _rollouts(self, dropped: Collection[int]) -> tuple[list[Rollout], set[int]]:
        """A fragment of every group, in group order, and the groups without one. `dropped`: those that
        have lost one in this iteration before."""
        if not self._indices:
            assert self._local is not None
            return [self._local.rollout(None, snapshot=False)], set()
        call = self._call(
            GroupCall(
                load=self._load,
                check_loaded=self._check_loaded,
                ask=self._rollout,
                about=f"iteration {self._iteration + 1}",
                sampling=True,
                consequence=self._consequence,
            ),
            self._indices,
            lambda lost: self._may_drop(len(dropped) + lost),
        )
        rollouts = call.run()
        for index, rollout in rollouts.items():
            self._timeout.add(rollout.seconds["rollout"])
            self._snapshots[index] = rollout.snapshot
            self._connector_states[index] = rollout.connectors
        return list(rollouts.values()), call.dropped

    def _rollout(self, actor: Any, index: int, limit_s: float | None) -> Any:
        return actor.rollout.remote(self._sync, snapshot=True, group=index, patience_s=limit_s)

    def _load(self, actor: Any, index: int) -> Any:
        return actor.load_group.remote(
            self._strategy,
            self._sync,
            self._snapshots[index],
            iteration=self._iteration,
            group=index,
            settings=self._settings,
        )

    def _check_loaded(self, index: int, digest: str) -> None:
        if self._local is None:
            return
        if self._digest is None:
            self._digest = weights_sha256(self._local.module.state_dict())
        if digest != self._digest:
            raise RunnerLost(
                f"The env runner of group {index} does not hold the weights that it was sent. "
                "Start the same command again; if it stays, this is a defect of raytrain."
            )

    def _ask_all(
        self,
        ask: Callable[[Any, int, float | None], Any] | None,
        indices: Collection[int] | None = None,
    ) -> dict[int, Any]:
        """The answers of all groups; without a question, after setting them up."""
        group_call = GroupCall(self._load, self._check_loaded, ask, consequence=self._consequence)
        call = self._call(group_call, self._indices if indices is None else indices)
        return call.run()

    def _call(
        self,
        group_call: GroupCall,
        indices: Collection[int],
        may_drop: Callable[[int], bool] = lambda lost: False,
    ) -> RetryingCall:
        return RetryingCall(
            self._pool,
            indices,
            group_call,
            timeout=self._timeout,
            tell=self._tell,
            tell_after_s=self._tell_after_s,
            elastic=self._elastic,
            may_drop=may_drop,
        )

    @property
    def _consequence(self) -> str:
        if self._strategy == "reset":
            return "its running episodes are lost, since the environment cannot be restored"
        return "nothing is lost"

    def _may_drop(self, lost: int) -> bool:
        """Whether an iteration may go on with so many fragments lost: at most half of them, and not for
        ever."""
        return (
            self._rules.on_loss == "continue"
            and self._short_in_a_row < self._rules.max_short_iterations
            and lost <= len(self._indices) // 2
        )

    def _note_dropped(self, dropped: Collection[int]) -> None:
        self._short_in_a_row = self._short_in_a_row + 1 if dropped else 0
        self._fragments_dropped += len(dropped)
        if dropped:
            self._lost_exactness(
                f"iteration {self._iteration + 1} went on without env group(s) "
                f"{', '.join(map(str, sorted(dropped)))}, whose env runner was lost "
                "(fault_tolerance.on_env_runner_loss is continue)"
            )

    def _merged_connectors(self) -> dict[str, Any]:
        """All runners' connector states in one, in group order."""
        assert self._local is not None
        before = self._local.connector_state()
        pipelines = dict(
            zip(
                (COMPONENT_ENV_TO_MODULE_CONNECTOR, COMPONENT_MODULE_TO_ENV_CONNECTOR),
                _ray.runners.connectors(self._local),
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
