"""All env groups of a trial: sampling in step, exact recovery of a lost runner, snapshots.

RLlib's own calls to env runners may lose some of them: a push of weights may be dropped, and the
share of a late or dead runner is made up by the others, without a message. Here every call is
repeated until every group has answered (see `group_calls`), by whichever actor hosts the group (see
`runner_pool`), from the state that the group had before the fragment; so the iteration's data do
not depend on which process dies.

    iteration k:   rollout(sync k-1) of all groups  -> episodes, metrics, snapshot k  (group order)
                   learn
                   publish(weights)                 -> sync k, sent with the next rollout
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias, cast

import ray
from ray.rllib.core import (
    COMPONENT_ENV_TO_MODULE_CONNECTOR,
    COMPONENT_MODULE_TO_ENV_CONNECTOR,
)
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from raytrain import _ray
from raytrain.arithmetic.machine import OtherArithmetic, other_arithmetic
from raytrain.checkpoint import weights_sha256
from raytrain.config.run_code import ProcessCode, named
from raytrain.errors import RaytrainError
from raytrain.rollout.env_group import EnvGroup, Loaded, RunnerSettings
from raytrain.rollout.env_snapshots import Strategy
from raytrain.rollout.filters import merge_connector_states
from raytrain.rollout.group_calls import RetryingCall, RunnerLost
from raytrain.rollout.rollout import Collected, Rollout
from raytrain.rollout.runner_pool import RunnerPool, RunnerRules
from raytrain.rollout.timeout import RolloutTimeout

Arithmetic: TypeAlias = tuple[str, Mapping[str, str]]
"""A fingerprint, and the description of a machine that has it."""


class NoNewEnvSteps(RaytrainError):
    """An iteration brought no new environment steps."""


class RolloutCollector:
    """The groups of one RLlib `EnvRunnerGroup` (training or evaluation), by group index.

    `tell` receives a message for each loss and recovery. `lost_exactness` is called with the reason
    when samples are lost for good, which `rules` may allow. Evaluation's groups stay at their own
    actors (`elastic` is false), since RLlib calls these directly.

    Without remote env runners there is one group, in this process: the local env runner. With them
    the local env runner has no environments, but the merged state of the connectors.
    """

    def __init__(
        self,
        runners: Any,
        *,
        strategy: str,
        tell: Callable[[str], None],
        sample_timeout_s: float | None,
        rules: RunnerRules,
        elastic: bool,
        lost_exactness: Callable[[str], None],
        code: ProcessCode | None = None,
    ) -> None:
        self._local: EnvGroup = runners.local_env_runner
        reserved = {
            index - 1: actor for index, actor in _ray.runners.runner_actors(runners).items()
        }
        self._rules = rules
        self._elastic = elastic
        self._remote_indices = list(range(runners.groups)) if reserved else []
        self._pool = RunnerPool(
            reserved,
            runners.further,
            most=len(reserved) + len(runners.further),
            make=runners.make if elastic else None,
            tell=tell,
        )
        self._expected = len(reserved) + runners.had_room_for
        self._strategy = cast(Strategy, strategy)  # The runners refuse an unknown name.
        self._tell = tell
        self._lost_exactness = lost_exactness
        self._code = code
        self._tell_after_s = sample_timeout_s
        self._timeout = RolloutTimeout(self._rules.timeout_s)
        self._sync: Any = None
        self._digest: str | None = None
        self._snapshots: dict[int, bytes | None] = dict.fromkeys(self.indices)
        self._connector_states: dict[int, dict[str, Any]] = {}
        self._iteration = 0
        self._settings: RunnerSettings | None = None
        self._consecutive_short = 0
        self._fragments_dropped = 0
        self._expected_arithmetic: Arithmetic | None = None
        self._told_waiting = False

    @property
    def indices(self) -> list[int]:
        """Group indices, ascending."""
        return self._remote_indices or [0]

    @property
    def actors(self) -> dict[int, Any]:
        """The actors that are there, by index. Safe to read in any thread."""
        return {runner.index: runner.actor for runner in self._pool.up}

    @property
    def counts(self) -> dict[str, int]:
        """Under RLlib's names: actors that are there, and, since this process began, how many were
        lost and how many fragments were dropped."""
        return {
            "num_healthy_workers": len(self._pool.up),
            "num_remote_worker_restarts": self._pool.failures,
            "num_env_runners_dropped_lifetime": self._fragments_dropped,
        }

    def take_recreated(self) -> list[int]:
        """RLlib's indices (from 1) of the env runners that have come back in another process since
        the last call."""
        indices, self._pool.recreated = self._pool.recreated, []
        return indices

    # -- life ------------------------------------------------------------------------------------

    def start(self, sync: dict[str, Any], snapshots: dict[int, bytes], *, iteration: int) -> None:
        """Give every group its state, and wait until every runner holds the weights of `sync`.
        A group without a snapshot starts anew."""
        self._iteration = iteration
        self._snapshots = {index: snapshots.get(index) for index in self.indices}
        snapshot = None if self._remote_indices else self._snapshots[0]
        self._local.load(self._strategy, sync, snapshot, iteration=iteration)
        if not self._remote_indices:
            return
        self._put(sync)
        self._pool.wait_for(self._expected)
        if self._expected_arithmetic is not None:
            self._pool.expect(*self._expected_arithmetic)
        for runner in self._pool.up:
            runner.loaded.clear()
        self._assign_groups()
        self._retrying(None, self._remote_indices).run()

    def arithmetic(self) -> Arithmetic:
        """The fingerprint of what samples the groups, and the description of its machine."""
        if not self._remote_indices:
            return self._local.arithmetic()
        return self._expected_arithmetic or self._pool.most_frequent() or ("", {})

    def expect_arithmetic(self, expected: Arithmetic | None) -> None:
        """Give work only to processes that compute like this, as long as there are any. None: like
        most of those that are there. It does not change which process does evaluation."""
        if not self._remote_indices or not self._elastic:
            return
        self._expected_arithmetic = expected or self._pool.most_frequent()
        if self._expected_arithmetic is not None:
            self._pool.expect(*self._expected_arithmetic)

    def _on_only_differing(self) -> None:
        """Act as `fault_tolerance.on_other_arithmetic` says."""
        assert self._expected_arithmetic is not None
        process = self._pool.differing[0]
        why = other_arithmetic("the env runners", self._expected_arithmetic[1], process.machine)
        match self._rules.on_other_arithmetic:
            case "fail":
                raise OtherArithmetic(f"{why}; fault_tolerance.on_other_arithmetic is fail.")
            case "wait":
                if not self._told_waiting:
                    self._told_waiting = True
                    self._tell(
                        f"{why}. Training waits for other nodes "
                        "(fault_tolerance.on_other_arithmetic is wait)."
                    )
            case "continue":
                self._expected_arithmetic = None
                self._pool.accept_differing()
                self._lost_exactness(why)

    def stop(self) -> None:
        """End the actors that RLlib does not end by itself."""
        self._pool.stop()

    def sample(self, min_env_steps: int) -> Collected:
        """Sample fragments from all groups in step until there are `min_env_steps` steps; or fewer,
        if fragments were lost and the rules allow it.

        Raises:
            NoNewEnvSteps: the fragments brought no step.
            RunnerLost: see `RetryingCall.run`.
        """
        self._assign_groups()
        self._connector_states.clear()
        collected, missing = Collected(), 0.0
        dropped: set[int] = set()
        while collected.env_steps + missing < min_env_steps:
            rollouts, lost = self._rollouts(dropped)
            steps = collected.add(rollouts)
            if steps == 0:
                raise NoNewEnvSteps(
                    f"Iteration {self._iteration + 1} got no new environment steps from "
                    f"{len(rollouts)} env group(s), so it has no result. Check the environment's "
                    "reset() and step()."
                )
            # The other groups do not sample further fragments in place of the lost ones.
            missing += len(lost) * steps / len(rollouts)
            dropped |= lost
        self._note_dropped(dropped)
        return collected

    def publish(self, weights: dict[str, Any], env_steps_sampled: int, *, iteration: int) -> None:
        """Make new weights (RLlib's module state with its sequence number) and the merged connector
        states what the next rollout of every group starts from."""
        self._iteration = iteration
        steps = {NUM_ENV_STEPS_SAMPLED_LIFETIME: int(env_steps_sampled)}
        self._share({**weights, **steps, **self._merged_connectors()})

    def take_over(self, sync: dict[str, Any]) -> None:
        """Hand `sync` to every runner and wait until all have it (evaluation)."""
        self._share(sync)
        if self._remote_indices:
            self._call_all("take_over", self._sync)

    def use_settings(self, settings: RunnerSettings, *, iteration: int) -> None:
        """Let every group continue with another config in the process where it is;
        new episodes begin."""
        self._iteration = iteration
        self._local.use_settings(settings, iteration=iteration)
        if self._remote_indices:
            self._snapshots.update(self._call_all("use_settings", settings, iteration=iteration))
        # Only now: a group whose actor dies meanwhile is set up with the old settings
        # and called again.
        self._settings, self._strategy = settings, settings.strategy

    def take_finished(self) -> list[dict[str, Any]]:
        """Rows of the episodes that ended outside of `sample` (RLlib's evaluation),
        in group order."""
        return [row for rows in self._call_all("take_finished").values() for row in rows]

    def snapshots(self) -> dict[int, bytes]:
        """The state of every group at this moment."""
        if not self._remote_indices:
            return self._call_all("snapshot")
        missing = [index for index, snapshot in self._snapshots.items() if snapshot is None]
        if missing:
            self._snapshots.update(self._call_all("snapshot", indices=missing))
        return {index: bytes(data) for index, data in self._snapshots.items() if data is not None}

    def forget_snapshots(self) -> None:
        """Take new snapshots next time: RLlib's evaluation used the runners."""
        self._snapshots = dict.fromkeys(self.indices)

    def why_not_into_arrays(self) -> str | None:
        """Why the groups are sampled in RLlib's own, slower way; None if they are not."""
        reasons = self._call_all("why_not_into_arrays", indices=self.indices[:1])
        reason: str | None = reasons[0]
        return reason

    def present_sampling(self) -> str:
        """How far the sampling in this process is, as the end of a sentence; empty if that is
        unknown. Safe to call in any thread."""
        return "" if self._remote_indices else self._local.present_sampling()

    def weight_names(self) -> list[str]:
        """Names of the parameters and buffers that the runners' module has."""
        return list(self._local.module.state_dict())

    def connector_state(self) -> dict[str, Any]:
        """State of the (merged) connector pipelines."""
        return self._local.connector_state()

    # -- calls -----------------------------------------------------------------------------------

    def _share(self, sync: dict[str, Any]) -> None:
        self._local.take_over(sync)
        if self._remote_indices:
            self._put(sync)

    def _put(self, sync: dict[str, Any]) -> None:
        self._sync, self._digest = ray.put(sync), None

    def _assign_groups(self) -> None:
        """Assign the groups to the actors that are there."""
        if not self._remote_indices:
            return
        if not self._elastic:
            self._pool.assign_to_own(self._remote_indices)
            self._pool.refresh()
            return
        self._pool.scale()
        for runner, group in self._pool.assign(self._remote_indices):
            runner.actor.release.remote(group)

    def _rollouts(self, dropped: Collection[int]) -> tuple[list[Rollout], set[int]]:
        """A fragment of every group, in group order, and the groups without one. `dropped`: the
        groups that have lost one in this iteration before."""
        if not self._remote_indices:
            return [self._local.rollout(None, snapshot=False)], set()
        call = self._retrying(
            lambda actor, group, limit_s: actor.call.remote(
                group, "rollout", self._sync, snapshot=True, limit_s=limit_s
            ),
            self._remote_indices,
            about=f"iteration {self._iteration + 1}",
            sampling=True,
            may_drop=lambda lost: self._may_drop(len(dropped) + lost),
        )
        rollouts = call.run()
        for index, rollout in rollouts.items():
            self._timeout.add(rollout.seconds["rollout"])
            self._snapshots[index] = rollout.snapshot
            self._connector_states[index] = rollout.connectors
        return list(rollouts.values()), call.dropped

    def _call_all(
        self,
        method: str,
        *arguments: Any,
        indices: Collection[int] | None = None,
        **options: Any,
    ) -> dict[int, Any]:
        """The answers of a method of `EnvGroup` by all groups, or those of `indices`."""
        if not self._remote_indices:
            return {0: getattr(self._local, method)(*arguments, **options)}
        return self._retrying(
            lambda actor, group, limit_s: actor.call.remote(group, method, *arguments, **options),
            self._remote_indices if indices is None else indices,
        ).run()

    def _retrying(
        self,
        ask: Callable[[Any, int, float | None], Any] | None,
        indices: Collection[int],
        **options: Any,
    ) -> RetryingCall:
        consequence = "nothing is lost"
        if self._strategy == "reset":
            consequence = "its running episodes are lost, since the environment cannot be restored"
        return RetryingCall(
            self._pool,
            indices,
            load=self._load,
            check_loaded=self._check_loaded,
            ask=ask,
            consequence=consequence,
            timeout=self._timeout,
            tell=self._tell,
            tell_after_s=self._tell_after_s,
            elastic=self._elastic,
            on_only_differing=self._on_only_differing,
            **options,
        )

    def _load(self, actor: Any, index: int) -> Any:
        return actor.call.remote(
            index,
            "load",
            self._strategy,
            self._sync,
            self._snapshots[index],
            iteration=self._iteration,
            settings=self._settings,
            code=self._code,
        )

    def _check_loaded(self, index: int, loaded: Loaded) -> None:
        if self._digest is None:
            self._digest = weights_sha256(self._local.module.state_dict())
        if loaded.weights_sha256 != self._digest:
            raise RunnerLost(
                f"The env runner of group {index} does not hold the weights that it was sent. "
                "Run the same command again. If the error comes again, it is a bug in raytrain."
            )

        if loaded.other_code:
            self._lost_exactness(
                f"the env runner of group {index} has other code: {named(loaded.other_code)}"
            )

    # -- lost fragments --------------------------------------------------------------------------

    def _may_drop(self, lost: int) -> bool:
        """Whether the iteration may continue with so many fragments lost: at most half of them, and
        not in too many iterations in a row."""
        return (
            self._rules.on_loss == "continue"
            and self._consecutive_short < self._rules.max_short_iterations
            and lost <= len(self._remote_indices) // 2
        )

    def _note_dropped(self, dropped: Collection[int]) -> None:
        self._consecutive_short = self._consecutive_short + 1 if dropped else 0
        self._fragments_dropped += len(dropped)
        if dropped:
            self._lost_exactness(
                f"iteration {self._iteration + 1} continued without env group(s) "
                f"{', '.join(map(str, sorted(dropped)))}, whose env runner was lost "
                "(fault_tolerance.on_env_runner_loss is continue)"
            )

    # -- connectors ------------------------------------------------------------------------------

    def _merged_connectors(self) -> dict[str, Any]:
        """The merged connector states of all groups, in group order."""
        before = self._local.connector_state()
        components = (COMPONENT_ENV_TO_MODULE_CONNECTOR, COMPONENT_MODULE_TO_ENV_CONNECTOR)
        pipelines = _ray.runners.connectors(self._local)
        merged = {}
        for component, pipeline in zip(components, pipelines, strict=True):
            states = [
                state[component]
                for _, state in sorted(self._connector_states.items())
                if state.get(component)
            ]
            if states:
                merged[component] = merge_connector_states(pipeline, before[component], states)
        return merged
