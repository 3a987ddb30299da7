"""What an env runner computes for the run's own network, from fixed weights and observations: the
sampling part of the fingerprint of arithmetic (see `arithmetic.fingerprint`).
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tree
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from raytrain.arithmetic.fingerprint import Fingerprint, FixedNumbers, add_libraries
from raytrain.policy.arithmetic import as_array, stack
from raytrain.policy.rllib_module import action_distribution
from raytrain.rng import RngStreams
from raytrain.rollout.fast_sampling.forward import Acting

_STEPS = 4


def fix_weights(module: Any) -> None:
    """Set all parameters to numbers that are the same on every machine."""
    numbers = FixedNumbers(1)
    with torch.no_grad():
        for _, parameter in sorted(module.named_parameters()):
            if parameter.is_floating_point():
                # About the size that initial weights have.
                bound = 1.0 / max(1, parameter.shape[-1] if parameter.dim() > 1 else 8) ** 0.5
                parameter.copy_(torch.from_numpy(numbers.uniform(parameter.shape, bound)))


def fixed_observations(space: gym.Space[Any], count: int) -> list[Any]:
    """`count` observations of the space, the same on every machine; floats where it is a Box, as
    modules see them."""
    numbers = FixedNumbers(2)
    if isinstance(space, gym.spaces.Box):
        return list(numbers.uniform((count, *space.shape)))
    space = copy.deepcopy(space)
    space.seed(0)
    return [space.sample() for _ in range(count)]


def rehearse(
    module: Any, action_space: gym.Space[Any], *, envs: int, steps: int
) -> list[SingleAgentEpisode]:
    """Act with the module (see `fix_weights`) in `envs` environments for `steps` steps, as
    an env runner does; the process's generators do not change. One episode of each environment,
    which ends with a terminal step in every second."""
    space = module.observation_space
    observations = [fixed_observations(space, envs * (steps + 1))[i::envs] for i in range(envs)]
    with RngStreams.seeded(0).active():
        actions, outputs = _act(module, action_space, observations, steps)
    rewards = FixedNumbers(3).uniform((envs, steps)).astype(np.float64)
    return [
        SingleAgentEpisode(
            observation_space=space,
            action_space=action_space,
            observations=observations[i],
            actions=actions[i],
            rewards=list(rewards[i]),
            terminated=i % 2 == 0,
            truncated=i % 2 == 1,
            extra_model_outputs={
                name: [tree.map_structure(lambda leaf, i=i: leaf[i], row) for row in rows]
                for name, rows in outputs.items()
            },
            len_lookback_buffer=0,
        )
        for i in range(envs)
    ]


def sampling_fingerprint(module: Any, action_space: gym.Space[Any], *, envs: int) -> str:
    """What a process computes that samples with a copy of this module in `envs` environments; of
    the libraries alone if the module cannot act on made-up observations."""
    fingerprint = Fingerprint()
    add_libraries(fingerprint)
    try:
        stand_in = copy.deepcopy(module)
        fix_weights(stand_in)
        episodes = rehearse(stand_in, action_space, envs=envs, steps=_STEPS)
    except Exception:  # Of a user's module: of any kind.
        return fingerprint.text()
    fingerprint.add(*results_of(episodes))
    return fingerprint.text(str(envs))


def results_of(episodes: list[SingleAgentEpisode]) -> list[Any]:
    """The arrays that acting has computed."""
    return [
        np.asarray(leaf)
        for episode in episodes
        for _, column in sorted(episode.extra_model_outputs.items())
        for row in column.data
        for leaf in tree.flatten(row)
    ]


def _act(
    module: Any, action_space: Any, observations: list[list[Any]], steps: int
) -> tuple[list[list[Any]], dict[str, list[Any]]]:
    """Actions by environment, then step; model outputs by name, then step, a batch each."""
    envs = len(observations)
    actions: list[list[Any]] = [[] for _ in range(envs)]
    outputs: dict[str, list[Any]] = {}
    acting = Acting(module, action_space, explore=True)
    states = _initial_states(module, envs)
    for step in range(steps):
        batch = stack([observations[i][step] for i in range(envs)])
        if states is None and isinstance(batch, np.ndarray):
            chosen, columns = acting.act(batch, step)
        else:
            chosen, columns, states = _act_as_rllib(module, batch, states)
        for name, value in columns.items():
            outputs.setdefault(name, []).append(tree.map_structure(np.copy, value))
        for i in range(envs):
            actions[i].append(tree.map_structure(lambda leaf, i=i: leaf[i].copy(), chosen))
    return actions, outputs


def _initial_states(module: Any, envs: int) -> Any:
    if not module.is_stateful():
        return None
    return tree.map_structure(
        lambda leaf: torch.as_tensor(leaf).unsqueeze(0).repeat(envs, *[1] * len(leaf.shape)),
        module.get_initial_state(),
    )


def _act_as_rllib(module: Any, observations: Any, states: Any) -> tuple[Any, dict[str, Any], Any]:
    """One step through RLlib's own objects; recurrent modules see a time axis of length 1."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))

    def tensor(leaf: Any) -> Any:
        value = torch.from_numpy(np.ascontiguousarray(leaf))
        return (value.float() if value.dtype == torch.float64 else value).to(device)

    batch = {Columns.OBS: tree.map_structure(tensor, observations)}
    if states is not None:
        batch[Columns.OBS] = tree.map_structure(lambda leaf: leaf.unsqueeze(1), batch[Columns.OBS])
        batch[Columns.STATE_IN] = tree.map_structure(lambda leaf: leaf.to(device), states)
    with torch.no_grad():
        result = dict(module.forward_exploration(batch))
        inputs = result[Columns.ACTION_DIST_INPUTS]
        if states is not None:
            inputs = tree.map_structure(lambda leaf: leaf.squeeze(1), inputs)
        distribution = action_distribution(module, inputs, deterministic=False)
        chosen = distribution.sample()
        logp = distribution.logp(chosen)
    columns = {Columns.ACTION_DIST_INPUTS: inputs, Columns.ACTION_LOGP: logp}
    if states is not None:
        states = columns[Columns.STATE_OUT] = result[Columns.STATE_OUT]
    columns = {name: tree.map_structure(as_array, value) for name, value in columns.items()}
    return tree.map_structure(as_array, chosen), columns, states
