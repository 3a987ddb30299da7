"""`raytrain evaluate`: a checkpoint's policy in the environment it was trained on."""

from __future__ import annotations

from raytrain import load_policy
from raytrain.checkpoint import ExperimentFile, Location
from raytrain.config import config_from_dict, env_creator
from raytrain.errors import BadInput
from raytrain.trainable.evaluate import Evaluation, evaluate

_LEVELS_UP = 4  # experiment / trial / stages / name, at most


def evaluate_path(path: str, *, episodes: int, seed: int, deterministic: bool) -> Evaluation:
    """Play `episodes` episodes with the policy at `path`, in the environment that the experiment
    around it describes: that of its evaluation, where the two differ."""
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
    for_evaluation = config.evaluation.evaluation_config.env_config
    env_config = policy.env_config if for_evaluation is None else for_evaluation
    return evaluate(
        policy,
        lambda: creator(dict(env_config)),
        episodes=episodes,
        seed=seed,
        deterministic=deterministic,
    )
