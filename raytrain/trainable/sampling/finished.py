"""Finished episodes: a row for each, and what their ends need of chunks returned before.

group, env_index     where it was played
return, length       of the whole episode
custom/<name>        the numbers that the environment put into its last `info`
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.utils.annotations import override


def finished_row(
    group: int, env_index: int, episode_return: float, length: int, info: dict[str, Any] | None
) -> dict[str, Any]:
    """The row of an episode that ended with `info`."""
    row: dict[str, Any] = {
        "group": group,
        "env_index": env_index,
        "return": float(episode_return),
        "length": length,
    }
    for name, value in (info or {}).items():
        # A leading underscore marks Gymnasium's own entries of vectorised infos.
        if name.startswith("_") or isinstance(value, bool):
            continue
        if isinstance(value, (numbers.Real, np.number)):
            row[f"custom/{name}"] = float(value)
    return row


@dataclass(frozen=True)
class ChunkTotals:
    """Stands for the returned chunks of a running episode: all that its end still needs of them."""

    length: int
    episode_return: float
    duration_s: float

    def __len__(self) -> int:
        return self.length

    def get_return(self) -> float:
        return self.episode_return

    def get_duration_s(self) -> float:
        return self.duration_s


class EpisodeRecorder(RLlibCallback):
    """Notes every finished episode on its runner, where RLlib samples."""

    @override(RLlibCallback)
    def on_episode_end(
        self,
        *,
        episode: Any,
        prev_episode_chunks: Any = (),
        env_runner: Any = None,
        env_index: int = 0,
        **kwargs: Any,
    ) -> None:
        chunks = list(prev_episode_chunks or ())
        env_runner.note_finished(
            env_index,
            episode.get_return() + sum(c.get_return() for c in chunks),
            len(episode) + sum(len(c) for c in chunks),
            episode.get_infos(-1),
        )


def summarise_chunks(chunks_by_episode: dict[str, list[Any]]) -> None:
    """Replace the returned chunks of each running episode by their totals, in place."""
    for chunks in chunks_by_episode.values():
        if chunks:
            chunks[:] = [
                ChunkTotals(
                    length=sum(len(chunk) for chunk in chunks),
                    episode_return=sum(chunk.get_return() for chunk in chunks),
                    duration_s=sum(chunk.get_duration_s() for chunk in chunks),
                )
            ]
