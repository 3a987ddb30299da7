"""The env runner actor: the class that RLlib constructs, in an actor or in the trial's process.

To RLlib, an env runner is one group, which it samples by itself in an evaluation. The trial may
also have an actor host further groups, and calls them through `call`.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import ray
from ray.rllib.utils.annotations import override

from raytrain._ray import actors as _ray_actors
from raytrain._ray.actor_signals import spare_this_actor
from raytrain.arithmetic.settings import use_threads_of
from raytrain.rng import preserved
from raytrain.rollout.env_group import EnvGroup
from raytrain.rollout.timeout import reporting_stalls, stall_key

_REPORT_AFTER = 0.9
"""A stalled call is reported after this part of its time limit, before the actor is killed."""


class EnvRunnerActor(EnvGroup):
    """Hosts its own group, which it is itself, and the further ones that it is called for."""

    def __init__(self, **kwargs: Any) -> None:
        spare_this_actor()
        if kwargs.get("worker_index"):  # Otherwise this is the trial's process.
            use_threads_of("env_runner", kwargs["config"].learner_config_dict)
        super().__init__(**kwargs)
        self._arguments = kwargs
        self._groups: dict[int, EnvGroup] = {self.group: self}

    def call(
        self, group: int, method: str, *arguments: Any, limit_s: float | None = None, **options: Any
    ) -> Any:
        """Call a method of an `EnvGroup`, which is constructed if this process does not host it
        yet. A call that takes almost `limit_s` seconds reports where it stalls."""

        def report(position: str) -> None:
            _ray_actors.leave_message(stall_key(_actor_id(), group), position)

        with reporting_stalls(report, None if limit_s is None else _REPORT_AFTER * limit_s):
            return getattr(self.hosted(group), method)(*arguments, **options)

    def hosted(self, group: int) -> EnvGroup:
        """The group in this process."""
        if group not in self._groups:
            # RLlib draws from the global generators here, which are not to change for
            # the other groups.
            with preserved():
                hosted = EnvGroup(**{**self._arguments, "worker_index": group + 1})
            hosted.module = self.module  # One copy of the weights serves all.
            self._groups[group] = hosted
        return self._groups[group]

    def release(self, group: int) -> None:
        """Drop a group that another actor hosts from now on. The own group stays, for
        when it returns."""
        if group != self.group and group in self._groups:
            self._groups.pop(group).stop()

    def process(self) -> tuple[str, int, str, str, dict[str, str]]:
        """The fields of `ActorProcess`. An answer shows that the process is up."""
        return _actor_id(), os.getpid(), socket.gethostname(), *self.arithmetic()

    @override(EnvGroup)
    def stop(self) -> None:
        for group in list(self._groups):
            self.release(group)
        super().stop()


def _actor_id() -> str:
    actor_id: str | None = ray.get_runtime_context().get_actor_id()
    return actor_id or ""
