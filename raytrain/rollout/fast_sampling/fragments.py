"""What a group samples: arrays of one fragment, and the episodes cut from them.

A fragment of T vector steps of N environments has a column [L + T, N, ...] for each quantity (one
more row of observations). The first L rows are the end of the fragment before: an episode that
continues has up to L steps of lookback, as RLlib's episodes have (`episode_lookback_horizon`).

    row of `observations`     0 .. L-1        L          L+1   ...   L+T
                              lookback        current    after step 1, ..., after step T
    row r of other columns    the step from observation r to r+1

Only `Progress` is kept between fragments: the last L rows, the current observations, and a few
numbers for each environment, as plain arrays, numbers and strings. The columns' memory is reused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import is_
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import tree
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer
from ray.rllib.utils.spaces.space_utils import unbatch

from raytrain.policy.arithmetic import base_struct

Array: TypeAlias = np.ndarray[Any, Any]
Infos: TypeAlias = list[dict[str, Any]]

REWARDS = Columns.REWARDS
ACTIONS = Columns.ACTIONS
"""The column of actions; those of Tuple and Dict spaces have `actions/0`, `actions/1`, ..., one for
each leaf, in the order of `tree.flatten`."""
_REWARDS_SPACE = gym.spaces.Box(-np.inf, np.inf, (), np.float32)


@dataclass
class Progress:
    """The state of a group's episodes between two fragments. N environments, lookback L."""

    observations: Array
    """[L + 1, N, ...], the last row current (filtered, if there is a filter)."""
    columns: dict[str, Array]
    """Actions, rewards and model outputs of the last steps, [<= L, N, ...] each."""
    infos: list[Infos]
    """[<= L + 1][N]"""
    ended: Array
    """[N] bool: the episode has ended, the next step resets."""
    lengths: Array
    """[N] int64: steps of the running episodes so far."""
    returns: Array
    """[N] float64: their rewards so far."""
    durations: Array
    """[N] float64: their seconds so far."""
    ids: list[str]
    """[N] of the running episodes."""
    born: int
    """Number of episodes begun so far; the next one's number."""
    chunks: list[list[SingleAgentEpisode]] = field(default_factory=list)
    """[N] the chunks of the running episodes that were returned before, if they are kept whole."""
    masks: Array | None = None
    """[N, K] bool: which actions are allowed in the next step; None without action masks."""


@dataclass(frozen=True)
class Chunk:
    """The steps [start, stop) of an environment, by row: its episode in this fragment, or a part of
    it. `steps_before`: the episode's steps in earlier fragments."""

    env_index: int
    start: int
    stop: int
    id: str
    steps_before: int
    terminated: bool = False
    truncated: bool = False


@dataclass(frozen=True)
class Ended(Chunk):
    """A chunk with which an episode ended. Return and duration are those of the whole episode."""

    episode_return: float = 0.0
    duration_s: float = 0.0
    measured: Mapping[str, float] = field(default_factory=dict)
    """The numbers of the last info."""

    @property
    def length(self) -> int:
        """Steps of the whole episode."""
        return self.steps_before + self.stop - self.start


def action_columns(actions: Any) -> dict[str, Array]:
    """Actions, nested as their space, by column."""
    if isinstance(actions, np.ndarray):
        return {ACTIONS: actions}
    return {f"{ACTIONS}/{index}": leaf for index, leaf in enumerate(tree.flatten(actions))}


class Fragment:
    """Columns for one fragment after another. `rows`: the number of filled rows."""

    def __init__(self, lookback: int, num_envs: int, observation_space: Any) -> None:
        self.lookback = lookback
        self.observations = np.zeros(
            (lookback + 1, num_envs, *observation_space.shape), observation_space.dtype
        )
        self.columns: dict[str, Array] = {}
        self.terminateds = self.truncateds = np.zeros((0, num_envs), np.bool_)
        self.infos: list[Infos] = []
        self.rows = lookback
        self._capacity = lookback

    def begin(self, progress: Progress, steps: int) -> None:
        """Start a fragment of about `steps` vector steps after `progress`."""
        self.reserve(self.lookback + steps)
        self.rows = self.lookback
        self.observations[: self.lookback + 1] = progress.observations
        for name, tail in progress.columns.items():
            column = self.column(name, tail)
            column[: self.lookback] = tail
        self.infos = list(progress.infos)

    def reserve(self, rows: int) -> None:
        """Make room for `rows` rows."""
        if rows <= self._capacity:
            return
        self._capacity = rows
        self.observations = _longer(self.observations, rows + 1)
        self.terminateds = _longer(self.terminateds, rows)
        self.truncateds = _longer(self.truncateds, rows)
        self.columns = {name: _longer(column, rows) for name, column in self.columns.items()}

    @property
    def full(self) -> bool:
        return self.rows == self._capacity

    def column(self, name: str, like: Array) -> Array:
        """The column of that name; a new one, for rows like those of `like`, if none fits them."""
        column = self.columns.get(name)
        if column is None or column.shape[1:] != like.shape[1:] or column.dtype != like.dtype:
            column = np.zeros((self._capacity, *like.shape[1:]), like.dtype)
            self.columns[name] = column
        return column

    def tail(self) -> tuple[Array, dict[str, Array], list[Infos]]:
        """Observations, columns and infos of the last rows (copies), as `Progress` keeps them."""
        first = self.rows - self.lookback
        return (
            self.observations[first : self.rows + 1].copy(),
            {name: column[first : self.rows].copy() for name, column in self.columns.items()},
            self.infos[-self.lookback - 1 :],
        )


def _longer(array: Array, rows: int) -> Array:
    longer = np.zeros((rows, *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer


class Episodes:
    """Makes RLlib's episodes from a fragment. Their arrays are slices of a copy of each column,
    laid out by environment, which nothing else refers to. `single`: for one episode only, whose
    rows alone are copied."""

    def __init__(
        self,
        fragment: Fragment,
        observation_space: Any,
        action_space: Any,
        *,
        single: bool = False,
    ) -> None:
        self._single = single
        by_env = _view_by_env if single else _by_env
        self._lookback = fragment.lookback
        self._infos = fragment.infos
        # At the beginning of a run the infos begin later than the other columns.
        self._no_infos = fragment.rows + 1 - len(fragment.infos)
        self._observation_space = observation_space
        self._action_space = action_space
        self._observations = by_env(fragment.observations, fragment.rows + 1)
        columns = {name: by_env(column, fragment.rows) for name, column in fragment.columns.items()}
        struct = base_struct(action_space)
        # Spaces stand for the leaves.
        names = [ACTIONS] if struct is action_space else list(action_columns(struct))
        self._actions = tree.unflatten_as(struct, [columns.pop(name) for name in names])
        self._rewards = columns.pop(REWARDS)
        self._outputs = columns

    def make(self, chunk: Chunk) -> SingleAgentEpisode:
        index, start, stop = chunk.env_index, chunk.start, chunk.stop
        # RLlib's lookback does not reach beyond the episode's beginning.
        lookback = min(self._lookback, chunk.steps_before) if start == self._lookback else 0
        first = start - lookback
        no_infos, infos = self._no_infos, self._infos

        def part(column: Array) -> Array:
            return column[index, first:stop]

        def buffer(data: Any, space: Any = None) -> InfiniteLookbackBuffer:
            if self._single and isinstance(data, np.ndarray):
                data = data.copy()
            return InfiniteLookbackBuffer(data, lookback, space)

        return SingleAgentEpisode(
            chunk.id,
            observations=buffer(
                self._observations[index, first : stop + 1], self._observation_space
            ),
            observation_space=self._observation_space,
            infos=buffer([infos[row - no_infos][index] for row in range(first, stop + 1)]),
            actions=buffer(tree.map_structure(part, self._actions), self._action_space),
            action_space=self._action_space,
            rewards=buffer(part(self._rewards), _REWARDS_SPACE),
            extra_model_outputs={
                name: buffer(part(column)) for name, column in self._outputs.items()
            },
            terminated=chunk.terminated,
            truncated=chunk.truncated,
            t_started=chunk.steps_before,
        )


def _by_env(column: Array, rows: int) -> Array:
    return np.ascontiguousarray(column[:rows].swapaxes(0, 1))


def _view_by_env(column: Array, rows: int) -> Array:
    return column[:rows].swapaxes(0, 1)


@contextmanager
def in_lists(episode: SingleAgentEpisode) -> Iterator[None]:
    """In the body, an episode of arrays holds lists of items, as RLlib's do until they are
    returned. Afterwards it holds its arrays again, or new ones where the body replaced an item."""
    buffers = [episode.observations, episode.actions, episode.rewards]
    buffers += episode.extra_model_outputs.values()
    kept = []
    for each in buffers:
        items = list(each.data) if isinstance(each.data, np.ndarray) else unbatch(each.data)
        kept.append((each, each.data, items))
        each.data, each.finalized = items.copy(), False
    yield
    for each, array, items in kept:
        if each.finalized:
            continue
        if len(each.data) == len(items) and all(map(is_, each.data, items)):
            each.data, each.finalized = array, True
    episode.to_numpy()
