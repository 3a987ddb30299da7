"""RLlib's default connector pipelines. Code that does their work itself serves these alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ENV_TO_MODULE = (
    "AddObservationsFromEpisodesToBatch",
    "AddTimeDimToBatchAndZeroPad",
    "AddStatesFromEpisodesToBatch",
    "BatchIndividualItems",
    "NumpyToTensor",
)
MODULE_TO_ENV = (
    "GetActions",
    "TensorToNumpy",
    "UnBatchToIndividualItems",
    "RemoveSingleTsTimeRankFromBatch",
    "NormalizeAndClipActions",
    "ListifyDataForVectorEnv",
)
LEARNER = (
    "AddOneTsToEpisodesAndTruncate",
    "AddObservationsFromEpisodesToBatch",
    "AddColumnsFromEpisodesToTrainBatch",
    "AddTimeDimToBatchAndZeroPad",
    "AddStatesFromEpisodesToBatch",
    "BatchIndividualItems",
    "NumpyToTensor",
    "GeneralAdvantageEstimation",
)


def is_default(connector: type, defaults: Sequence[str]) -> bool:
    """Whether a connector's class is RLlib's own and among `defaults`."""
    return connector.__name__ in defaults and connector.__module__.startswith("ray.rllib.")


def why_not_default(connectors: Iterable[type], defaults: Sequence[str]) -> str | None:
    """None if a pipeline of these classes is RLlib's default; else the end of a sentence on it."""
    connectors = list(connectors)
    others = [connector.__name__ for connector in connectors if not is_default(connector, defaults)]
    if others:
        return f"has {', '.join(others)}"
    names = tuple(connector.__name__ for connector in connectors)
    return None if names == tuple(defaults) else "is not RLlib's default"
