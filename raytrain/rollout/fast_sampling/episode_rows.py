"""Finished episodes: a row for each, and the totals of the chunks returned before.

group, env_index     where it was played
return, length       of the whole episode
custom/<name>        the numbers that the environment put into its last `info`, as float64; those
                     of a nested mapping as custom/<its name>/<name>

Left out: what is not a number (text, arrays of more than one element, true and false), names that
begin with an underscore (Gymnasium's, in vectorised infos), and `episode` (of
RecordEpisodeStatistics: return and length are recorded anyway).
"""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.utils.annotations import override

from raytrain.records.metrics import double


def finished_row(
    group: int, env_index: int, episode_return: float, length: int, measured: Mapping[str, float]
) -> dict[str, Any]:
    """The row of an episode that ended. `measured`: see `numbers_in`, of its last info."""
    return {
        "group": group,
        "env_index": env_index,
        "return": float(episode_return),
        "length": length,
        **measured,
    }


def numbers_in(info: Mapping[Any, Any] | None) -> dict[str, float]:
    """The numbers of an info, by recorded name. Call this when the environment returns the info: it
    may write the next numbers into the same objects."""
    return dict(_numbers(info or {}, "custom/"))


def _numbers(info: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in info.items():
        if not isinstance(key, str) or key.startswith("_"):
            continue
        name = key.encode(
            "utf-8", "backslashreplace"
        ).decode()  # Lone surrogates cannot be written.
        if isinstance(value, Mapping):
            if (prefix, name) != ("custom/", "episode"):
                yield from _numbers(value, f"{prefix}{name}/")
            continue
        is_number = isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "iuf"
        number = value.item() if is_number else value
        # A boolean is a number to Python.
        if isinstance(number, numbers.Real) and not isinstance(number, bool):
            yield f"{prefix}{name}", double(number)


@dataclass(frozen=True)
class ChunkTotals:
    """Replaces the returned chunks of a running episode. It is pickled as a tuple, so that a
    group's snapshot names no module of raytrain; `restore_totals` makes objects of tuples again."""

    length: int
    episode_return: float
    duration_s: float

    def __len__(self) -> int:
        return self.length

    def get_return(self) -> float:
        return self.episode_return

    def get_duration_s(self) -> float:
        return self.duration_s

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, ((self.length, self.episode_return, self.duration_s),)


class EpisodeRecorder(RLlibCallback):
    """Records every finished episode in its group, where RLlib samples."""

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
            episode.get_return() + sum(chunk.get_return() for chunk in chunks),
            len(episode) + sum(len(chunk) for chunk in chunks),
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


def restore_totals(chunks_by_episode: dict[str, list[Any]]) -> None:
    """Turn what a snapshot holds of the totals into `ChunkTotals`, in place."""
    for chunks in chunks_by_episode.values():
        # Snapshots of 0.1.0 hold the objects themselves.
        chunks[:] = [ChunkTotals(*chunk) if type(chunk) is tuple else chunk for chunk in chunks]
