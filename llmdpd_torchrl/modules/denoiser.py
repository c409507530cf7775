"""Denoisers: MLPs that read a noisy action, a condition vector and the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.modules import MLP

from llmdpd_torchrl.modules.samplers import ExactTables, NoiseSchedule
from llmdpd_torchrl.utils.errors import ConfigError

#: Names that configurations may use, and what each builds.
ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}

_TIME_DIM = 16  # width of the embedded step


def make_mlp(
    in_features: int,
    hidden: Sequence[int],
    out_features: int,
    activation: str = "mish",
    *,
    layer_norm: bool = False,
) -> MLP:
    """TorchRL's MLP in float32, whatever torch's default, with one of :data:`ACTIVATIONS`.

    With ``layer_norm``, each hidden layer is normalised before its activation.
    """
    if activation not in ACTIVATIONS:
        raise ConfigError(
            f"unknown activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}"
        )
    return MLP(
        in_features,
        out_features,
        num_cells=list(hidden),
        activation_class=ACTIVATIONS[activation],
        layer_kwargs={"dtype": torch.float32},
        norm_class=nn.LayerNorm if layer_norm else None,
        norm_kwargs=[{"normalized_shape": n, "dtype": torch.float32} for n in hidden],
    )


class SinusoidalTimeEmbedding(ExactTables):
    """Sines and cosines of a step at geometrically spaced frequencies, 1 down to 1e-4.

    Angles are computed in float32 or wider: in a half precision the steps of a long diffusion would
    fall together.
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

    Raises:
        ConfigError: on an unknown activation.

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
    ) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.condition_dim = condition_dim
        self.time_embedding = nn.Sequential(
            SinusoidalTimeEmbedding(_TIME_DIM),
            *make_mlp(_TIME_DIM, (2 * _TIME_DIM,), _TIME_DIM, activation),
        )
        self.mlp = make_mlp(action_dim + condition_dim + _TIME_DIM, hidden, action_dim, activation)

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
            one layer per step, for :meth:`forward` with noisy actions [*, A] or with more
            dimensions in front.
        """
        self._check_condition(condition.shape[-1])
        first = cast(nn.Linear, self.mlp[0])
        on_action, on_condition, on_time = first.weight.split(
            [self.action_dim, self.condition_dim, _TIME_DIM], dim=1
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


class _Step(NamedTuple):
    """What :meth:`ResidualDenoiser.precondition` makes for one step."""

    layer: FirstLayer
    base: Tensor  # [*, A]
    bound: Tensor  # [*, A]
    signal: float


class ResidualDenoiser(nn.Module):
    r"""A denoiser of the residual between actions and a base action, both parts of the condition.

    With the base b and the bound r, the clean action is :math:`b + r \tanh(\hat y)`, where the
    network reads :math:`a_k - \sqrt{\bar\alpha_k} b`, the noised residual. A network that predicts
    actions has to learn to copy what the prompt suggests, and on a task that it never saw falls
    back to the mean of those it did. One that predicts a bounded residual copies by predicting zero
    and cannot cancel what the prompt suggests, so that the base, too, has to be learned.

    It predicts clean actions: the diffusion's ``prediction`` must be ``"x0"``.

    Args:
        network (MLPDenoiser): maps noisy residuals, the condition and the step.
        base (slice): columns of the condition that hold b, as many as the action has entries; as
            many behind them hold r.
        num_steps (int): K of the diffusion.
        schedule (str): its noise schedule, one of :data:`~llmdpd_torchrl.modules.NOISE_SCHEDULES`.

    Raises:
        ConfigError: if the base is not of the action's width, or it and its bound not in the
            condition.

    Examples:
        >>> network = MLPDenoiser(action_dim=2, condition_dim=6, hidden=(8,))
        >>> denoiser = ResidualDenoiser(network, slice(2, 4), num_steps=5)
        >>> noisy, condition, step = torch.randn(3, 2), torch.randn(3, 6), torch.full((3, 1), 4.0)
        >>> denoiser(torch.cat([noisy, condition, step], -1)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        network: MLPDenoiser,
        base: slice,
        num_steps: int,
        schedule: str | Sequence[float] = "vp",
    ) -> None:
        super().__init__()
        size = network.action_dim
        if base.stop - base.start != size or not (
            0 <= base.start <= network.condition_dim - 2 * size
        ):
            raise ConfigError(
                f"the base action is columns {base.start} to {base.stop} of a condition "
                f"{network.condition_dim} wide: it must be {size} of them, with {size} behind them"
            )
        self.network = network
        self.base = base
        self.bound = slice(base.stop, base.stop + size)
        # Its own: a module that is shared with the diffusion would be made functional twice.
        self.schedule = NoiseSchedule(num_steps, schedule)

    def forward(self, inputs: Tensor, first_layer: _Step | None = None) -> Tensor:
        """Predict clean actions [*, A].

        Args:
            inputs (Tensor): ``[noisy action | condition | step]`` [*, A + C + 1], or with a
                ``first_layer`` noisy actions [*, A] alone.
            first_layer (optional): one of those that :meth:`precondition` made.
        """
        if first_layer is not None:
            layer, base, bound, signal = first_layer
            return base + bound * self.network(inputs - signal * base, layer).tanh()
        size = self.network.action_dim
        noisy, rest = inputs[..., :size], inputs[..., size:]
        base, bound = rest[..., self.base], rest[..., self.bound]
        signal_level = self.schedule.sqrt_alphas_cumprod[rest[..., -1:].long()].to(base.dtype)
        output = self.network(torch.cat([noisy - signal_level * base, rest], dim=-1))
        return base + bound * output.tanh()

    def precondition(self, condition: Tensor, steps: Sequence[int]) -> list[_Step]:
        """Work condition and steps in once for a sample, see :meth:`MLPDenoiser.precondition`."""
        base, bound = condition[..., self.base], condition[..., self.bound]
        alpha_bar = [self.schedule.alpha_bar[step] for step in steps]
        layers = self.network.precondition(condition, steps)
        return [
            _Step(layer, base, bound, math.sqrt(level))
            for layer, level in zip(layers, alpha_bar, strict=True)
        ]
