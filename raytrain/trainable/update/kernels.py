"""Loops that NumPy and Torch take several passes over memory for, compiled by Numba.

At the sizes of a policy a hidden layer's activations just fit the cache, so that every pass over
them costs as much as the arithmetic of a tenth of a matrix product: tanh with its bias takes NumPy
and Torch five, and here one.

Numba keeps what it has compiled on disk, beside this file or in the user's cache directory
(`NUMBA_CACHE_DIR` names another place). Where neither can be written, each process compiles anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

from raytrain.trainable.update.train_batch import Array

_Kernel = TypeVar("_Kernel", bound=Callable[..., None])

_F32 = np.float32
_LAYER = numba.float32[:, :, ::1]

# Not `fastmath=True`: that would take NaN for impossible, and a policy that has diverged would go on.
_ARITHMETIC = {"contract", "arcp", "nsz"}


def _compiled(*arguments: Any) -> Callable[[_Kernel], _Kernel]:
    """Compile for just these types, when the module is imported."""

    def compile_(function: _Kernel) -> _Kernel:
        def jit(cache: bool) -> _Kernel:
            compiled: _Kernel = numba.njit(
                numba.void(*arguments), fastmath=_ARITHMETIC, error_model="numpy", cache=cache
            )(function)
            return compiled

        try:
            return jit(cache=True)
        except RuntimeError as error:
            if "cannot cache function" not in str(error):
                raise
            return jit(cache=False)

    return compile_


@_compiled(_LAYER, _LAYER)
def add_bias_and_tanh(x: Array, bias: Array) -> None:
    """x (S, n, h) becomes tanh(x + bias), with bias (S, 1, h), to within 3e-7.

    A quotient of polynomials, the one of Eigen's `ptanh_float`; beyond +-7.9 float32 has no value
    between it and 1.
    """
    for s in range(x.shape[0]):
        for i in range(x.shape[1]):
            for j in range(x.shape[2]):
                v = x[s, i, j] + bias[s, 0, j]
                # Comparisons in which NaN stays NaN.
                v = _F32(7.90531110763549805) if v > _F32(7.90531110763549805) else v
                v = _F32(-7.90531110763549805) if v < _F32(-7.90531110763549805) else v
                q = v * v
                p = _F32(-2.76076847742355e-16) * q + _F32(2.00018790482477e-13)
                p = p * q + _F32(-8.60467152213735e-11)
                p = p * q + _F32(5.12229709037114e-08)
                p = p * q + _F32(1.48572235717979e-05)
                p = p * q + _F32(6.37261928875436e-04)
                p = p * q + _F32(4.89352455891786e-03)
                d = _F32(1.19825839466702e-06) * q + _F32(1.18534705686654e-04)
                d = d * q + _F32(2.26843463243900e-03)
                d = d * q + _F32(4.89352518554385e-03)
                x[s, i, j] = v * p / d


@_compiled(_LAYER, _LAYER, _LAYER)
def back_through_tanh(d: Array, y: Array, d_bias: Array) -> None:
    """d (S, n, h), the derivatives by y = tanh(x), become those by x; d_bias (S, 1, h), their sums."""
    for s in range(d.shape[0]):
        d_bias[s] = _F32(0.0)
        for i in range(d.shape[1]):
            for j in range(d.shape[2]):
                a = y[s, i, j]
                e = d[s, i, j] * (_F32(1.0) - a * a)
                d[s, i, j] = e
                d_bias[s, 0, j] += e
