"""What computes a trial, as its manifests hold it, and what has changed since one was written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray

from raytrain.arithmetic.fingerprint import comparable, holds_the_network
from raytrain.arithmetic.machine import OtherArithmetic, OtherNodeNeeded, other_arithmetic
from raytrain.arithmetic.settings import ROLES, ArithmeticSettings
from raytrain.checkpoint import ExperimentFile
from raytrain.cluster.nodes import nodes_alive
from raytrain.config import ExperimentConfig

if TYPE_CHECKING:
    from raytrain.ppo.algorithm import ExactPPO

LEARNER, ENV_RUNNER, EVALUATION_RUNNER = "learner", "env_runner", "evaluation_runner"

_SETTINGS = "settings"
_NAMES = {
    LEARNER: "the learner's machine",
    ENV_RUNNER: "the env runners' machine",
    EVALUATION_RUNNER: "the evaluation runners' machine",
}


class TrialArithmetic:
    """What computes a trial now. `entry` is that of its manifests."""

    def __init__(
        self,
        config: ExperimentConfig,
        settings: ArithmeticSettings | None,
        algorithm: ExactPPO,
    ) -> None:
        self._config = config
        self._settings = settings
        self._algorithm = algorithm
        self.entry: Mapping[str, Any] = {}

    def begin(self) -> None:
        """Take what is there for a run that begins, or that is not exact any more."""
        self._algorithm.env_groups.expect_arithmetic(None)
        self.entry = self._present()

    def compare(
        self, before: Mapping[str, Any] | None, told_to_stay: Callable[[], bool], *, exact: bool
    ) -> str | None:
        """Compare what is there with the entry of a manifest; returns why a run that was `exact`
        is so no more, or None. `told_to_stay`: whether no other node was found for the trial.

        Raises:
            OtherArithmetic: another machine computes, and the config says to fail.
            OtherNodeNeeded: another machine computes, and a node may be there that does not.
        """
        before = before or {}
        now = self._present()
        changed = changed_settings(before, now)
        if changed is not None or not exact:
            self.begin()
            return changed
        runners = before.get(ENV_RUNNER)
        if runners and comparable(runners["fingerprint"], now[ENV_RUNNER]["fingerprint"]):
            expected = runners["fingerprint"], runners["machine"]
            self._algorithm.env_groups.expect_arithmetic(expected)
            self.entry = self._present()
        else:
            self.begin()
        local = self._local_roles()
        other = other_machines(before, self.entry, local=local)
        if other is None:
            return None
        role, why = other
        policy = self._config.fault_tolerance.on_other_arithmetic
        if policy == "fail":
            raise OtherArithmetic(
                f"{why[0].upper()}{why[1:]}. Continue it on a machine of that kind, or with "
                "fault_tolerance.on_other_arithmetic: continue, which ends exactness."
            )
        if told_to_stay() or (policy == "continue" and len(nodes_alive()) == 1):
            return why
        needed = OtherNodeNeeded(why)
        is_remote = role == LEARNER and LEARNER not in local
        own = (ray.get_runtime_context().get_node_id(),)
        needed.nodes = tuple(self._algorithm.learners.nodes()) if is_remote else own
        raise needed

    def unknown_kernels(self) -> Iterator[str]:
        """A sentence for each role whose fingerprint leaves the network out."""
        for role, entry in self.entry.items():
            if role != _SETTINGS and not holds_the_network(entry["fingerprint"]):
                yield (
                    f"The fingerprint of arithmetic of the {role.replace('_', ' ')} leaves the "
                    "network out, since it does not run on made-up observations: that another "
                    "machine computes differently may be noticed late, or not at all."
                )

    def _present(self) -> dict[str, Any]:
        return record(self._settings, self._algorithm.arithmetic())

    def _local_roles(self) -> frozenset[str]:
        """What the trial's own process does."""
        roles = {
            LEARNER: self._config.learners.num_learners,
            ENV_RUNNER: self._config.env_runners.num_env_runners,
            EVALUATION_RUNNER: self._config.evaluation.evaluation_num_env_runners,
        }
        return frozenset(role for role, remote in roles.items() if not remote)


def settings_of(experiment: ExperimentFile, config: ExperimentConfig) -> ArithmeticSettings | None:
    """The settings of a trial with this config; None in an experiment that has none."""
    if experiment.arithmetic is None:
        return None
    settings = ArithmeticSettings.read(experiment.arithmetic[_SETTINGS])
    threads = config.debugging.threads
    return settings if threads is None else replace(settings, threads=dict.fromkeys(ROLES, threads))


def record(
    settings: ArithmeticSettings | None, computed_by: Mapping[str, tuple[str, Mapping[str, str]]]
) -> dict[str, Any]:
    """The entry of a manifest. `computed_by`: fingerprint and machine by role."""
    roles = {
        role: {"fingerprint": fingerprint, "machine": dict(machine)}
        for role, (fingerprint, machine) in computed_by.items()
    }
    return {**({} if settings is None else {_SETTINGS: settings.to_dict()}), **roles}


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What differs between the settings of two such entries; None if nothing is known to."""
    old, new = before.get(_SETTINGS), now.get(_SETTINGS)
    if old is None or new is None:
        return None
    if old["threads"] != new["threads"]:
        was, is_now = (_threads_text(entry["threads"]) for entry in (old, new))
        return f"the threads of arithmetic changed from {was} to {is_now}"
    if old["portable"] != new["portable"]:
        return f"debugging.portable changed from {old['portable']} to {new['portable']}"
    if old["hash_seed"] != new["hash_seed"]:
        return "the order of hashes changed"
    return None


def other_machines(
    before: Mapping[str, Any], now: Mapping[str, Any], *, local: frozenset[str]
) -> tuple[str, str] | None:
    """The role that computes differently, and a sentence about it; None if none does. `local`: the
    roles that the trial's own process has."""
    for role, name in _NAMES.items():
        old, new = before.get(role), now.get(role)
        if not old or not new or old["fingerprint"] == new["fingerprint"]:
            continue
        if comparable(old["fingerprint"], new["fingerprint"]):
            what = "this machine" if role in local else name
            return role, other_arithmetic(what, old["machine"], new["machine"])
    return None


def _threads_text(threads: Mapping[str, int]) -> str:
    if len(set(threads.values())) == 1:
        return str(threads["trial"])
    return ", ".join(f"{number} ({role})" for role, number in threads.items())
