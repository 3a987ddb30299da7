"""Why a loss is not finite: checks what the environments returned first, then blames the network.

Runs only after it has happened; the episodes of an iteration are kept until its losses are known.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

_ENVIRONMENT = "Fix the environment: a smaller training.lr cannot help"


def why_not_finite(episodes: Iterable[Any]) -> str:
    """Sentences for the user. `episodes`: RLlib's `SingleAgentEpisode`s of the iteration."""
    least, most = np.inf, -np.inf
    for episode in episodes:
        observations, rewards = episode.get_observations(), np.asarray(episode.get_rewards())
        for what, values in (("observation", np.asarray(observations)), ("reward", rewards)):
            index = first_not_finite(values)
            if index is not None:
                return (
                    f"The environment returned the {what} {_shown(values[index])} in step "
                    f"{episode.t_started + index} of an episode. {_ENVIRONMENT}."
                )
        if rewards.size:
            least, most = min(least, float(rewards.min())), max(most, float(rewards.max()))
    return (
        f"The environment's observations and rewards are finite (rewards from {least:g} to "
        f"{most:g}), so the update is the cause: try a smaller training.lr or training.grad_clip, "
        "or smaller rewards."
    )


def why_no_action(observation: Any) -> str:
    """Why the policy's output for an observation is NaN, and what to do."""
    if first_not_finite(np.asarray(observation)) is not None:
        return f"The environment returned the observation {_shown(observation)}. {_ENVIRONMENT}."
    return (
        f"The observation is finite ({_shown(observation)}), so the network is the cause: try a "
        "smaller training.lr or training.grad_clip."
    )


def first_not_finite(values: Any) -> int | None:
    """The first index of an array [T, ...] that holds NaN or infinity; None if there is none."""
    if not np.issubdtype(values.dtype, np.inexact):
        return None
    finite = np.isfinite(values)
    if finite.all():
        return None
    return int(np.argwhere(~finite)[0][0]) if values.ndim else 0


def _shown(value: Any) -> str:
    return np.array2string(np.asarray(value), threshold=6, precision=4)
