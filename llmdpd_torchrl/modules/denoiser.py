"""The default denoiser: an MLP that reads a noisy action, a condition vector and the step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llmdpd_torchrl.modules.activations import make_activation

__all__ = ["MLPDenoiser", "SinusoidalTimeEmbedding", "make_mlp"]


def make_mlp(
    in_features: int, hidden: Sequence[int], out_features: int, activation: str = "mish"
) -> nn.Sequential:
    """Linear layers with an activation after each but the last.

    Examples:
        >>> len(make_mlp(3, (8, 8), 2))
        5
    """
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(in_features, width), make_activation(activation)]
        in_features = width
    return nn.Sequential(*layers, nn.Linear(in_features, out_features))


class SinusoidalTimeEmbedding(nn.Module):
    """Sines and cosines of a step at geometrically spaced frequencies, 1 down to 1e-4.

    Args:
        dim (int): width of the embedding, even and at least 4.

    Examples:
        >>> SinusoidalTimeEmbedding(4)(torch.tensor([[0.0], [1.0]])).shape
        torch.Size([2, 4])
    """

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"the time embedding's width must be even and at least 4, got {dim}")
        half = dim // 2
        exponents = torch.arange(half, dtype=torch.float64) / (half - 1)
        frequencies = torch.exp(-math.log(10_000) * exponents).float()
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, step: Tensor) -> Tensor:
        """Map steps [*, 1] to embeddings [*, dim]."""
        angles = step * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class MLPDenoiser(nn.Module):
    """Diffusion-QL's score network: a Mish MLP over noisy action, condition and embedded step.

    Its input is the concatenation that TorchRL's diffusion modules feed to a score network, so it
    can serve them as well.

    Args:
        action_dim (int): A.
        condition_dim (int): C, width of the condition vector (observation, prompt embedding, ...).
        hidden (sequence of int): widths of the hidden layers.
        activation (str): one of :data:`~llmdpd_torchrl.modules.ACTIVATIONS`.
        time_dim (int): width of the embedded step.

    Examples:
        >>> denoiser = MLPDenoiser(action_dim=4, condition_dim=39)
        >>> denoiser(torch.randn(2, 4 + 39 + 1)).shape
        torch.Size([2, 4])
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
        self.time_embedding = nn.Sequential(
            SinusoidalTimeEmbedding(time_dim),
            nn.Linear(time_dim, 2 * time_dim),
            make_activation(activation),
            nn.Linear(2 * time_dim, time_dim),
        )
        self.mlp = make_mlp(action_dim + condition_dim + time_dim, hidden, action_dim, activation)

    def forward(self, inputs: Tensor) -> Tensor:
        """Predict noise (or the clean action) from ``[noisy action | condition | step]``.

        Args:
            inputs (Tensor): [*, A + C + 1], the step as a float in [0, K).

        Returns:
            a tensor [*, A].

        Raises:
            ValueError: if the last dimension is not A + C + 1.
        """
        expected = self.action_dim + self.condition_dim + 1
        if inputs.shape[-1] != expected:
            raise ValueError(
                f"the denoiser was built for a condition of width {self.condition_dim}, but gets "
                f"{inputs.shape[-1] - self.action_dim - 1}: set condition_dim to the summed widths "
                "of the actor's in_keys"
            )
        features, step = inputs[..., :-1], inputs[..., -1:]
        return self.mlp(torch.cat([features, self.time_embedding(step)], dim=-1))
