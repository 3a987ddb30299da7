"""`raytrain evaluate`: a checkpoint's policy in the environment it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raytrain import load_policy
from raytrain.checkpoint import ExperimentFile, Location
from raytrain.config import config_from_dict, env_creator
from raytrain.errors import BadInput
from raytrain.trainable.evaluate import Evaluation, evaluate

_LEVELS_UP = 4  # experiment / trial / stages / name, at most


def evaluate_path(path: str, *, episodes: int, seed: int, deterministic: bool) -> Evaluation:
    """Play `episodes` episodes with the policy at `path`, in the environment that the experiment
    around it describes for evaluation."""
    policy = load_policy(path)
    base, _, fixed = path.rpartition(":")
    place = Location.of(base if fixed in ("best", "final") else path)
    for _ in range(_LEVELS_UP):
        experiment = ExperimentFile.read(place)
        if experiment is not None:
            break
        place = place.parent
    else:
        raise BadInput(
            f"{path} does not lie in an experiment (no experiment.json above it), so its environment "
            "is not known. Use raytrain.load_policy(...) with an environment of your own."
        )
    config = config_from_dict(experiment.config)
    creator = env_creator(config)
    env_config = _laid_over(policy.env_config, config.evaluation.evaluation_config.env_config or {})
    return evaluate(
        policy,
        lambda: creator(env_config),
        episodes=episodes,
        seed=seed,
        deterministic=deterministic,
    )


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """As RLlib lays `evaluation_config` over the config, mappings in it one by one."""
    laid = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(laid.get(key), Mapping)
        laid[key] = _laid_over(laid[key], value) if both else value
    return laid
