"""Loops compiled by Numba, where NumPy and Torch take several passes over memory or many calls.

At the sizes of a policy the activations of a hidden layer just fit into the cache, so each pass
over them takes as long as a tenth of a matrix product: tanh with its bias takes NumPy and Torch
five passes, and here one. What follows the heads is small, but takes many calls: a PPO loss and its
derivatives take NumPy some thirty for each minibatch.

Numba caches what it has compiled on disk, beside this file or in the user's cache directory
(`NUMBA_CACHE_DIR` names another place). If neither can be written, each process compiles again.

The results are part of a run, so these loops are compiled with `_SETTINGS`, whatever NUMBA_OPT,
NUMBA_BOUNDSCHECK, NUMBA_DISABLE_JIT and the like say for other code: they change roundings, and the
cache does not know with which of them a loop was compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeAlias, TypeVar

import numba
import numpy as np
from numba.core import config

from raytrain._ray.patch import patched

# No import of Ray: the base of the fork server imports this module before a job is known.
Array: TypeAlias = np.ndarray[Any, Any]
_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])

_F32 = np.float32
_LAYER = numba.float32[:, :, ::1]
_LINES = numba.float32[:, :]
_MATRIX = numba.float32[:, ::1]
_VECTOR = numba.float32[::1]
_NUMBER = numba.float64

# Not `fastmath=True`, which assumes that there is no NaN and would hide that a policy has diverged.
_ARITHMETIC = {"contract", "arcp", "nsz"}

# Numba's own defaults.
_SETTINGS = {
    "OPT": type(config.OPT)(3),
    "BOUNDSCHECK": None,
    "DISABLE_JIT": 0,
    "DEBUGINFO_DEFAULT": 0,
    "LOOP_VECTORIZE": 1,
    "SLP_VECTORIZE": 0,
}


@contextmanager
def _own_settings() -> Iterator[None]:
    # The compiler reads the environment again if it has changed, and would overwrite them.
    config.reload_config()
    with patched(config, **_SETTINGS):
        yield


def _compiled(*arguments: Any) -> Callable[[_Kernel], _Kernel]:
    """Compile for these types, when the module is imported."""

    def compile_(function: _Kernel) -> _Kernel:
        def jit(keep: bool) -> _Kernel:
            with _own_settings():
                compiled: _Kernel = numba.njit(
                    numba.void(*arguments), fastmath=_ARITHMETIC, error_model="numpy", cache=keep
                )(function)
            return compiled

        try:
            return jit(keep=True)
        except RuntimeError as error:
            if "cannot cache function" not in str(error):
                raise
            return jit(keep=False)

    return compile_


def _compiled_once(*arguments: Any) -> Callable[[_Kernel], Callable[[], _Kernel]]:
    """The same on demand: a function without arguments that returns the compiled one. A policy has
    one distribution, and compiling without a cache takes a second."""

    def compile_(function: _Kernel) -> Callable[[], _Kernel]:
        return cache(lambda: _compiled(*arguments)(function))

    return compile_


def _inlined(function: _Kernel) -> _Kernel:
    """For a part of these loops."""
    with _own_settings():
        part: _Kernel = numba.njit(error_model="numpy", fastmath=_ARITHMETIC, inline="always")(
            function
        )
    return part


@_compiled(_LAYER, _LAYER)
def add_bias_and_tanh(x: Array, bias: Array) -> None:
    """x (S, n, h) becomes tanh(x + bias), with bias (S, 1, h), to within 3e-7.

    A quotient of polynomials, as in Eigen's `ptanh_float`; beyond +-7.9 tanh rounds to
    1 in float32.
    """
    for s in range(x.shape[0]):
        for i in range(x.shape[1]):
            for j in range(x.shape[2]):
                v = x[s, i, j] + bias[s, 0, j]
                # These comparisons keep NaN.
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
    """d (S, n, h), derivatives by y = tanh(x), become those by x; d_bias (S, 1, h), their sums."""
    for s in range(d.shape[0]):
        d_bias[s] = _F32(0.0)
        for i in range(d.shape[1]):
            for j in range(d.shape[2]):
                a = y[s, i, j]
                e = d[s, i, j] * (_F32(1.0) - a * a)
                d[s, i, j] = e
                d_bias[s, 0, j] += e


@_compiled(_VECTOR, _VECTOR, _VECTOR, _VECTOR, *[_NUMBER] * 6)
def adam(  # noqa: PLR0917 - compiled loops take arrays and numbers
    weights: Array,
    gradient: Array,
    first: Array,
    second: Array,
    scale: float,
    step_size: float,
    root: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """A step of Adam (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980) along scale * gradient,
    in Torch's order. All arrays are (P,); `first` and `second` are the moments. `step_size` is lr /
    (1 - beta1^t), `root` is sqrt(1 - beta2^t).
    """
    s, to_first, keep, to_second = _F32(scale), _F32(1 - beta1), _F32(beta2), _F32(1 - beta2)
    along, r, e = _F32(step_size), _F32(root), _F32(eps)
    for i in range(weights.shape[0]):
        g = gradient[i] * s
        m = first[i] + to_first * (g - first[i])
        v = second[i] * keep + to_second * g * g
        first[i] = m
        second[i] = v
        weights[i] -= along * m / (np.sqrt(v) / r + e)


@_inlined
def _by_logp(logp: Any, old: Any, advantage: Any, cap: Any, share: Any) -> Any:
    """Derivative of the surrogate by logp; `cap` clips the product of advantage and ratio."""
    surrogate = np.exp(logp - old) * advantage
    # A product, so that NaN stays NaN.
    return surrogate * (_F32(1.0) if surrogate <= cap else _F32(0.0)) * -share


@_inlined
def _by_value(value: Any, target: Any, clip: Any, factor: Any) -> Any:
    """Derivative of the value loss by the value."""
    off = value - target
    return off * (_F32(1.0) if off * off <= clip else _F32(0.0)) * factor


@_compiled_once(_MATRIX, _VECTOR, _LINES, _MATRIX, _VECTOR, *[_NUMBER] * 4)
def categorical(  # noqa: PLR0917 - compiled loops take arrays and numbers
    logits: Array,
    values: Array,
    columns: Array,
    d_logits: Array,
    d_values: Array,
    vf_clip: float,
    vf_coeff: float,
    entropy_coeff: float,
    kl_coeff: float,
) -> None:
    """The derivatives of a minibatch's PPO loss with a categorical policy of A actions, n rows.

    `logits`, `d_logits` are (A, n); `values`, `d_values` (n,). `columns` has 4 + 2 A lines of n:
    old logp, advantages, their caps, value targets; one-hot actions; old probabilities.
    """
    actions, n = logits.shape
    share = _F32(1.0) / _F32(n)
    entropy_share, kl_share = _F32(entropy_coeff / n), _F32(kl_coeff / n)
    clip, factor = _F32(vf_clip), _F32(2.0 * vf_coeff / n)
    p = np.empty(actions, np.float32)
    for j in range(n):
        largest = logits[0, j]
        for k in range(1, actions):
            largest = logits[k, j] if logits[k, j] > largest else largest
        total = chosen = _F32(0.0)
        for k in range(actions):
            above = logits[k, j] - largest
            p[k] = np.exp(above)
            total += p[k]
            chosen += above * columns[4 + k, j]
        log_total = np.log(total)
        entropy = _F32(0.0)
        for k in range(actions):
            p[k] /= total
            if entropy_share != 0:
                entropy -= p[k] * (logits[k, j] - largest - log_total)
        by_logp = _by_logp(chosen - log_total, columns[0, j], columns[1, j], columns[2, j], share)
        for k in range(actions):
            # By the logits: d logp = one_hot - p, d KL = p - p_old, d H = -p (log p + H)
            d = (columns[4 + k, j] - p[k]) * by_logp
            if kl_share != 0:
                d += (p[k] - columns[4 + actions + k, j]) * kl_share
            if entropy_share != 0:
                d += p[k] * (logits[k, j] - largest - log_total + entropy) * entropy_share
            d_logits[k, j] = d
        d_values[j] = _by_value(values[j], columns[3, j], clip, factor)


@_compiled_once(_MATRIX, _VECTOR, _LINES, _MATRIX, _VECTOR, _MATRIX, _MATRIX, *[_NUMBER] * 5)
def gaussian(  # noqa: PLR0917 - compiled loops take arrays and numbers
    outputs: Array,
    values: Array,
    columns: Array,
    d_outputs: Array,
    d_values: Array,
    free: Array,
    d_free: Array,
    std_clip: float,
    vf_clip: float,
    vf_coeff: float,
    entropy_coeff: float,
    kl_coeff: float,
) -> None:
    """The same with a diagonal Gaussian over A dimensions.

    `outputs` are means and log-stds, (2 A, n); or the means alone, (A, n), where `free` holds
    log-stds that depend on no observation, (A, 1), and `d_free` gets their derivative; otherwise
    both are (0, 1). `columns` has 4 + 3 A lines: the first 4 as above; actions; old means; old
    log-stds. Log-stds are clipped to plus and minus `std_clip`.
    """
    is_free = free.shape[0] > 0
    a = outputs.shape[0] if is_free else outputs.shape[0] // 2
    n = outputs.shape[1]
    share = _F32(1.0) / _F32(n)
    entropy_share, kl_share = _F32(entropy_coeff / n), _F32(kl_coeff / n)
    clip, factor, bound = _F32(vf_clip), _F32(2.0 * vf_coeff / n), _F32(std_clip)
    base = _F32(0.9189385332046727) * _F32(a)  # A log(2 pi) / 2
    log_std, inverse, z = np.empty(a, np.float32), np.empty(a, np.float32), np.empty(a, np.float32)
    if is_free:
        d_free[:] = _F32(0.0)
    for j in range(n):
        logp = -base
        for k in range(a):
            if not is_free or j == 0:
                raw = free[k, 0] if is_free else outputs[a + k, j]
                raw = bound if raw > bound else raw
                log_std[k] = -bound if raw < -bound else raw
                inverse[k] = np.exp(-log_std[k])
            z[k] = (columns[4 + k, j] - outputs[k, j]) * inverse[k]
            logp -= _F32(0.5) * z[k] * z[k] + log_std[k]
        by_logp = _by_logp(logp, columns[0, j], columns[1, j], columns[2, j], share)
        for k in range(a):
            d_mean = z[k] * inverse[k] * by_logp
            d_log_std = (z[k] * z[k] - _F32(1.0)) * by_logp - entropy_share
            if kl_share != 0:
                # With s = old std / std and m = (old mean - mean) / std:
                # d KL / d mean = -m / std, d KL / d log_std = 1 - s^2 - m^2
                m = (columns[4 + a + k, j] - outputs[k, j]) * inverse[k]
                s = np.exp(columns[4 + 2 * a + k, j] - log_std[k])
                d_mean -= m * inverse[k] * kl_share
                d_log_std += (_F32(1.0) - s * s - m * m) * kl_share
            d_outputs[k, j] = d_mean
            raw = free[k, 0] if is_free else outputs[a + k, j]
            d_log_std *= _F32(1.0) if abs(raw) <= bound else _F32(0.0)
            if is_free:
                d_free[k, 0] += d_log_std
            else:
                d_outputs[a + k, j] = d_log_std
        d_values[j] = _by_value(values[j], columns[3, j], clip, factor)


# What Stable-Baselines3 adds (see `own_training`): loops of their own, around those above.


@_compiled_once(_LINES, _NUMBER, _NUMBER)
def standardize(columns: Array, low: float, high: float) -> None:
    """Standardize a minibatch's advantages, line 1 of `columns` (K, n), to a mean of 0 and a
    standard deviation of 1, and set their caps, line 2, for a policy ratio between `low` and
    `high`. A single advantage stays as it is."""
    n = columns.shape[1]
    mean, square = 0.0, 0.0
    for j in range(n):
        mean += columns[1, j] / n
    for j in range(n):
        square += (columns[1, j] - mean) ** 2
    scale = 1.0 / (np.sqrt(square / (n - 1)) + 1e-8) if n > 1 else 1.0
    mean = mean if n > 1 else 0.0
    above, below = _F32(high), _F32(low)
    for j in range(n):
        advantage = _F32((columns[1, j] - mean) * scale)
        columns[1, j] = advantage
        columns[2, j] = advantage * (above if advantage > 0 else below)


@_compiled_once(_VECTOR, _LINES, _VECTOR, *[_NUMBER] * 3)
def by_clipped_values(  # noqa: PLR0917 - compiled loops take arrays and numbers
    values: Array,
    columns: Array,
    d_values: Array,
    clip_range: float,
    vf_clip: float,
    vf_coeff: float,
) -> None:
    """Overwrite `d_values` (n,) by the derivatives of the loss of clipped values. `columns` has the
    value targets in line 3 and the old values in its last."""
    n = values.shape[0]
    clip, factor, bound = _F32(vf_clip), _F32(2.0 * vf_coeff / n), _F32(clip_range)
    last = columns.shape[0] - 1
    for j in range(n):
        old = columns[last, j]
        moved = values[j] - old
        # These comparisons keep NaN, and so does the product.
        near = bound if moved > bound else moved
        near = -bound if near < -bound else near
        through = _F32(1.0) if near == moved else _F32(0.0)
        d_values[j] = _by_value(old + near, columns[3, j], clip, factor) * through


@_compiled_once(_MATRIX, _LINES, _VECTOR)
def categorical_log_ratio(logits: Array, columns: Array, log_ratio: Array) -> None:
    """Write logp - logp_old (n,) of a categorical policy; `columns` as in `categorical`."""
    actions, n = logits.shape
    for j in range(n):
        largest = logits[0, j]
        for k in range(1, actions):
            largest = logits[k, j] if logits[k, j] > largest else largest
        total = chosen = _F32(0.0)
        for k in range(actions):
            total += np.exp(logits[k, j] - largest)
            chosen += (logits[k, j] - largest) * columns[4 + k, j]
        log_ratio[j] = chosen - np.log(total) - columns[0, j]


@_compiled_once(_MATRIX, _LINES, _VECTOR, _MATRIX, _MATRIX, _NUMBER)
def gaussian_log_ratio(  # noqa: PLR0917 - compiled loops take arrays and numbers
    outputs: Array, columns: Array, log_ratio: Array, free: Array, d_free: Array, std_clip: float
) -> None:
    """The same with a diagonal Gaussian. Arguments as in `gaussian`; `d_free` does not change."""
    is_free = free.shape[0] > 0
    a = outputs.shape[0] if is_free else outputs.shape[0] // 2
    bound = _F32(std_clip)
    base = _F32(0.9189385332046727) * _F32(a)  # A log(2 pi) / 2
    for j in range(outputs.shape[1]):
        logp = -base
        for k in range(a):
            log_std = free[k, 0] if is_free else outputs[a + k, j]
            log_std = bound if log_std > bound else log_std
            log_std = -bound if log_std < -bound else log_std
            z = (columns[4 + k, j] - outputs[k, j]) * np.exp(-log_std)
            logp -= _F32(0.5) * z * z + log_std
        log_ratio[j] = logp - columns[0, j]
