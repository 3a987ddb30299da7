"""`raytrain evaluate`: a checkpoint's policy in the environment it was trained on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym

from raytrain import load_policy
from raytrain.checkpoint import ExperimentFile
from raytrain.commands.progress_bar import busy
from raytrain.config import ConfigError, EnvCreator, config_from_dict, env_creator
from raytrain.config.environment import deep_merge
from raytrain.config.own_code import first_in_path
from raytrain.config.user_code import EnvironmentFailed
from raytrain.errors import BadInput, require
from raytrain.policy.evaluate import Evaluation, evaluate
from raytrain.storage import Location

_LEVELS_UP = 4  # experiment / trial / stages / name, at most


def evaluate_path(
    path: str,
    *,
    episodes: int,
    seed: int,
    deterministic: bool,
    video: str | None = None,
    max_steps: int | None = None,
    track: Callable[[range], Iterable[int]] = iter,
    tell: Callable[[str], None] = lambda message: None,
) -> Evaluation:
    """Play `episodes` episodes with the policy at `path`, in the evaluation environment of the
    experiment around it. With `video`, each episode is recorded as an MP4 file in that directory.
    `max_steps` ends an episode; its default is `evaluation.max_episode_steps` of the config.

    Raises:
        BadInput: there is no such policy, or its environment is unknown or cannot be rendered.
        MissingExtra: the packages for videos are not installed.
    """
    if video is not None:
        require("video", "moviepy", what="Recording videos")
    experiment = _experiment_of(path)
    if experiment is not None:  # A network of the user's own may lie beside the YAML file.
        first_in_path(experiment.config.get("import_path"))
    with busy("Loading"):
        policy = load_policy(path)
    if experiment is None:
        raise BadInput(
            f"{path} is not in an experiment (no experiment.json above it), so its environment is "
            "unknown. Use raytrain.load_policy(...) with an environment of your own."
        )
    config = config_from_dict(experiment.config)
    # The policy takes masks out of observations itself.
    creator = replace(env_creator(config), mask_key=None)
    env_config = deep_merge(policy.env_config, config.evaluation.evaluation_config.env_config or {})

    def make() -> gym.Env[Any, Any]:
        if video is None:
            return creator(env_config)
        return _recorded(creator, env_config, Path(video), episodes)

    return evaluate(
        policy,
        make,
        episodes=episodes,
        seed=seed,
        deterministic=deterministic,
        max_steps=max_steps or config.evaluation.max_episode_steps,
        track=track,
        tell=tell,
    )


def _experiment_of(path: str) -> ExperimentFile | None:
    base, _, fixed = path.rpartition(":")
    place = Location.of(base if fixed in ("best", "final") else path)
    if place.is_local and not place.local_path.is_dir():
        return None  # What is wrong with it is said when the policy is loaded.
    for _ in range(_LEVELS_UP):
        experiment = ExperimentFile.read(place)
        if experiment is not None:
            return experiment
        place = place.parent
    return None


def _recorded(
    creator: EnvCreator, env_config: dict[str, Any], directory: Path, episodes: int
) -> gym.Env[Any, Any]:
    """The environment, rendered to images, in Gymnasium's RecordVideo."""
    for driver in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):
        # pygame renders to memory here; without this it would need a screen and a sound card.
        os.environ.setdefault(driver, "dummy")
    try:
        env = creator({**env_config, "render_mode": "rgb_array"})
    except (ConfigError, EnvironmentFailed) as error:
        raise BadInput(
            f"Recording videos: the environment cannot be made with render_mode='rgb_array' "
            f"({error}). Let its factory take `render_mode` and pass it on."
        ) from error
    if env.render_mode != "rgb_array":
        env.close()
        raise BadInput(
            f"Recording videos: the environment's render_mode is {env.render_mode!r}, though "
            "'rgb_array' was asked for. Let its factory pass `render_mode` on."
        )
    files = [directory / f"policy-episode-{i}.mp4" for i in range(episodes)]
    existing = next((path for path in files if path.exists()), None)
    if existing is not None:
        env.close()
        raise BadInput(f"{existing} exists already. Give another directory for the videos.")
    directory.mkdir(parents=True, exist_ok=True)
    return gym.wrappers.RecordVideo(
        env, str(directory), episode_trigger=lambda _: True, name_prefix="policy"
    )
