"""Activations by name, and an exact Mish that does not dominate an update on a CPU."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmdpd_torchrl.utils.errors import ConfigError

__all__ = ["ACTIVATIONS", "Mish", "make_activation", "mish"]


def mish(x: Tensor) -> Tensor:
    r"""``x * tanh(softplus(x))``, exact, and on a CPU a multiple faster than :func:`F.mish`.

    With s = sigmoid(x) and v = s(2 - s), tanh(log(1 + e^x)) = v / (2 - v): one sigmoid in place of
    an exponential, a logarithm and a hyperbolic tangent, and nothing that overflows. Accelerators
    have a fused Mish already, so they get PyTorch's; a compiler for the CPU has not.

    Args:
        x (Tensor): any shape. float16 and bfloat16 are computed in float32.

    Returns:
        a tensor of ``x``'s shape and dtype.

    Examples:
        >>> x = torch.linspace(-3, 3, 7)
        >>> torch.allclose(mish(x), nn.functional.mish(x))
        True
    """
    if x.device.type != "cpu":
        return nn.functional.mish(x)
    if torch.compiler.is_compiling():  # fuses, and differentiates, what is written out
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        s = wide.sigmoid()
        v = s * (2.0 - s)
        return (wide * (v / (2.0 - v))).to(x.dtype)
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
    s = wide.sigmoid()
    v = s.mul_(2.0 - s)
    return v.div_(2.0 - v).mul_(wide).to(x.dtype)


class _DifferentiableMish(torch.autograd.Function):
    """Mish and, in the same sweep, its slope: the backward pass is then a single product.

    With s = sigmoid(x) and r = 1 - s, d/dx [x t] = t + 4 x s r^2 / (1 + r^2)^2, where
    t = s(1 + r) / (1 + r^2).
    """

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        s = wide.sigmoid()
        r = 1.0 - s
        slope = torch.mul(s, r).mul_(r)
        numerator = s.addcmul_(s, r)
        inverse = r.square_().add_(1.0).reciprocal_()
        slope.mul_(inverse).mul_(inverse).mul_(wide)
        tanh_softplus = numerator.mul_(inverse)
        torch.add(tanh_softplus, slope, alpha=4.0, out=slope)
        return tanh_softplus.mul_(wide).to(x.dtype), slope.to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        _, slope = output
        ctx.mark_non_differentiable(slope)
        ctx.set_materialize_grads(False)  # or every backward pass fills zeros for the slope
        ctx.save_for_backward(*inputs, slope)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> Tensor | None:
        if grad is None:  # nothing depends on the output
            return None
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


# ``apply`` asks for it at every call, and working it out takes as long as a small tensor's Mish.
_DifferentiableMish.forward.__signature__ = inspect.signature(  # type: ignore[attr-defined]
    _DifferentiableMish.forward
)

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
