"""The kernels that replace Torch's. Whole numbers are added without rounding, in any order."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.nn import functional

from raytrain.arithmetic.portable import VARIABLES, make_portable
from raytrain.arithmetic.portable_torch import PRODUCTS


def whole(*shape: int) -> torch.Tensor:
    return torch.randint(-8, 9, shape, dtype=torch.float32)


@pytest.mark.parametrize(
    "name, operands",
    [
        ("mm", (whole(5, 3), whole(3, 7))),
        ("mm", (whole(3, 5).t(), whole(7, 3).t())),
        ("mm", (whole(5, 0), whole(0, 7))),
        ("bmm", (whole(2, 5, 3), whole(2, 7, 3).transpose(1, 2))),
        ("addmm", (whole(7), whole(5, 3), whole(3, 7))),
    ],
)
def test_products(name: str, operands: tuple[torch.Tensor, ...]) -> None:
    assert torch.equal(PRODUCTS[name](*operands), getattr(torch, name)(*operands))


@pytest.mark.parametrize("factors", [{"beta": 2}, {"alpha": 3}, {"beta": 0, "alpha": 0.5}])
def test_addmm_takes_factors(factors: dict[str, Any]) -> None:
    operands = whole(5, 7), whole(5, 3), whole(3, 7)
    assert torch.equal(PRODUCTS["addmm"](*operands, **factors), torch.addmm(*operands, **factors))


@pytest.mark.parametrize("stride, padding", [([1, 1], [0, 0]), ([2, 3], [1, 2])])
@pytest.mark.parametrize("with_bias", [True, False])
def test_convolution(stride: list[int], padding: list[int], with_bias: bool) -> None:
    images, weight = whole(4, 3, 11, 9).requires_grad_(), whole(6, 3, 4, 2).requires_grad_()
    bias = whole(6).requires_grad_() if with_bias else None
    out = functional.conv2d(images, weight, bias, stride=stride, padding=padding)
    ours = PRODUCTS["_slow_conv2d_forward"](images, weight, [4, 2], bias, stride, padding)
    assert torch.equal(ours, out)

    d_out = whole(*out.shape)
    leaves = [images, weight] if bias is None else [images, weight, bias]
    expected = torch.autograd.grad(out, leaves, d_out)
    backward = PRODUCTS["_slow_conv2d_backward.output_mask"]
    wanted = [True, True, with_bias]
    with torch.no_grad():
        found = backward(d_out, images, weight, [4, 2], stride, padding, wanted)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=False))
    assert (found[2] is None) != with_bias


FUNCTIONS = """
import numpy as np, torch
from raytrain.arithmetic.portable import make_portable
make_portable()
x = torch.rand(10_000, generator=torch.Generator().manual_seed(1)) * 100
for x in (x, x.double(), x.view(100, 100).t(), x[0]):
    root = torch.from_numpy(np.asarray(np.sqrt(x.numpy())))
    into = torch.empty(0, dtype=x.dtype)
    torch.sqrt(x, out=into)
    found = [torch.sqrt(x), x.sqrt(), x**0.5, x.clone().sqrt_(), x.clone().pow_(0.5), into]
    assert all(torch.equal(one, root) for one in found), found
    assert torch.equal(x**2, x * x)
x = torch.linspace(-1, 1, 1001)
for name, of_numpy in {"asin": np.arcsin, "acos": np.arccos, "atan": np.arctan}.items():
    for x in (x, x.double()):
        assert torch.equal(getattr(torch, name)(x), torch.from_numpy(of_numpy(x.numpy()))), name
assert torch.equal(torch.tensor([4, 9]).sqrt(), torch.tensor([2.0, 3.0]))
assert torch.sqrt(torch.tensor(-1.0)).isnan()
assert torch.equal(torch.tensor([-4.0 + 0j]).sqrt().imag, torch.tensor([2.0]))
assert torch.equal(torch.eye(2).double() @ torch.eye(2).double(), torch.eye(2).double())
leaf = torch.tensor(4.0, requires_grad=True)
leaf.sqrt().backward()
assert leaf.grad == 0.25
"""


def test_functions_are_numpys() -> None:
    """In a process of its own, whose kernels are replaced."""
    command = [sys.executable, "-W", "error::UserWarning", "-c", FUNCTIONS]
    subprocess.run(command, check=True, env={**os.environ, **VARIABLES})


def test_nothing_is_replaced_in_other_processes() -> None:
    make_portable()
    assert torch.backends.mkldnn.enabled
