"""Private names of Ray that concern env runner actors: making them, and hearing from one that does not
come back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
from ray.experimental import internal_kv
from ray.rllib.algorithms import algorithm as rllib_algorithm
from ray.rllib.env.env_runner_group import EnvRunnerGroup

# -- making them ---------------------------------------------------------------------------------


class ElasticRunnerGroup(EnvRunnerGroup):
    """RLlib's `EnvRunnerGroup` with fewer actors of its own than the config has env runners: the first
    `reserved` of them, for which the trial's placement group has bundles. `more` makes another one
    outside of the placement group. `groups`: how many env runners the config has; `further`: actors
    made so in the beginning, for how many of which the cluster seemed to have room then.

    RLlib makes one actor for each configured env runner and takes for granted that there is a bundle
    for each; neither is an option. Evaluation's group is RLlib's own, but for where its bundles begin.
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
        """RLlib's. Of an actor that could not start it takes the first of no answers, an IndexError; here the
        actor's own error is raised, a `RayActorError`."""
        for actor in list(self._worker_manager.actors().values())[:1]:
            ray.get(actor.get_spaces.remote())
        return super().get_spaces()

    def add_workers(self, num_workers: int, validate: bool = False) -> None:
        """RLlib's, with further actors asked for before the first ones are waited for."""
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
        """An actor for the env runner `index` (from 0), wherever the cluster has room. Without room it
        waits in Ray's queue, where an autoscaler sees it."""
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
        # What an environment is told of its surroundings must not depend on the number of actors.
        return super()._make_worker(num_workers=self.groups or num_workers, **kwargs)


def _fitting(request: Mapping[str, float], available: Mapping[str, float], most: int) -> int:
    """How many requests of one kind fit into what the cluster has, as far as sums can tell."""
    counts = [int(available.get(name, 0.0) / need) for name, need in request.items() if need > 0]
    return min([most, *counts])


@contextmanager
def elastic_runners(*, reserved: int, most: int) -> Iterator[None]:
    """Within, an `Algorithm` that is set up makes `ElasticRunnerGroup`s."""
    before = rllib_algorithm.EnvRunnerGroup
    rllib_algorithm.EnvRunnerGroup = partial(ElasticRunnerGroup, reserved=reserved, most=most)
    try:
        yield
    finally:
        rllib_algorithm.EnvRunnerGroup = before


# -- a word from one that does not come back -----------------------------------------------------

# An actor in the middle of a call cannot be called, and giving its class a second thread for calls
# (a concurrency group) would move the environments out of the main thread. What a background thread of it
# can do is write to the cluster's key-value store, which has no public name.
_NAMESPACE = b"raytrain"


def publish_stall(name: str, text: str) -> None:
    """Put a text where `take_stall` finds it, from any thread and process of the cluster."""
    internal_kv._internal_kv_put(name.encode(), text.encode(), True, namespace=_NAMESPACE)


def take_stall(name: str) -> str | None:
    """The text left under a name, which is then forgotten; or None."""
    found: bytes | None = internal_kv._internal_kv_get(name.encode(), namespace=_NAMESPACE)
    if found is None:
        return None
    internal_kv._internal_kv_del(name.encode(), namespace=_NAMESPACE)
    return found.decode()
