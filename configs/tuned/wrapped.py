"""Environments with the wrappers that rl-zoo's hyperparameters were found with."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


def normalized(
    env: str, gamma: float | None = None, clip: float = 10.0, **arguments: Any
) -> gym.Env[Any, Any]:
    """`env`, made with `arguments`, with rewards divided by the running standard deviation of the
    discounted return, and clipped, as Stable-Baselines3's VecNormalize does (there for all
    environments together). For evaluation, `gamma: null` gives the rewards as they are."""
    made: gym.Env[Any, Any] = gym.make(env, **arguments)
    if gamma is None:
        return made
    return gym.wrappers.ClipReward(gym.wrappers.NormalizeReward(made, gamma=gamma), -clip, clip)


def minigrid(env: str) -> gym.Env[Any, Any]:
    """MiniGrid's image (7, 7, 3) as a vector, without the mission, which is always the same text in
    its empty rooms, and without the direction, which the image is relative to."""
    from minigrid.wrappers import ImgObsWrapper

    return gym.wrappers.FlattenObservation(ImgObsWrapper(gym.make(env)))


def atari(env: str, training: bool = True) -> gym.Env[Any, Any]:
    """Four gray images of 84 by 84, (84, 84, 4) uint8, one for each four frames, as
    Stable-Baselines3's AtariWrapper makes them. With `training`, a lost life ends the episode and
    rewards are clipped to [-1, 1]."""
    import ale_py

    gym.register_envs(ale_py)
    made: gym.Env[Any, Any] = gym.make(env, frameskip=1, repeat_action_probability=0.0)
    made = gym.wrappers.AtariPreprocessing(
        made, noop_max=30, frame_skip=4, screen_size=84, terminal_on_life_loss=training
    )
    if training:
        made = gym.wrappers.ClipReward(made, -1.0, 1.0)
    made = gym.wrappers.FrameStackObservation(made, 4)
    space = gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
    return gym.wrappers.TransformObservation(made, lambda stack: np.moveaxis(stack, 0, -1), space)
