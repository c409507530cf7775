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
    in_features: int, hidden: Sequence[int], out_features: int, activation: str = "mish"
) -> MLP:
    """TorchRL's MLP in float32, whatever torch's default, with one of :data:`ACTIVATIONS`."""
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
    signal: float
    noise: float


class ResidualDenoiser(nn.Module):
    r"""A denoiser of the residual between actions and a base action b, a part of the condition.

    With :math:`y = a - b` and :math:`y_k = a_k - \sqrt{\bar\alpha_k} b`, the noised y under the
    same noise, the network reads :math:`y_k` and its output is brought back: noise is the same for
    both, the clean action is :math:`b + \hat y`, the velocity :math:`\hat v_y -
    \sqrt{1 - \bar\alpha_k} b`. So this is an exact change of variables: loss, samplers and clipping
    are those of actions.

    A network that predicts actions has to learn to copy what the prompt suggests, and on a task
    that it never saw falls back to the mean of those it did. One that predicts the residual copies
    by predicting zero.

    Unlimited, on a task that the network does not know, the residual can cancel the retrieved
    action, and the policy stalls. :meth:`limit` leaves samples at least ``min_base_fraction`` of
    b's movement, as far as the range of actions allows.

    Args:
        network (MLPDenoiser): maps noisy residuals, the condition and the step.
        base (slice): columns of the condition that hold b, as many as the action has entries.
        num_steps (int): K of the diffusion.
        schedule (str): its noise schedule, one of :data:`~llmdpd_torchrl.modules.NOISE_SCHEDULES`.
        prediction (str): one of :data:`~llmdpd_torchrl.modules.PREDICTIONS`.
        movement (int): number of first entries of an action that are a movement; 0: no limit.
        min_base_fraction (float): in [0, 1]; 0 forbids only to reverse the movement, 1 to slow it.

    Raises:
        ConfigError: if the base is not of the action's width, or not in the condition, or a number
            is out of range.

    Examples:
        >>> network = MLPDenoiser(action_dim=2, condition_dim=6, hidden=(8,))
        >>> denoiser = ResidualDenoiser(network, slice(4, 6), num_steps=5, prediction="v")
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
        prediction: str = "epsilon",
        *,
        movement: int = 0,
        min_base_fraction: float = 0.75,
    ) -> None:
        super().__init__()
        if not 0 <= base.start <= base.stop <= network.condition_dim or (
            base.stop - base.start != network.action_dim
        ):
            raise ConfigError(
                f"the base action is columns {base.start} to {base.stop} of a condition "
                f"{network.condition_dim} wide: it must be {network.action_dim} of them"
            )
        if not 0 <= movement <= network.action_dim or not 0.0 <= min_base_fraction <= 1.0:
            raise ConfigError(
                f"movement is {movement} and min_base_fraction {min_base_fraction}: give at most "
                f"the action's {network.action_dim} entries, and a fraction in [0, 1]"
            )
        self.network = network
        self.base = base
        self.movement = movement
        self.min_base_fraction = min_base_fraction
        self.prediction = prediction
        # Its own: a module that is shared with the diffusion would be made functional twice.
        self.schedule = NoiseSchedule(num_steps, schedule)

    def forward(self, inputs: Tensor, first_layer: _Step | None = None) -> Tensor:
        """Predict as the inner network's class does, for actions.

        Args:
            inputs (Tensor): ``[noisy action | condition | step]`` [*, A + C + 1], or with a
                ``first_layer`` noisy actions [*, A] alone.
            first_layer (optional): one of those that :meth:`precondition` made.
        """
        if first_layer is not None:
            layer, base, signal, noise = first_layer
            return self._back(self.network(inputs - signal * base, layer), base, noise)
        size = self.network.action_dim
        noisy, rest = inputs[..., :size], inputs[..., size:]
        base = rest[..., self.base]
        step = rest[..., -1:].long()
        signal_level = self.schedule.sqrt_alphas_cumprod[step].to(base.dtype)
        noise_level = self.schedule.sqrt_one_minus_alphas_cumprod[step].to(base.dtype)
        output = self.network(torch.cat([noisy - signal_level * base, rest], dim=-1))
        return self._back(output, base, noise_level)

    def precondition(self, condition: Tensor, steps: Sequence[int]) -> list[_Step]:
        """Work condition and steps in once for a sample, see :meth:`MLPDenoiser.precondition`."""
        base = condition[..., self.base]
        alpha_bar = [self.schedule.alpha_bar[step] for step in steps]
        return [
            _Step(layer, base, math.sqrt(level), math.sqrt(1 - level))
            for layer, level in zip(
                self.network.precondition(condition, steps), alpha_bar, strict=True
            )
        ]

    def limit(self, action: Tensor, condition: Tensor) -> Tensor:
        """Actions [*, A] whose movement has at least ``min_base_fraction`` of the base's along it.

        A zero base, where nothing is retrieved, changes nothing. Any other base fixes a direction,
        so the result jumps where the base changes sign. Clipping to the action range may leave
        less.
        """
        movement, rest = action.tensor_split([self.movement], dim=-1)
        base = condition[..., self.base][..., : self.movement]
        size = base.square().sum(-1, keepdim=True)
        share = (movement * base).sum(-1, keepdim=True) / size.clamp_min(
            torch.finfo(size.dtype).eps
        )
        movement = movement + (self.min_base_fraction - share).clamp_min(0.0) * base
        return torch.cat([movement, rest], dim=-1)

    def _back(self, output: Tensor, base: Tensor, noise: Tensor | float) -> Tensor:
        if self.prediction == "epsilon":
            return output
        return output + base if self.prediction == "x0" else output - noise * base
