"""Activations by name, and an exact Mish that does not dominate an update on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmdpd_torchrl.errors import ConfigError

__all__ = ["ACTIVATIONS", "Mish", "make_activation", "mish"]

# Above this x, tanh(softplus(x)) is 1 to the last bit even in float64, while e^(2x), the largest
# power of e^x below, still fits float32.
_SATURATION = 20.0


def mish(x: Tensor) -> Tensor:
    r"""``x * tanh(softplus(x))``, exact, and on a CPU a multiple faster than :func:`F.mish`.

    With n = e^x and w = n(n + 2), tanh(log(1 + n)) = w / (w + 2): one exponential in place of an
    exponential, a logarithm and a hyperbolic tangent. Accelerators and compiled graphs have a fused
    Mish already, so they get PyTorch's.

    Args:
        x (Tensor): any shape. float16 and bfloat16 are computed in float32.

    Returns:
        a tensor of ``x``'s shape and dtype.

    Examples:
        >>> x = torch.linspace(-3, 3, 7)
        >>> torch.allclose(mish(x), nn.functional.mish(x))
        True
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return nn.functional.mish(x)
    if torch.is_grad_enabled():  # inside vmap, x.requires_grad does not tell
        return _DifferentiableMish.apply(x)[0]
    return _mish(x)


class Mish(nn.Module):
    """Module form of :func:`mish`.

    Examples:
        >>> Mish()(torch.zeros(2))
        tensor([0., 0.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply :func:`mish` elementwise."""
        return mish(x)


def _mish(x: Tensor) -> Tensor:
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    n = wide.clamp(max=_SATURATION).exp_()
    w = n.add(2.0).mul_(n)
    return w.div_(w + 2.0).mul_(wide).to(x.dtype)


class _DifferentiableMish(torch.autograd.Function):
    """Mish and, in the same sweep, its slope: the backward pass is then a single product.

    d/dx [x t] = t + x 4n(n + 1) / (w + 2)^2, where t = w / (w + 2).
    """

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        n = wide.clamp(max=_SATURATION).exp_()
        w = n.add(2.0).mul_(n)
        inverse = w.add(2.0).reciprocal_()
        tanh_softplus = w.mul_(inverse)
        slope = n.addcmul_(n, n).mul_(inverse).mul_(inverse).mul_(wide)
        slope = torch.add(tanh_softplus, slope, alpha=4.0)
        return tanh_softplus.mul_(wide).to(x.dtype), slope.to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        _, slope = output
        ctx.mark_non_differentiable(slope)
        ctx.save_for_backward(*inputs, slope)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> Tensor:
        x, slope = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the slope must be a function of x again
            tanh_softplus = nn.functional.softplus(x).tanh()
            slope = tanh_softplus + x * x.sigmoid() * (1 - tanh_softplus.square())
        return grad * slope

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None], x: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[int | None, int | None]]:
        # Elementwise: the mapped dimension stays where it is.
        return _DifferentiableMish.apply(x), (in_dims[0], in_dims[0])


#: Names that configurations may use, and what each builds.
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "mish": Mish,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}


def make_activation(name: str) -> nn.Module:
    """Build the activation called ``name``, one of :data:`ACTIVATIONS`.

    Raises:
        ConfigError: if the name is unknown.

    Examples:
        >>> make_activation("silu")
        SiLU()
    """
    if name not in ACTIVATIONS:
        raise ConfigError(f"unknown activation {name!r}: choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()
