"""Compiled loops: their values, and where they can be compiled."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from raytrain.trainable.update.kernels import add_bias_and_tanh, back_through_tanh


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


def test_they_are_compiled_where_no_cache_can_be_written() -> None:
    program = """
import numba.core.caching as caching
caching.CacheImpl._locator_classes = []
import numpy as np
from raytrain.trainable.update import kernels
x = np.ones((1, 1, 4), np.float32)
kernels.add_bias_and_tanh(x, np.ones((1, 1, 4), np.float32))
print(type(kernels.add_bias_and_tanh._cache).__name__, round(float(x[0, 0, 0]), 4))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout.split() == ["NullCache", "0.964"], done.stderr
