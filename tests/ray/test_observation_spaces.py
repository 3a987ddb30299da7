"""Every observation space is sampled into arrays, as RLlib samples it with connectors, and the
policy of a checkpoint sees what was seen in training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from observed import SPACES
from ray.rllib.connectors.env_to_module import FlattenObservations, MeanStdFilter
from support.samplers import FILTER, config, pair, unlike
from test_sampler import numbers

MODELS: dict[str, Any] = {"model_config": {"fcnet_hiddens": [16]}}


def observed(kind: str, **sections: Any) -> dict[str, Any]:
    environment = {"env": "observed:Observed", "env_config": {"kind": kind}}
    return {"environment": environment, "rl_module": MODELS, **sections}


def require_same(ours: Any, theirs: Any) -> None:
    for version in (1, 2):
        for each in (ours, theirs):
            each.set_state({**each.get_state(components=["rl_module"]), "weights_seq_no": version})
        one, other = ours.rollout(None, snapshot=True), theirs.rollout(None, snapshot=True)
        assert unlike(one.episodes, other.episodes) == []
        assert one.finished == other.finished
        assert numbers(one.metrics) == {
            k: v for k, v in numbers(other.metrics).items() if "sum_episodes_length" not in k
        }
        assert repr(one.connectors) == repr(other.connectors)
        assert one.episodes


@pytest.mark.parametrize("filtered", [False, True], ids=["plain", "filtered"])
@pytest.mark.parametrize("kind", SPACES)
def test_episodes_are_those_that_connectors_make(kind: str, filtered: bool) -> None:
    ours, theirs = pair(config(**observed(kind, env_runners=FILTER if filtered else {})))
    require_same(ours, theirs)
    space = ours.module.observation_space
    assert np.issubdtype(space.dtype, np.floating) or (space.dtype == np.uint8 and not filtered)


RLLIBS = ("discrete", "multidiscrete", "multibinary", "matrix", "bytes", "dict", "scalar")


@pytest.mark.parametrize("filtered", [False, True], ids=["plain", "filtered"])
@pytest.mark.parametrize("kind", RLLIBS)
def test_episodes_are_those_of_rllibs_own_connectors(kind: str, filtered: bool) -> None:
    """FlattenObservations, and MeanStdFilter behind it where everything is normalized."""

    def connectors(*_: Any, **__: Any) -> list[Any]:
        return [FlattenObservations(), *([MeanStdFilter()] if filtered else [])]

    change = lambda given: given.env_runners(env_to_module_connector=connectors)  # noqa: E731
    ours, _ = pair(config(**observed(kind)))
    if filtered and SPACES[kind].__class__.__name__ == "Box":
        ours, _ = pair(config(**observed(kind, env_runners=FILTER)))
    arrays, theirs = pair(config(change=change, **observed(kind)))
    one, other, third = (each.rollout(None, snapshot=True) for each in (ours, theirs, arrays))
    assert unlike(third.episodes, other.episodes) == []
    if not filtered or SPACES[kind].__class__.__name__ == "Box":
        assert unlike(one.episodes, other.episodes) == []
