"""Connectors of one's own."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.columns import Columns


class Halved(ConnectorV2):
    """Halves observations, and counts how often, which it saves."""

    calls = 0

    def recompute_output_observation_space(
        self, input_observation_space: Any, input_action_space: Any
    ) -> Any:
        return gym.spaces.Box(-np.inf, np.inf, input_observation_space.shape, np.float32)

    def __call__(self, *, episodes: Any, batch: Any, **kwargs: Any) -> Any:
        self.calls += 1
        for episode in self.single_agent_episode_iterator(episodes, agents_that_stepped_only=False):
            observation = np.asarray(episode.get_observations(-1), np.float32) / 2
            episode.set_observations(at_indices=-1, new_data=observation + self.calls * 1e-3)
        return batch

    def get_state(self, *args: Any, **kwargs: Any) -> Any:
        return {"calls": self.calls}

    def set_state(self, state: Any) -> None:
        self.calls = state["calls"]


class Flipped(ConnectorV2):
    """Turns actions around on their way to the environment."""

    def __call__(self, *, batch: Any, **kwargs: Any) -> Any:
        self.foreach_batch_item_change_in_place(
            batch=batch, column=Columns.ACTIONS, func=lambda action, *_: 1 - action
        )
        return batch


class Noted(ConnectorV2):
    """Counts train batches, in its state."""

    batches = 0

    def __call__(self, *, episodes: Any, batch: Any, **kwargs: Any) -> Any:
        self.batches += 1
        for episode in self.single_agent_episode_iterator(episodes, agents_that_stepped_only=False):
            rewards = np.asarray(episode.get_rewards()) * (1 + 1 / self.batches)
            episode.set_rewards(new_data=rewards)
        return batch

    def get_state(self, *args: Any, **kwargs: Any) -> Any:
        return {"batches": self.batches}

    def set_state(self, state: Any) -> None:
        self.batches = state["batches"]


def to_module(env: Any, spaces: Any, device: Any) -> Any:
    return Halved()


def filtered(env: Any, spaces: Any, device: Any) -> Any:
    return [MeanStdFilter()]


def to_env(env: Any, spaces: Any) -> Any:
    return [Flipped()]


def for_learner(observation_space: Any, action_space: Any) -> Any:
    return Noted()
