from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from llmdpd_torchrl.modules import ACTIVATIONS, Mish, make_activation, mish
from llmdpd_torchrl.utils.errors import ConfigError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_slope_are_pytorchs(dtype):
    x = torch.linspace(-110, 110, 20_001, dtype=dtype, requires_grad=True)
    y, reference = mish(x), F.mish(x)
    torch.testing.assert_close(y, reference)
    (slope,) = torch.autograd.grad(y.sum(), x)
    (reference_slope,) = torch.autograd.grad(reference.sum(), x)
    torch.testing.assert_close(slope, reference_slope)
    with torch.no_grad():
        assert torch.equal(mish(x), y) or torch.allclose(mish(x), y, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype_and_does_not_overflow(dtype):
    x = torch.linspace(-30, 30, 601).to(dtype).requires_grad_()
    y = mish(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, F.mish(x))
    y.sum().backward()
    assert x.grad.isfinite().all()


def test_gradcheck():
    x = torch.randn(30, dtype=torch.float64, requires_grad=True) * 4
    assert torch.autograd.gradcheck(mish, x)
    assert torch.autograd.gradgradcheck(mish, x)


def test_vmap_over_any_dimension_keeps_the_fast_backward():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    for dim in (0, 1):
        y = torch.vmap(mish, in_dims=dim, out_dims=dim)(x)
        torch.testing.assert_close(y, F.mish(x))
        (grad,) = torch.autograd.grad(y.sum(), x)
        (reference,) = torch.autograd.grad(F.mish(x).sum(), x)
        torch.testing.assert_close(grad, reference)
    assert "DifferentiableMish" in _names_in_graph(torch.vmap(mish)(x))


def _names_in_graph(tensor: torch.Tensor) -> str:
    names, nodes = [], [tensor.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None:
            names.append(type(node).__name__)
            nodes += [parent for parent, _ in node.next_functions]
    return " ".join(names)


def test_functional_gradient():
    x = torch.randn(7, dtype=torch.float64)
    slope = torch.func.grad(lambda v: mish(v).sum())(x)
    y = x.clone().requires_grad_()
    torch.testing.assert_close(slope, torch.autograd.grad(F.mish(y).sum(), y)[0])


def test_the_input_is_left_alone():
    x = torch.linspace(-30, 30, 13)
    before = x.clone()
    mish(x)
    with torch.no_grad():
        Mish()(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_every_name_builds_a_module(name):
    assert make_activation(name)(torch.zeros(2, 3)).shape == (2, 3)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"'swish'.*mish, relu, silu, gelu, tanh"):
        make_activation("swish")
