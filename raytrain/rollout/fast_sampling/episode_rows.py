"""Finished episodes: a row for each, and what their ends need of chunks returned before.

group, env_index     where it was played
return, length       of the whole episode
custom/<name>        the numbers that the environment put into its last `info`, as float64; those of a
                     mapping within it as custom/<its name>/<name>

Left out: what is no number (text, arrays of more than one element, true and false), names that begin
with an underscore (Gymnasium's own of vectorised infos), and `episode` (RecordEpisodeStatistics: return
and length are recorded anyway).
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.utils.annotations import override


def finished_row(
    group: int, env_index: int, episode_return: float, length: int, measured: Mapping[str, float]
) -> dict[str, Any]:
    """The row of an episode that ended; `measured` are the numbers of its last info."""
    row: dict[str, Any] = {
        "group": group,
        "env_index": env_index,
        "return": float(episode_return),
        "length": length,
    }
    row.update(measured)
    return row


def numbers_in(info: Mapping[Any, Any] | None) -> dict[str, float]:
    """The numbers of an info under the names that they are recorded by. To be taken when it is returned: the
    environment may write the next ones into the same objects."""
    return dict(_numbers(info or {}, "custom/"))


def _numbers(info: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for given, found in info.items():
        if not isinstance(given, str) or given.startswith("_"):
            continue
        name = given.encode("utf-8", "backslashreplace").decode()  # No file holds half a character.
        if isinstance(found, Mapping):
            if (prefix, name) != ("custom/", "episode"):
                yield from _numbers(found, f"{prefix}{name}/")
            continue
        one = isinstance(found, np.ndarray) and found.size == 1 and found.dtype.kind in "iuf"
        value = found.item() if one else found
        # A boolean is a number to Python.
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            yield f"{prefix}{name}", _float(value)


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond double precision
        return math.inf if value > 0 else -math.inf


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
            numbers_in(episode.get_infos(-1)),
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
