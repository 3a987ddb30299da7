"""`observations` as RLlib connectors, for RLlib's own sampling and for the spaces of its modules.

    observation ─> EncodeObservations ─> MeanStdFilter or NormalizeParts ─> RLlib's connectors

Each is there only if it changes something. `Preprocessing` reads out of a pipeline what comes
before RLlib's default connectors, for code that does the same to arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from ray.rllib.connectors.common.flatten_observations import FlattenObservations
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.env_to_module.mean_std_filter import MeanStdFilter
from ray.rllib.utils.annotations import override

from raytrain import _ray
from raytrain.policy.observations import FlatBox, ObservationEncoding


@dataclass(frozen=True)
class ObservationConnectors:
    """The `env_to_module_connector` of a config: the connectors for the environment's space."""

    normalize: bool
    """Whether observations are normalized with running statistics."""

    def __call__(self, env: Any = None, spaces: Any = None, device: Any = None) -> list[Any]:
        """RLlib gives the arguments: a vector environment, or spaces by name."""
        if env is not None:
            space = env.single_observation_space
        elif spaces is not None:
            space = spaces["__env_single__"][0]
        else:
            return [MeanStdFilter()] if self.normalize else []
        encoding = ObservationEncoding.of(space, normalize=self.normalize)
        connectors: list[Any] = []
        if encoding.kind != "as it is":
            connectors.append(EncodeObservations(normalize=self.normalize))
        if self.normalize:
            columns = encoding.normalized_columns()
            if columns is None and not isinstance(encoding.space, FlatBox):
                connectors.append(MeanStdFilter())
            elif columns is None or columns:
                connectors.append(NormalizeParts(columns=columns))
        return connectors


def filters_observations(config: Any) -> bool:
    """Whether an `AlgorithmConfig` has a connector that may normalize observations."""
    connector = _ray.runners.env_to_module_connector(config)
    return connector is not None and getattr(connector, "normalize", True)


class EncodeObservations(ConnectorV2):
    """Writes the encoded observation into the episode, as FlattenObservations does."""

    def __init__(
        self,
        input_observation_space: gym.Space[Any] | None = None,
        input_action_space: gym.Space[Any] | None = None,
        *,
        normalize: bool = False,
        **kwargs: Any,
    ) -> None:
        self._normalize = normalize
        self.encoding: ObservationEncoding | None = None
        super().__init__(input_observation_space, input_action_space, **kwargs)

    @override(ConnectorV2)
    def recompute_output_observation_space(
        self, input_observation_space: gym.Space[Any], input_action_space: gym.Space[Any]
    ) -> gym.Space[Any]:
        self.encoding = ObservationEncoding.of(input_observation_space, normalize=self._normalize)
        return self.encoding.space

    @override(ConnectorV2)
    def __call__(self, *, batch: dict[str, Any], episodes: list[Any], **kwargs: Any) -> Any:
        assert self.encoding is not None
        _replace_last(self, episodes, self.encoding.one)
        return batch


class NormalizeParts(ConnectorV2):
    """RLlib's MeanStdFilter for some columns of a vector (None: all); its state is that of the
    filter. The space of the output still says where images are."""

    def __init__(
        self,
        input_observation_space: gym.Space[Any] | None = None,
        input_action_space: gym.Space[Any] | None = None,
        *,
        columns: Sequence[int] | None,
        **kwargs: Any,
    ) -> None:
        self.columns = None if columns is None else list(columns)
        self.filter: MeanStdFilter | None = None
        super().__init__(input_observation_space, input_action_space, **kwargs)

    @override(ConnectorV2)
    def recompute_output_observation_space(
        self, input_observation_space: gym.Space[Any], input_action_space: gym.Space[Any]
    ) -> gym.Space[Any]:
        space = input_observation_space
        assert space.shape is not None
        size = space.shape[0] if self.columns is None else len(self.columns)
        self.filter = MeanStdFilter()  # It takes no space before it is made.
        self.filter.input_observation_space = Box(-np.inf, np.inf, (size,), np.float32)
        return FlatBox(space.of, normalized=True) if isinstance(space, FlatBox) else space

    @override(ConnectorV2)
    def __call__(self, *, batch: dict[str, Any], episodes: list[Any], **kwargs: Any) -> Any:
        assert self.filter is not None
        running, update = _ray.runners.mean_std_filter(self.filter)
        columns: Any = slice(None) if self.columns is None else self.columns

        def normalized(observation: Any) -> Any:
            changed = np.array(observation)
            changed[columns] = running(changed[columns], update=update)
            return changed

        _replace_last(self, episodes, normalized)
        return batch

    @override(ConnectorV2)
    def get_state(self, *args: Any, **kwargs: Any) -> Any:
        assert self.filter is not None
        return self.filter.get_state(*args, **kwargs)

    @override(ConnectorV2)
    def set_state(self, state: Any) -> None:
        assert self.filter is not None
        self.filter.set_state(state)

    @override(ConnectorV2)
    def reset_state(self) -> None:
        assert self.filter is not None
        self.filter.reset_state()

    @override(ConnectorV2)
    def merge_states(self, states: list[Any]) -> Any:
        assert self.filter is not None
        return self.filter.merge_states(states)


def _replace_last(connector: ConnectorV2, episodes: list[Any], change: Any) -> None:
    for episode in connector.single_agent_episode_iterator(episodes, agents_that_stepped_only=True):
        changed = change(episode.get_observations(-1))
        episode.set_observations(at_indices=-1, new_data=changed)
        # Otherwise the episode checks the new observation against the environment's space.
        episode.observation_space = connector.observation_space


@dataclass(frozen=True)
class Preprocessing:
    """What a pipeline does before its other connectors."""

    encoding: ObservationEncoding | None
    """None: the module sees what the environment returns."""
    normalizer: MeanStdFilter | None
    columns: list[int] | None
    """Which numbers of a vector the filter normalizes; None: all of an observation."""
    others: tuple[Any, ...]

    @classmethod
    def of(cls, pipeline: Any) -> Preprocessing:
        """From an env-to-module pipeline that has its spaces."""
        pieces = list(pipeline.connectors)
        encoding: ObservationEncoding | None = None
        normalizer: MeanStdFilter | None = None
        columns: list[int] | None = None
        if pieces and type(pieces[0]) is EncodeObservations:
            encoding = pieces.pop(0).encoding
        elif pieces and flattens_everything(pieces[0]):
            encoding = ObservationEncoding(pieces.pop(0).input_observation_space)
        if pieces and type(pieces[0]) is NormalizeParts:
            normalizer, columns = pieces[0].filter, pieces.pop(0).columns
        elif pieces and type(pieces[0]) is MeanStdFilter:
            normalizer = pieces.pop(0)
        return cls(encoding, normalizer, columns, tuple(pieces))


def flattens_everything(connector: Any) -> bool:
    """Whether this is RLlib's FlattenObservations for one agent, without keys to remove."""
    if type(connector) is not FlattenObservations:
        return False
    _, kwargs = connector.get_ctor_args_and_kwargs()
    unusual = ("keys_to_remove", "multi_agent", "agent_ids", "as_learner_connector")
    return not any(kwargs.get(name) for name in unusual)
