"""Private names of Ray that concern env runner actors: starting them, and the messages of one in a
call that does not return."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import ray
from ray.experimental import internal_kv
from ray.rllib.algorithms import algorithm as rllib_algorithm
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from raytrain._ray.patch import patched

# -- starting them -------------------------------------------------------------------------------


class ElasticRunnerGroup(EnvRunnerGroup):
    """RLlib's `EnvRunnerGroup` with fewer actors of its own than the config has env runners: the
    first `reserved` of them, for which the trial's placement group has bundles. `make` starts
    another one outside of the placement group. `groups`: the number of env runners in the config;
    `further`: the actors started outside at first, by index; `had_room_for`: how many of them
    seemed to fit into the cluster.

    RLlib starts one actor for each configured env runner and assumes a bundle for each; neither is
    an option. Evaluation's group is RLlib's own, except for where its bundles begin.
    """

    def __init__(self, *, reserved: int, most: int, pg_offset: int = 0, **kwargs: Any) -> None:
        training = not kwargs["config"].in_evaluation
        self._reserved = reserved if training else None
        self.groups = int(kwargs["config"].num_env_runners)
        self.further = dict.fromkeys(range(reserved, most)) if training else {}
        self.had_room_for = 0
        super().__init__(pg_offset=pg_offset if training else reserved, **kwargs)

    def _setup(self, *, num_env_runners: int = 0, **kwargs: Any) -> None:
        if self._reserved is not None:
            num_env_runners = min(num_env_runners, self._reserved)
        super()._setup(num_env_runners=num_env_runners, **kwargs)

    def get_spaces(self) -> Any:
        """RLlib's, which raises an IndexError if an actor could not start; here the actor's own
        error is raised, a `RayActorError`."""
        for actor in list(self._worker_manager.actors().values())[:1]:
            ray.get(actor.get_spaces.remote())
        return super().get_spaces()

    def add_workers(self, num_workers: int, validate: bool = False) -> None:
        """RLlib's; further actors are started before the first ones are waited for."""
        super().add_workers(num_workers, validate=False)
        need = {
            "CPU": self._remote_args["num_cpus"],
            "GPU": self._remote_args["num_gpus"],
            **self._remote_args["resources"],
        }
        self.had_room_for = _fitting(need, ray.available_resources(), len(self.further))
        self.further = {index: self.make(index) for index in self.further}
        super().add_workers(0, validate=validate)

    def make(self, index: int) -> Any:
        """Start an actor for the env runner `index` (from 0), on any node with the resources.
        Without one it waits in Ray's queue, where an autoscaler sees it."""
        # A strategy of its own is the way out of the placement group, which captures child actors.
        actor_class = ray.remote(**self._remote_args)(self.env_runner_cls)
        return actor_class.options(scheduling_strategy="DEFAULT").remote(
            env_creator=self._env_creator,
            validate_env=None,
            default_policy_class=self._policy_class,
            config=self._remote_config_obj_ref,
            worker_index=index + 1,
            num_workers=self.groups,
            recreated_worker=False,
            log_dir=self._logdir,
            spaces=None,
            dataset_shards=self._ds_shards,
            tune_trial_id=self._tune_trial_id,
        )

    def _make_worker(self, *, num_workers: int, **kwargs: Any) -> Any:
        # The environment's context must not depend on the number of actors.
        return super()._make_worker(num_workers=self.groups or num_workers, **kwargs)


def _fitting(request: Mapping[str, float], available: Mapping[str, float], most: int) -> int:
    """How many equal requests fit into the sum of the cluster's resources."""
    counts = [int(available.get(name, 0.0) / need) for name, need in request.items() if need > 0]
    return min([most, *counts])


def elastic_runners(*, reserved: int, most: int) -> AbstractContextManager[None]:
    """Within, an `Algorithm` that is set up makes `ElasticRunnerGroup`s."""
    group = partial(ElasticRunnerGroup, reserved=reserved, most=most)
    return patched(rllib_algorithm, EnvRunnerGroup=group)


# -- the message of one that does not return -----------------------------------------------------

# An actor in the middle of a call cannot be called, and a second thread for calls (a concurrency
# group) would move the environments out of the main thread. But a background thread of it can write
# to the cluster's key-value store, which has no public name.
_NAMESPACE = b"raytrain"


def leave_message(name: str, text: str) -> None:
    """Store a text for `take_message`, from any thread and process of the cluster."""
    internal_kv._internal_kv_put(name.encode(), text.encode(), True, namespace=_NAMESPACE)


def take_message(name: str) -> str | None:
    """The text stored under a name, which is then deleted; or None."""
    text: bytes | None = internal_kv._internal_kv_get(name.encode(), namespace=_NAMESPACE)
    if text is None:
        return None
    internal_kv._internal_kv_del(name.encode(), namespace=_NAMESPACE)
    return text.decode()
