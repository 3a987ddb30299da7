"""Tune's `RunConfig` and `TuneConfig`, and `train`'s own arguments -> raytrain's config."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from raytrain.migrate.ppo_config import TakenOver

_STOPS = {
    "training_iteration": "iterations",
    "time_total_s": "time_s",
    "num_env_steps_sampled_lifetime": "timesteps",
    "env_runners/num_env_steps_sampled_lifetime": "timesteps",
    "timesteps_total": "timesteps",
    "env_runners/num_episodes_lifetime": "episodes",
    "num_episodes_lifetime": "episodes",
    "episodes_total": "episodes",
    "env_runners/episode_return_mean": "episode_return_mean",
    "episode_return_mean": "episode_return_mean",
    "episode_reward_mean": "episode_return_mean",
    "env_runners/episode_reward_mean": "episode_return_mean",
}
"""Keys of Tune's stop dictionary that have a name of their own under `stop`."""
_WHOLE = ("iterations", "timesteps", "episodes")
_SCORES = {"env_runners/episode_return_mean": "episode_return_mean"}
_NO_SCHEDULER = (
    "a scheduler ends or changes trials by the others' results, so a trial would depend on when "
    "the others ran; remove it, and let `stop` end each trial"
)
_NO_SEARCHER = (
    "a searcher chooses values by the results of earlier trials; remove it: grids and random draws "
    "(tune.grid_search, choice, uniform, loguniform) are drawn from the run's seed"
)


def stop_values(stop: Any, taken: TakenOver) -> None:
    """Tune's `stop` dictionary, or raytrain's own keys. As in Tune, a return is the mean that the
    iteration reports."""
    if stop is None:
        taken.refuse("stop", "must be given: stop={'training_iteration': 100}, for example")
        return
    if not isinstance(stop, Mapping):
        taken.refuse(
            "stop",
            f"a {type(stop).__name__} cannot be stored with the run; give a dictionary of metrics "
            "and the values that end the run",
        )
        return
    values: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    for key, value in _flat(stop).items():
        own = _STOPS.get(key)
        if own is not None:
            whole = own in _WHOLE and isinstance(value, float) and value.is_integer()
            # Tune ends at the first that is met.
            limit = int(value) if whole else value
            values[own] = min(values[own], limit) if own in values else limit
        elif key in ("timesteps", "iterations", "time_s", "episodes", "window"):
            values[key] = value
        elif key == "metrics":
            metrics.update(value)
        else:
            metrics[key] = value
    if metrics:
        values["metrics"] = metrics
    if "window" not in values and ("episode_return_mean" in values or metrics):
        values["window"] = None
    taken.values["stop"] = values


def run_config_values(run_config: Any, taken: TakenOver) -> None:
    """What a `RunConfig` says, besides name and place."""
    from ray import air
    from ray.tune import RunConfig

    if not _is_a(air.RunConfig, "run_config", run_config, taken):
        return
    if run_config.storage_filesystem is not None:
        taken.refuse("storage_filesystem", "give storage_path a URI, such as s3://bucket/runs")
    if run_config.sync_config not in (None, RunConfig().sync_config):
        taken.notes.append("sync_config has no effect here: every file is written to storage.")
    if run_config.log_to_file:
        taken.notes.append("log_to_file has no effect here: Ray keeps the output of its workers.")
    if run_config.progress_reporter is not None:
        taken.notes.append("progress_reporter has no effect here: raytrain prints the progress.")
    stop_values(run_config.stop, taken)
    checkpoint_values(run_config.checkpoint_config, taken)
    failures = run_config.failure_config
    if failures is not None:
        taken.put(("failure", "max_failures"), failures.max_failures)
        if failures.fail_fast is True:
            taken.notes.append(
                "fail_fast has no effect on other trials here: they run to their ends, and keep "
                "their results."
            )


def checkpoint_values(given: Any, taken: TakenOver) -> None:
    """A `CheckpointConfig`, or a mapping of raytrain's keys."""
    if given is None:
        return
    if isinstance(given, Mapping):
        taken.values["checkpoint"] = dict(given)
        return
    values: dict[str, Any] = {}
    # ray.train's class has no frequency, but a text there.
    if isinstance(given.checkpoint_frequency, int) and given.checkpoint_frequency:
        values["checkpoint_frequency"] = given.checkpoint_frequency
        values["num_to_keep"] = None
    if given.num_to_keep is not None:
        values["num_to_keep"] = given.num_to_keep
    score = given.checkpoint_score_attribute
    if score is not None:
        values["score"] = _SCORES.get(score, score)
        values["score_order"] = given.checkpoint_score_order
        values["score_window"] = None
    if values:
        taken.values["checkpoint"] = values


def tune_config_values(tune_config: Any, taken: TakenOver) -> None:
    """What a `TuneConfig` says. Its metric and mode choose `get_best_result`'s trial only."""
    from ray.tune import TuneConfig
    from ray.tune.schedulers import FIFOScheduler
    from ray.tune.search import BasicVariantGenerator

    if not _is_a(TuneConfig, "tune_config", tune_config, taken):
        return
    scheduler, searcher = tune_config.scheduler, tune_config.search_alg
    if scheduler is not None and type(scheduler) is not FIFOScheduler:
        taken.refuse("scheduler", _NO_SCHEDULER, _shown(scheduler))
    if searcher is not None and type(searcher) is not BasicVariantGenerator:
        taken.refuse("search_alg", _NO_SEARCHER, _shown(searcher))
    if tune_config.time_budget_s is not None:
        seconds = tune_config.time_budget_s
        if isinstance(seconds, datetime.timedelta):
            seconds = seconds.total_seconds()
        taken.refuse("time_budget_s", "give stop={'time_total_s': ...}, of each trial", seconds)
    for name in ("trial_name_creator", "trial_dirname_creator"):
        if getattr(tune_config, name) is not None:
            why = "raytrain finds a trial again by its name, trial_00000; remove it"
            taken.refuse(name, why)
    if tune_config.reuse_actors:
        taken.notes.append("reuse_actors has no effect here: each trial has its own process.")
    if tune_config.max_concurrent_trials is not None:
        taken.put(("tune", "max_concurrent_trials"), tune_config.max_concurrent_trials)
    _samples(tune_config.num_samples, taken)


def _is_a(kind: type, name: str, given: Any, taken: TakenOver) -> bool:
    """Whether an argument is of the right class; refused if not."""
    if isinstance(given, kind):
        return True
    found = f"{type(given).__module__}.{type(given).__name__}".removeprefix("builtins.")
    taken.refuse(name, f"is a {found}; give a ray.tune.{kind.__name__}")
    return False


def _samples(number: int, taken: TakenOver) -> None:
    """Samples without a random search space are repetitions. Under Tune each has a seed of its own
    by chance; here by number."""
    if number == 1:
        return
    if number < 1:
        taken.refuse("num_samples", "must be a number; without an end nothing finishes", number)
    elif "seed" in taken.values or _draws(taken.values):
        taken.put(("tune", "num_samples"), number)
    else:
        taken.values["seed"] = {"grid_search": list(range(number))}
        taken.notes.append(
            f"num_samples={number}: the trials get the seeds 0 to {number - 1}, since nothing else "
            "differs between them."
        )


def _draws(values: Any) -> bool:
    if not isinstance(values, Mapping):
        return False
    if len(values) == 1 and next(iter(values)) in ("choice", "uniform", "loguniform"):
        return True
    return any(map(_draws, values.values()))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        nested = isinstance(value, Mapping) and not value.keys() & {"at_least", "at_most"}
        if nested and key != "metrics":
            flat.update(_flat(value, f"{name}/"))
        else:
            flat[name] = value
    return flat


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else type(value).__name__
