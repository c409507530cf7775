"""The default denoiser: an MLP that reads a noisy action, a condition vector and the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmdpd_torchrl.modules.activations import make_activation
from llmdpd_torchrl.modules.schedules import ExactTables
from llmdpd_torchrl.utils.errors import ConfigError

__all__ = ["FirstLayer", "MLPDenoiser", "SinusoidalTimeEmbedding", "make_mlp"]


def make_mlp(
    in_features: int,
    hidden: Sequence[int],
    out_features: int,
    activation: str = "mish",
    *,
    layer_norm: bool = False,
) -> nn.Sequential:
    """Linear layers with an activation, after a normalisation if asked for, between them.

    Examples:
        >>> len(make_mlp(3, (8, 8), 2))
        5
    """
    layers: list[nn.Module] = []
    for width in hidden:
        layers.append(nn.Linear(in_features, width))
        if layer_norm:
            layers.append(nn.LayerNorm(width))
        layers.append(make_activation(activation))
        in_features = width
    return nn.Sequential(*layers, nn.Linear(in_features, out_features))


class SinusoidalTimeEmbedding(ExactTables):
    """Sines and cosines of a step at geometrically spaced frequencies, 1 down to 1e-4.

    Angles are computed in float32 or wider: in a half precision the steps of a long diffusion would
    fall together.

    Args:
        dim (int): width of the embedding, even and at least 4.

    Examples:
        >>> SinusoidalTimeEmbedding(4)(torch.tensor([[0.0], [1.0]])).shape
        torch.Size([2, 4])
    """

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        if dim < 4 or dim % 2:
            raise ConfigError(f"the time embedding's width must be even and at least 4, got {dim}")
        half = dim // 2
        exponents = torch.arange(half, dtype=torch.float64) / (half - 1)
        super().__init__({"frequencies": torch.exp(-math.log(10_000) * exponents)})

    def forward(self, step: Tensor) -> Tensor:
        """Map steps [*, 1] to embeddings [*, dim], of the frequencies' dtype."""
        angles = step * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class FirstLayer(NamedTuple):
    """The first layer of a denoiser with all but the noisy action worked in.

    Attributes:
        weight: [H, A], the columns of the noisy action.
        bias: [H] or [*, H], what the step adds.
        hidden: [*, H], what the condition adds, the same at all steps.

    Examples:
        >>> denoiser = MLPDenoiser(action_dim=4, condition_dim=39, hidden=(8,))
        >>> (layer,) = denoiser.precondition(torch.randn(2, 39), steps=[0])
        >>> layer.weight.shape, layer.bias.shape, layer.hidden.shape
        (torch.Size([8, 4]), torch.Size([8]), torch.Size([2, 8]))
    """

    weight: Tensor
    bias: Tensor
    hidden: Tensor


class MLPDenoiser(nn.Module):
    """Diffusion-QL's score network: a Mish MLP over noisy action, condition and embedded step.

    Its input is the concatenation that TorchRL's diffusion modules feed to a score network, so it
    can serve them as well. A sampler does not need to repeat what the condition and the steps
    contribute at every reverse step: :meth:`precondition` works both into the first layer, once.

    Args:
        action_dim (int): A.
        condition_dim (int): C, width of the condition vector (observation, prompt embedding, ...).
        hidden (sequence of int): widths of the hidden layers.
        activation (str): one of :data:`~llmdpd_torchrl.modules.ACTIVATIONS`.
        time_dim (int): width of the embedded step.

    Raises:
        ConfigError: on an unknown activation or an odd ``time_dim``.

    Examples:
        >>> denoiser = MLPDenoiser(action_dim=4, condition_dim=39)
        >>> noisy, condition, step = torch.randn(2, 4), torch.randn(2, 39), torch.full((2, 1), 3.0)
        >>> output = denoiser(torch.cat([noisy, condition, step], -1))
        >>> output.shape
        torch.Size([2, 4])
        >>> (layer,) = denoiser.precondition(condition, steps=[3])
        >>> torch.allclose(denoiser(noisy, layer), output, atol=1e-5)
        True
    """

    def __init__(
        self,
        action_dim: int,
        condition_dim: int,
        hidden: Sequence[int] = (256, 256, 256),
        activation: str = "mish",
        time_dim: int = 16,
    ) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.condition_dim = condition_dim
        self.time_dim = time_dim
        self.time_embedding = nn.Sequential(
            SinusoidalTimeEmbedding(time_dim),
            nn.Linear(time_dim, 2 * time_dim),
            make_activation(activation),
            nn.Linear(2 * time_dim, time_dim),
        )
        self.mlp = make_mlp(action_dim + condition_dim + time_dim, hidden, action_dim, activation)

    def forward(self, inputs: Tensor, first_layer: FirstLayer | None = None) -> Tensor:
        """Predict noise (or the clean action, or the velocity).

        Args:
            inputs (Tensor): ``[noisy action | condition | step]``, [*, A + C + 1], the step as a
                float in [0, K); or, with a ``first_layer``, noisy actions [*, A] alone.
            first_layer (FirstLayer, optional): one of those that :meth:`precondition` made.

        Returns:
            a tensor [*, A].

        Raises:
            ConfigError: if the last dimension is not A + C + 1.
        """
        if first_layer is None:
            self._check_condition(inputs.shape[-1] - self.action_dim - 1)
            features, step = inputs[..., :-1], inputs[..., -1:]
            return self.mlp(torch.cat([features, self._embed(step, inputs.dtype)], dim=-1))
        weight, bias, hidden = first_layer
        x = F.linear(inputs, weight, bias) + hidden
        for layer in islice(self.mlp, 1, None):
            x = layer(x)
        return x

    def precondition(self, condition: Tensor, steps: Sequence[int]) -> list[FirstLayer]:
        """Work condition and steps into the first layer, once for all reverse steps of a sample.

        Args:
            condition (Tensor): [*, C].
            steps (sequence of int): the steps that will be visited.

        Returns:
            one layer per step, to be given to :meth:`forward` with noisy actions of shape [*, A] or
            with more dimensions in front.

        Raises:
            ConfigError: if the condition's width is not C.
        """
        self._check_condition(condition.shape[-1])
        first = cast(nn.Linear, self.mlp[0])
        on_action, on_condition, on_time = first.weight.split(
            [self.action_dim, self.condition_dim, self.time_dim], dim=1
        )
        hidden = F.linear(condition, on_condition, first.bias)
        # Filled on the device: a list copied to it could not be captured in a CUDA graph.
        column = torch.stack([condition.new_full((1,), k, dtype=torch.float32) for k in steps])
        biases = F.linear(self._embed(column, condition.dtype), on_time)
        return [FirstLayer(on_action, bias, hidden) for bias in biases.unbind(0)]

    def _embed(self, step: Tensor, dtype: torch.dtype) -> Tensor:
        sinusoids, *layers = self.time_embedding
        embedded = sinusoids(step).to(dtype)
        for layer in layers:
            embedded = layer(embedded)
        return embedded

    def _check_condition(self, width: int) -> None:
        if width != self.condition_dim:
            raise ConfigError(
                f"the denoiser was built for a condition of width {self.condition_dim}, but gets "
                f"{width}: set condition_dim to the summed widths of the actor's in_keys"
            )
