"""What a CUDA graph reads stays where it is; the parts of that which need no GPU.
(`ray/test_gpu_states.py` replays graphs.)"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from raytrain.ppo.fast_update.cuda_graphs import GraphedSteps, can_be_captured
from raytrain.ppo.fast_update.flat_adam import FlatAdam
from raytrain.ppo.fast_update.loss_gradients import LossSettings
from raytrain.ppo.fast_update.minibatch_loop import KlLimit


@pytest.fixture
def steps() -> Any:
    module = torch.nn.Linear(2, 1)
    adam = FlatAdam(torch.optim.Adam(module.parameters()), list(module.parameters()))
    gradient_step: Any = SimpleNamespace(clipping=None)
    limit = KlLimit(learners=1, device=torch.device("cpu"))
    loss: Any = None
    return GraphedSteps(adam, gradient_step, loss, limit, module)


def columns(rows: int, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"obs": torch.full((rows, 2), float(rows)), **more}


def test_a_batch_lies_where_the_one_before_lay_if_it_fits(steps: Any) -> None:
    steps.begin(columns(8), settings())
    held, steps._graph = steps._columns["obs"], "captured"
    steps.end()
    steps.begin(columns(9), settings())  # Bootstrap rows are a few more or less.
    assert steps._columns["obs"] is held and steps._graph == "captured"
    assert held[:9].eq(9.0).all()


@pytest.mark.parametrize(
    "batch",
    [
        columns(20),
        columns(8, weights_seq_no=torch.zeros(8)),
        {"obs": torch.zeros(8, 3)},
        {"obs": torch.zeros(8, 2, dtype=torch.float64)},
    ],
    ids=["longer", "a column more", "another shape", "another type"],
)
def test_a_batch_that_does_not_fit_ends_the_graph(steps: Any, batch: dict[str, Any]) -> None:
    steps.begin(columns(8), settings())
    steps._graph = "captured"
    steps.end()
    steps.begin(batch, settings())
    assert steps._graph is None
    assert steps._columns.keys() == batch.keys()
    assert all(steps._columns[name][: len(each)].equal(each) for name, each in batch.items())
    steps.end()
    steps.begin(columns(8), settings())
    assert steps._columns.keys() == {"obs"}


def settings(**values: Any) -> LossSettings:
    given: dict[str, Any] = {"clip_param": 0.2, "vf_clip_param": 10.0, "vf_loss_coeff": 0.5}
    return LossSettings(**{**given, "entropy_coeff": 0.0, "kl_coeff": 0.3, **values})


def test_coefficients_change_in_place_and_a_term_that_comes_or_goes_is_another_graph(
    steps: Any,
) -> None:
    steps.begin(columns(8), settings())
    before, constants = steps._settings, steps._constants
    assert before.entropy_coeff == 0.0 and float(before.kl_coeff) == pytest.approx(0.3)
    steps.end()
    steps.begin(columns(8), settings(kl_coeff=0.45))
    assert float(before.kl_coeff) == pytest.approx(0.45)
    assert steps._constants == constants
    for changed in (
        {"kl_coeff": 0.0},
        {"entropy_coeff": 0.1},
        {"clip_param": 0.1},
        {"clip_range_vf": 0.1},
        {"in_minibatches": True},
    ):
        steps.end()
        steps.begin(columns(8), settings(**changed))
        assert steps._constants != constants


class Deciding(torch.nn.Module):
    """A module of a user."""


def test_only_what_is_known_is_captured_by_itself() -> None:
    known = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    assert can_be_captured(known)
    assert not can_be_captured(torch.nn.Sequential(known, Deciding()))
