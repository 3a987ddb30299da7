"""Networks for images of every size, alone and among other numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from raytrain.policy.observations import ObservationEncoding
from raytrain.policy.rllib_catalog import channels_first, choose_catalog, default_filters


def image(*shape: int, dtype: Any = np.uint8) -> Box:
    return Box(0, 255 if dtype == np.uint8 else 1, shape, dtype)


def module(space: Any, **model: Any) -> Any:
    """Of observations of `space`, with the catalog that they need."""
    spec = RLModuleSpec(
        module_class=DefaultPPOTorchRLModule,
        observation_space=ObservationEncoding.of(space).space,
        action_space=Discrete(3),
        model_config={"vf_share_layers": True, **model},
    )
    choose_catalog(spec)
    return spec.build()


def outputs(made: Any, batch: torch.Tensor) -> Any:
    with torch.no_grad():
        return made.forward_inference({Columns.OBS: batch})[Columns.ACTION_DIST_INPUTS]


def test_convolutions_halve_an_image_until_it_is_small() -> None:
    last = [[64, 3, 1], [64, 3, 1]]
    assert default_filters(8, 7) == last
    assert default_filters(9, 3) == [[16, 4, 2], *last]
    halving = [[16, 4, 2], [32, 4, 2], [64, 4, 2], [128, 4, 2], [128, 4, 2]]
    assert default_filters(210, 160) == [*halving, *last]


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1),
        (2, 2, 2),
        (7, 7, 3),
        (5, 7, 12),
        (31, 9, 1),
        (160, 210, 3),
        (4, 84, 84),
        (3, 9, 7),
    ],
)
def test_images_of_every_size_have_a_network(shape: tuple[int, ...]) -> None:
    batch = torch.zeros(2, *shape, dtype=torch.uint8)
    assert outputs(module(image(*shape)), batch).shape == (2, 3)


def test_channels_are_the_last_axis_unless_the_first_is_much_shorter() -> None:
    assert [channels_first(shape) for shape in [(4, 84, 84), (3, 7, 6)]] == [True, True]
    assert not any(channels_first(shape) for shape in [(84, 84, 4), (5, 7, 12), (4, 7, 9)])


@pytest.mark.parametrize("shape", [(84, 84, 4), (4, 84, 84)])
def test_sizes_that_rllib_knows_have_its_convolutions(shape: tuple[int, ...]) -> None:
    ours, theirs = (module(image(*shape, dtype=d)) for d in (np.uint8, np.float32))
    assert type(theirs.catalog) is PPOCatalog  # Its numbers do not change.
    kernels = [p.shape[2:] for name, p in ours.named_parameters() if "cnn" in name and p.dim() == 4]
    assert kernels == [(8, 8), (4, 4), (11, 11)]


def test_bytes_are_scaled_if_their_bounds_are_those_of_bytes() -> None:
    batch = torch.full((1, 5, 5, 1), 51, dtype=torch.uint8)
    torch.manual_seed(0)
    scaled = module(image(5, 5, 1))
    torch.manual_seed(0)
    plain = module(Box(0, 9, (5, 5, 1), np.uint8))
    assert torch.equal(outputs(scaled, batch), outputs(plain, batch.float() / 255))
    assert not torch.equal(outputs(scaled, batch), outputs(plain, batch))


def test_the_images_of_a_dict_and_its_numbers_all_matter() -> None:
    space = Dict(eye=image(9, 6, 3), tail=image(5, 5, 1, dtype=np.float32), mood=Discrete(4))
    made = module(space, fcnet_hiddens=[16])
    assert made.encoder.encoder.net[-1].mlp[0].in_features == 5 * 3 * 64 + 5 * 5 * 64 + 4
    size = made.observation_space.shape[0]
    before = outputs(made, torch.zeros(1, size))
    for column in range(0, size, 7):
        batch = torch.zeros(1, size)
        batch[0, column] = 200.0
        assert not torch.equal(outputs(made, batch), before), column


@pytest.mark.parametrize("space", [image(7, 9, 3), Dict(eye=image(7, 9, 3), mood=Discrete(4))])
def test_an_lstm_comes_behind_it(space: Any) -> None:
    made = module(space, use_lstm=True, lstm_cell_size=8, max_seq_len=4, fcnet_hiddens=[16])
    encoded = made.observation_space
    state = {key: value.unsqueeze(0) for key, value in made.get_initial_state().items()}
    batch = torch.zeros(1, 2, *encoded.shape, dtype=getattr(torch, str(encoded.dtype)))
    with torch.no_grad():
        found = made.forward_inference({Columns.OBS: batch, Columns.STATE_IN: state})
    assert found[Columns.ACTION_DIST_INPUTS].shape == (1, 2, 3)
