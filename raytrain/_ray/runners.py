"""Private names of Ray that concern env runners."""

from __future__ import annotations

import inspect
import sys
from contextlib import AbstractContextManager
from types import FrameType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from raytrain._ray.patch import patched

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.env.env_runner_group import EnvRunnerGroup
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

# `SingleAgentEnvRunner.get_state()` returns weights, connectors and one counter. These are the
# attributes that its next `sample()` also depends on.
_RUNNER_ATTRIBUTES = (
    "_needs_initial_reset",
    "_ongoing_episodes",
    "_ongoing_episodes_for_metrics",
    "_done_episodes_for_metrics",
    "_cached_to_module",
    "_shared_data",
    "_weights_seq_no",
    "num_env_steps_sampled_lifetime",
)

# The state of `gymnasium.vector.SyncVectorEnv` between two steps, beside its sub-environments. It
# holds a generator and cannot be pickled as a whole.
_VECTOR_ATTRIBUTES = (
    "_env_obs",
    "_observations",
    "_rewards",
    "_terminations",
    "_truncations",
    "_autoreset_envs",
)


def quick_connectors() -> AbstractContextManager[None]:
    """Within, RLlib makes its connectors in a tenth of the time. Each looks for its constructor's
    arguments in `inspect.stack()`, which also reads the source lines of all callers."""
    from ray.rllib.connectors import connector_v2

    def stack() -> list[SimpleNamespace]:
        frames: list[SimpleNamespace] = []
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            frames.append(SimpleNamespace(frame=frame))
            frame = frame.f_back
        return frames

    quick = SimpleNamespace(stack=stack, getargvalues=inspect.getargvalues)
    return patched(connector_v2, inspect=quick)


def runner_attributes(runner: SingleAgentEnvRunner) -> dict[str, Any]:
    """The state of a stock env runner between two `sample()` calls (not copied)."""
    return {name: getattr(runner, name) for name in _RUNNER_ATTRIBUTES}


def vector_env_attributes(vector_env: Any) -> dict[str, Any]:
    """The state of a `SyncVectorEnv` between two steps (not copied)."""
    return {name: getattr(vector_env, name) for name in _VECTOR_ATTRIBUTES}


def set_attributes(owner: Any, state: dict[str, Any]) -> None:
    """Put back what `runner_attributes` or `vector_env_attributes` returned."""
    for name, value in state.items():
        setattr(owner, name, value)


def set_runner_seed(runner: SingleAgentEnvRunner, seed: int) -> None:
    """Set the seed of the first reset. RLlib's own, `seed + worker_index`, gives neighbouring
    runners equal environments, since Gymnasium adds 1 for each sub-environment."""
    runner._seed = seed


def unfinished_chunks(runner: SingleAgentEnvRunner) -> dict[str, list[Any]]:
    """The chunks of each running episode that `sample()` has already returned, by episode id. RLlib
    keeps them whole, though it needs only their length, return and duration."""
    chunks: dict[str, list[Any]] = runner._ongoing_episodes_for_metrics
    return chunks


def connectors(runner: SingleAgentEnvRunner) -> tuple[Any, Any]:
    """The env-to-module and the module-to-env pipeline of a runner."""
    return runner._env_to_module, runner._module_to_env


def needs_reset(runner: SingleAgentEnvRunner) -> bool:
    """Whether the next `sample()` begins by resetting every environment."""
    return bool(runner._needs_initial_reset)


def set_needs_reset(runner: SingleAgentEnvRunner, value: bool) -> None:
    """Set what `needs_reset` returns."""
    runner._needs_initial_reset = value


def runner_seed(runner: SingleAgentEnvRunner) -> int | None:
    """The seed of the first reset."""
    seed: int | None = runner._seed
    return seed


def weights_version(runner: SingleAgentEnvRunner) -> int:
    """The sequence number of the weights that a runner holds."""
    return int(runner._weights_seq_no)


def log_sampled(runner: SingleAgentEnvRunner, env_steps: int, episodes: int, calls: int) -> None:
    """Count a fragment under RLlib's names and in Ray's own counters. `calls`: steps of the vector
    environment."""
    runner._log_env_steps(metric=runner._metrics_num_try_env_step, num_steps=calls)
    runner._log_env_steps(metric=runner._metrics_num_env_steps_sampled, num_steps=env_steps)
    runner._increase_sampled_metrics(env_steps, episodes)


def log_episodes(runner: SingleAgentEnvRunner, ended: list[tuple[int, float, float]]) -> None:
    """Log finished episodes (length, return, seconds) under RLlib's names, with its windows. RLlib
    looks up ten names for each, which takes longer than a step of a small environment: it does so
    for the first one, and the others are pushed into the same stats."""
    if not ended:
        return
    runner._log_episode_metrics(*ended[0])
    stats = runner.metrics.stats
    by_length = [stats[f"episode_len_{kind}"] for kind in ("mean", "min", "max")]
    by_return = [stats[f"episode_return_{kind}"] for kind in ("mean", "min", "max")]
    by_return += stats["agent_episode_return_mean"].values()
    by_return += stats["module_episode_return_mean"].values()
    for length, episode_return, seconds in ended[1:]:
        for series in by_length:
            series.push(length)
        for series in by_return:
            series.push(episode_return)
        stats["episode_duration_sec_mean"].push(seconds)


def state_server(runner: SingleAgentEnvRunner) -> Any:
    """The server from which a runner pulls its weights by itself, or None."""
    return runner._env_runner_state_server


def callbacks(runner: SingleAgentEnvRunner) -> list[Any]:
    """The callbacks objects of a runner."""
    objects: list[Any] = runner._callbacks
    return objects


def tell_of_recreated(algorithm: Algorithm, indices: list[int]) -> None:
    """Call the callbacks `on_env_runners_recreated`, as RLlib does when it has restarted its own
    env runners."""
    algorithm._make_on_env_runners_recreated_callbacks(
        config=algorithm.config,
        env_runner_group=algorithm.env_runner_group,
        restored_env_runner_indices=indices,
    )


def set_duration(episode: SingleAgentEpisode, seconds: float) -> None:
    """Set what `get_duration_s` of an episode, or of a chunk, returns."""
    episode._start_time, episode._last_step_time = 0.0, seconds


def mean_std_filter(connector: Any) -> tuple[Any, bool]:
    """The filter of a single-agent MeanStdFilter connector, and whether it updates its statistics.
    The connector's public state is a serialised copy."""
    if connector._filters is None:
        connector.get_state()
    return connector._filters[None], connector._update_stats


def env_to_module_connector(config: AlgorithmConfig) -> Any:
    """What a config was given as its `env_to_module_connector`, or None."""
    return config._env_to_module_connector


def set_weights_version(runner: SingleAgentEnvRunner, version: int) -> None:
    """Set what `weights_version` returns."""
    runner._weights_seq_no = version


def runner_actors(group: EnvRunnerGroup) -> dict[int, Any]:
    """The remote env runners of a group by worker index (1, 2, ...). The public `foreach_*` calls
    drop failed results silently, and their results do not name the runner."""
    return dict(sorted(group._worker_manager.actors().items()))


def set_auto_sync(config: AlgorithmConfig, value: bool) -> None:
    """Whether RLlib syncs states at the end of `Algorithm.step()`. It waits for no runner, and
    drops a push to a runner that still has one in flight."""
    config._dont_auto_sync_env_runner_states = not value
