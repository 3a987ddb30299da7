"""The checkpoint's files of RLlib are those that RLlib writes itself, and RLlib reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray import cloudpickle
from support.tiny_ppo import built

from raytrain.policy.from_algorithm import policy_parts
from raytrain.ppo.rllib_checkpoint import RLlibFiles

pytestmark = pytest.mark.usefixtures("local_ray")

EVALUATED: dict[str, Any] = {
    "env_runners": {"observation_filter": "MeanStdFilter"},
    "evaluation": {"evaluation_interval": 1, "evaluation_duration": 1},
}
TWO_LEARNERS = {"learners": {"num_learners": 2}}


def files_below(directory: Path) -> list[str]:
    return sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*"))


def assert_same(one: Any, other: Any, where: str) -> None:
    if isinstance(one, dict):  # RLlib has an OrderedDict here and there
        assert set(one) == set(other), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype, where
        np.testing.assert_array_equal(one, other, err_msg=where)
    else:
        assert type(one) is type(other), where
        assert repr(one) == repr(other), where  # NaN is NaN here


@pytest.mark.parametrize(
    "sections", [EVALUATED, pytest.param(TWO_LEARNERS, marks=pytest.mark.slow)]
)
def test_the_files_are_those_of_rllib(tmp_path: Path, sections: dict[str, Any]) -> None:
    with built(**sections) as algorithm:
        algorithm.train()
        theirs, ours = tmp_path / "theirs", tmp_path / "ours"
        ours.mkdir()
        algorithm.save_to_path(theirs.as_posix())
        write = RLlibFiles(algorithm).capture(kl_coeff=0.2).write
        algorithm.train()  # what was captured does not change any more
        write(ours)
    assert files_below(ours) == files_below(theirs)
    for name in files_below(ours):
        if name.endswith("state.pkl"):
            read = [cloudpickle.loads((place / name).read_bytes()) for place in (ours, theirs)]
            assert_same(read[0], read[1], name)
        elif name.endswith(".json"):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
        elif name.endswith("args.pkl"):
            read = [cloudpickle.loads((place / name).read_bytes()) for place in (ours, theirs)]
            assert issubclass(read[1]["class"], read[0]["class"]), name
            (args, kwargs), (their_args, their_kwargs) = (
                each["ctor_args_and_kwargs"] for each in read
            )
            assert len(args) == len(their_args), name
            assert set(kwargs) == set(their_kwargs), name


@pytest.mark.parametrize("sections", [{}, TWO_LEARNERS])
def test_the_policys_weights_are_those_of_the_learner(sections: dict[str, Any]) -> None:
    with built(**sections) as algorithm:
        algorithm.train()
        told = RLlibFiles(algorithm).capture(kl_coeff=0.2).module_state
        held = policy_parts(algorithm).module_state
    assert told is not None
    assert told.keys() == held.keys()
    for name, value in held.items():
        np.testing.assert_array_equal(told[name], np.asarray(value), strict=True)


@pytest.mark.parametrize(
    "value", [torch.tensor([2**40]), torch.tensor([0.1], dtype=torch.float64), torch.tensor(0.5)]
)
def test_weights_that_rllib_would_round_are_not_told(value: torch.Tensor) -> None:
    with built() as algorithm:
        learner = algorithm.learner_group._learner
        learner.module["default_policy"].register_buffer("kept", value)
        assert RLlibFiles(algorithm).capture(kl_coeff=0.2).module_state is None
