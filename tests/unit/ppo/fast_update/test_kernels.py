"""Compiled loops: their values, and where they can be compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from raytrain.ppo.fast_update.kernels import (
    adam,
    add_bias_and_tanh,
    back_through_tanh,
    by_clipped_values,
    categorical,
    gaussian,
    standardize,
)


def layer(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(3).standard_normal(shape) * scale).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0, 1e30])
def test_tanh_is_within_3e_7(scale: float) -> None:
    x, bias = layer(2, 31, 17, scale=scale), layer(2, 1, 17, scale=scale)
    expected = np.tanh((x + bias).astype(np.float64))
    add_bias_and_tanh(x, bias)
    assert np.abs(x - expected).max() < 3e-7


@pytest.mark.parametrize(("value", "expected"), [(np.inf, 1.0), (-np.inf, -1.0), (0.0, 0.0)])
def test_the_ends_of_tanh(value: float, expected: float) -> None:
    x = np.full((1, 1, 9), value, np.float32)
    add_bias_and_tanh(x, np.zeros((1, 1, 9), np.float32))
    np.testing.assert_allclose(x, expected, atol=3e-7)


def test_what_is_not_a_number_stays_so() -> None:
    """Or a policy that has diverged would not be noticed."""
    x = layer(1, 3, 16)
    x[0, 1, 5] = np.nan
    y = x.copy()
    add_bias_and_tanh(y, np.zeros((1, 1, 16), np.float32))
    assert np.array_equal(np.isnan(y), np.isnan(x))
    d, d_bias = layer(1, 3, 16), np.empty((1, 1, 16), np.float32)
    back_through_tanh(d, y, d_bias)
    assert np.isnan(d[0, 1, 5]) and np.isnan(d_bias[0, 0, 5])
    assert np.isnan(d).sum() == np.isnan(d_bias).sum() == 1


def test_the_derivative_of_tanh() -> None:
    y, d, d_bias = np.tanh(layer(2, 31, 17)), layer(2, 31, 17), np.empty((2, 1, 17), np.float32)
    exact = d.astype(np.float64) * (1 - y.astype(np.float64) ** 2)
    back_through_tanh(d, y, d_bias)
    np.testing.assert_allclose(d, exact, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_bias[:, 0], exact.sum(axis=1), rtol=1e-5, atol=1e-5)


def test_adam_is_torchs() -> None:
    weights = torch.from_numpy(layer(1000))
    theirs = weights.clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs], lr=3e-3, betas=(0.8, 0.99), eps=1e-6)
    moments = np.zeros(1000, np.float32), np.zeros(1000, np.float32)
    for step in range(1, 6):
        gradient = layer(1000, scale=10.0**-step)
        theirs.grad = torch.from_numpy(gradient) * 0.5
        optimizer.step()
        size, root = 3e-3 / (1 - 0.8**step), np.sqrt(1 - 0.99**step)
        adam(weights.numpy(), gradient, *moments, 0.5, size, root, 0.8, 0.99, 1e-6)
    np.testing.assert_allclose(weights, theirs.detach(), rtol=1e-5, atol=1e-6)
    for name, moment in zip(("exp_avg", "exp_avg_sq"), moments, strict=True):
        np.testing.assert_allclose(moment, optimizer.state[theirs][name], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
@pytest.mark.parametrize("where", ["outputs", "values"])
def test_a_row_that_is_not_a_number_spoils_no_other_and_is_not_lost(kind: str, where: str) -> None:
    arrays = {"outputs": layer(2, 5), "values": layer(5)}
    arrays[where].T[3] = np.nan
    d_outputs, d_values = np.empty((2, 5), np.float32), np.empty(5, np.float32)
    columns = np.abs(layer(8, 5))
    given = (arrays["outputs"], arrays["values"], columns, d_outputs, d_values)
    if kind == "categorical":
        categorical()(*given, np.inf, 0.5, 0.01, 0.2)
    else:
        none = np.empty((0, 1), np.float32)
        gaussian()(*given, none, none, np.inf, np.inf, 0.5, 0.01, 0.2)
    spoiled = {"outputs": np.isnan(d_outputs).any(axis=0), "values": np.isnan(d_values)}
    for name, rows in spoiled.items():
        assert rows.tolist() == [False, False, False, name == where, False], name


def test_a_value_that_is_not_a_number_is_not_lost_when_it_is_clipped() -> None:
    values, columns, d_values = layer(5), layer(6, 5), np.empty(5, np.float32)
    values[3] = np.nan
    by_clipped_values()(values, columns, d_values, 0.1, np.inf, 0.5)
    assert np.isnan(d_values).tolist() == [False, False, False, True, False]


def test_a_single_advantage_is_not_standardized() -> None:
    columns = layer(4, 1)
    before = columns.copy()
    standardize()(columns, 0.8, 1.2)
    assert columns[1] == before[1]


def test_they_are_compiled_where_no_cache_can_be_written() -> None:
    program = """
import numba.core.caching as caching
caching.CacheImpl._locator_classes = []
import numpy as np
from raytrain.ppo.fast_update import kernels
x = np.ones((1, 1, 4), np.float32)
kernels.add_bias_and_tanh(x, np.ones((1, 1, 4), np.float32))
print(type(kernels.add_bias_and_tanh._cache).__name__, round(float(x[0, 0, 0]), 4))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout.split() == ["NullCache", "0.964"], done.stderr


RESULTS = """
import hashlib
import numpy as np
from raytrain.ppo.fast_update import kernels

draw = np.random.default_rng(0).standard_normal
x, d, d_bias = (draw(shape).astype(np.float32) for shape in ((2, 33, 65), (2, 33, 65), (2, 1, 65)))
kernels.add_bias_and_tanh(x, d_bias)
kernels.back_through_tanh(d, x, d_bias)
flat = np.abs(draw((4, 999))).astype(np.float32)
kernels.adam(*flat, 0.7, 1e-3, 0.3, 0.9, 0.999, 1e-8)
rows = draw((24, 77)).astype(np.float32)
kernels.categorical()(rows[:3], rows[3], rows[4:14], rows[14:17], rows[17], 10.0, 0.5, 0.01, 0.2)
kernels.standardize()(rows[4:14], 0.8, 1.2)
kernels.by_clipped_values()(rows[3], rows[4:14], rows[18], 0.2, 10.0, 0.5)
kernels.categorical_log_ratio()(rows[:3], rows[4:14], rows[19])
none = np.empty((0, 1), np.float32)
kernels.gaussian_log_ratio()(rows[:2], rows[4:11], rows[20], none, none, 20.0)
results = [x, d, d_bias, flat, rows]
print(hashlib.sha256(b"".join(part.tobytes() for part in results)).hexdigest())
"""


def computed(cache: Path, **variables: str) -> str:
    """The digest of what these loops compute in a process with these variables, `cache` being
    Numba's."""
    done = subprocess.run(
        [sys.executable, "-c", RESULTS],
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache), **variables},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


@pytest.mark.slow
def test_numbas_variables_change_no_result_and_no_cached_loop(tmp_path: Path) -> None:
    plain = computed(tmp_path / "plain")
    for number, variables in enumerate(
        [
            {"NUMBA_OPT": "0"},
            {"NUMBA_BOUNDSCHECK": "1", "NUMBA_DEBUGINFO": "1"},
            {"NUMBA_DISABLE_JIT": "1"},
        ]
    ):
        cache = tmp_path / str(number)
        assert computed(cache, **variables) == plain, variables
        assert computed(cache) == plain, f"compiled with {variables}, and cached"
