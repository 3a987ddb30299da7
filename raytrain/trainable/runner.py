"""The env runner of an env group: RLlib's, with a state that can be taken and put back exactly.

A group is the unit of sampling: the environments of one configured env runner with their random
streams, running episodes, filter state and metric windows. Whatever process hosts it, a group's
data are the same, because its random streams are swapped in for the time of a `sample()` and
nothing else of the process is used.

A group's snapshot is one pickled dict (the environments may only be known to pickle):

    group        index, 0 .. num_env_runners - 1 (0 if there are no remote runners)
    runner       counters, running episodes, the cached batch for the next forward pass
    vector_env   the vector environment's last observations, rewards and flags
    envs         one snapshot per environment, by the strategy that proved itself
    connectors   state of both connector pipelines
    metrics      metric windows
    rng          Python, NumPy and Torch generators of the group, as JSON types
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any

import cloudpickle
import numpy as np
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core import (
    COMPONENT_ENV_TO_MODULE_CONNECTOR,
    COMPONENT_MODULE_TO_ENV_CONNECTOR,
)
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.annotations import override

from raytrain import _ray
from raytrain.checkpoint import weights_sha256
from raytrain.trainable.rng import RngStreams
from raytrain.trainable.snapshots import Snapshotter, Strategy, snapshotter

_TRAINING, _EVALUATION = 0, 1


@dataclass(frozen=True)
class Rollout:
    """What one `rollout()` of a group returns."""

    episodes: list[Any]
    """Episode chunks, in order: first the finished ones, then the running ones."""
    metrics: dict[str, Any]
    """Reduced RLlib stats, to be aggregated in group order."""
    finished: list[dict[str, Any]]
    """A row for each episode that ended (see `EpisodeRecorder`)."""
    connectors: dict[str, Any]
    """State of the connector pipelines after the rollout, to be merged in group order."""
    snapshot: bytes | None
    """The group's state after the rollout, if it was asked for."""


@dataclass(frozen=True)
class ChunkTotals:
    """Stands for the returned chunks of a running episode: all that its end still needs of them."""

    length: int
    episode_return: float
    duration_s: float

    def __len__(self) -> int:
        return self.length

    def get_return(self) -> float:
        return self.episode_return

    def get_duration_s(self) -> float:
        return self.duration_s


class EpisodeRecorder(RLlibCallback):
    """Notes every finished episode on its runner: `group`, `env_index`, `return`, `length`, and the
    numbers that the environment put into its last `info`, as `custom/<name>`."""

    @override(RLlibCallback)
    def on_episode_end(
        self,
        *,
        episode: Any,
        prev_episode_chunks: Any = (),
        env_runner: Any = None,
        env_index: int = 0,
        **kwargs: Any,
    ) -> None:
        chunks = list(prev_episode_chunks or ())
        row: dict[str, Any] = {
            "group": env_runner.group,
            "env_index": env_index,
            "return": float(episode.get_return() + sum(c.get_return() for c in chunks)),
            "length": len(episode) + sum(len(c) for c in chunks),
        }
        info = episode.get_infos(-1)
        for name, value in (info or {}).items():
            if isinstance(value, (numbers.Real, np.number)) and not isinstance(value, bool):
                row[f"custom/{name}"] = float(value)
        env_runner.note_finished(row)


class GroupEnvRunner(SingleAgentEnvRunner):
    """Hosts one env group."""

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self._finished: list[dict[str, Any]] = []
        self.group = max(int(self.worker_index or 0), 1) - 1
        self._shots: Snapshotter | None = None
        purpose = _EVALUATION if self.config.in_evaluation else _TRAINING
        self._entropy = (int(self.config.seed or 0), purpose, self.group)
        self._streams = RngStreams.seeded(*self._entropy)
        _ray.set_runner_seed(self, _reset_seed(*self._entropy, 0))

    def use_strategy(self, strategy: Strategy) -> None:
        """Set how the environments are snapshotted. Must come before the first `sample()`."""
        if self._shots is not None or self.env is None:
            return
        self._shots = snapshotter(strategy)
        envs = self.env.unwrapped.envs
        for index, env in enumerate(envs):
            envs[index] = self._shots.wrap(env)

    def note_finished(self, row: dict[str, Any]) -> None:
        """Called by `EpisodeRecorder` at the end of each episode."""
        self._finished.append(row)

    def take_finished(self) -> list[dict[str, Any]]:
        """The rows noted since the last call."""
        rows, self._finished = self._finished, []
        return rows

    @override(SingleAgentEnvRunner)
    def sample(self, **kwargs: Any) -> list[Any]:
        try:
            with self._streams.active():
                episodes: list[Any] = super().sample(**kwargs)
        except RuntimeError as error:
            # RLlib raises this, without a message, for whatever a step of an environment raised.
            if error.args or error.__cause__ is None:
                raise
            raise error.__cause__ from None
        _summarise_chunks(_ray.unfinished_chunks(self))
        return episodes

    def rollout(self, sync: dict[str, Any] | None, *, snapshot: bool) -> Rollout:
        """Take over weights and connector state (`sync`, as for `set_state`), sample one fragment,
        and return it with everything that belongs to it."""
        if sync is not None:
            self.take_over(sync)
        episodes = self.sample()
        return Rollout(
            episodes=episodes,
            metrics=self.get_metrics(),
            finished=self.take_finished(),
            connectors=self.connector_state(),
            snapshot=self.snapshot() if snapshot else None,
        )

    def take_over(self, sync: dict[str, Any]) -> None:
        """Set weights, connector state and counters, whatever version the weights have."""
        _ray.forget_weights_version(self)
        self.set_state(sync)

    def adopt(
        self, strategy: Strategy, sync: dict[str, Any], snapshot: bytes | None, *, iteration: int
    ) -> str:
        """Become the group of `snapshot` (None: a group that has not sampled yet) with the weights
        of `sync`. Returns the digest of the weights now held, which the caller compares."""
        self.use_strategy(strategy)
        if snapshot is not None:
            self.restore(snapshot, iteration=iteration)
        self.take_over(sync)
        return weights_sha256(self.module.state_dict())

    def connector_state(self) -> dict[str, Any]:
        """State of both connector pipelines."""
        state: dict[str, Any] = self.get_state(
            components=[COMPONENT_ENV_TO_MODULE_CONNECTOR, COMPONENT_MODULE_TO_ENV_CONNECTOR]
        )
        return state

    def snapshot(self) -> bytes:
        """The group's whole state but the weights (see the module's docstring)."""
        assert self._shots is not None, "adopt() comes first"
        vector_env = self.env.unwrapped
        state = {
            "group": self.group,
            "runner": _ray.runner_attributes(self),
            "vector_env": _ray.vector_env_attributes(vector_env),
            "envs": [self._shots.take(env) for env in vector_env.envs],
            "connectors": self.connector_state(),
            "metrics": self.metrics.stats,
            "rng": self._streams.to_state(),
        }
        data: bytes = cloudpickle.dumps(state)
        return data

    def restore(self, snapshot: bytes, *, iteration: int) -> None:
        """Put back what `snapshot` returned. Where environments cannot be restored (strategy
        `reset`) new episodes begin, seeded by the iteration, so that a second restore elsewhere
        does not repeat them."""
        assert self._shots is not None, "use_strategy() comes first"
        state = cloudpickle.loads(snapshot)
        self.set_state(state["connectors"])
        self.metrics.stats = state["metrics"]
        self._streams = RngStreams.from_state(state["rng"])
        self._finished = []
        _ray.set_runner_attributes(self, state["runner"])
        if self._shots.strategy == "reset":
            _ray.set_runner_seed(self, _reset_seed(*self._entropy, iteration))
            _ray.start_with_fresh_episodes(self)
            return
        vector_env = self.env.unwrapped
        # On scratch streams: what a restore draws from the global generators is not the run's.
        with RngStreams.from_state(state["rng"]).active():
            for index, saved in enumerate(state["envs"]):
                vector_env.envs[index] = self._shots.restore(vector_env.envs[index], saved)
        _ray.set_vector_env_attributes(vector_env, state["vector_env"])


def _reset_seed(*entropy: int) -> int:
    """A seed for the first reset, far from those of other groups (Gymnasium counts up from it)."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _summarise_chunks(chunks_by_episode: dict[str, list[Any]]) -> None:
    for chunks in chunks_by_episode.values():
        if chunks:
            chunks[:] = [
                ChunkTotals(
                    length=sum(len(chunk) for chunk in chunks),
                    episode_return=sum(chunk.get_return() for chunk in chunks),
                    duration_s=sum(chunk.get_duration_s() for chunk in chunks),
                )
            ]
