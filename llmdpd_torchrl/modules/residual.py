"""Diffusion around an action that the condition names, instead of around zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llmdpd_torchrl.modules.denoiser import MLPDenoiser
from llmdpd_torchrl.modules.schedules import NoiseSchedule
from llmdpd_torchrl.utils.errors import ConfigError

__all__ = ["ResidualDenoiser"]


class _Step(NamedTuple):
    """What :meth:`ResidualDenoiser.precondition` makes for one step: the inner network's, and ours.

    Attributes:
        layer: the inner network's.
        base: [*, A].
        signal, noise: levels of the step.
    """

    layer: Any
    base: Tensor
    signal: float
    noise: float


class ResidualDenoiser(nn.Module):
    r"""Let a denoiser learn how actions differ from a base action b that its condition holds.

    With :math:`y = a - b` and :math:`y_k = a_k - \sqrt{\bar\alpha_k} b`, the noised y under the
    same noise, the network reads :math:`y_k` and its output is brought back: noise is the same for
    both, the clean action is :math:`b + \hat y`, the velocity :math:`\hat v_y -
    \sqrt{1 - \bar\alpha_k} b`. So this is an exact change of variables: loss, samplers and clipping
    are those of actions.

    What it is for: a network that predicts actions has to learn to copy what the prompt suggests,
    and on a task that it never saw falls back to the mean of those it did. One that predicts the
    difference copies by predicting nothing.

    Nor may the difference cancel what it is added to: where the network does not know the task, it
    takes back what the prompt's nearest step asks for, and the policy stands still for ever.
    :meth:`limit` leaves samples at least ``least_share`` of b's movement, as far as the range of
    actions has room for it.

    Args:
        network (MLPDenoiser): of noisy differences, the condition and the step.
        base (slice): columns of the condition that hold b, as many as the action has entries.
        num_steps (int): K of the diffusion.
        schedule (str): of its noise, one of :data:`~llmdpd_torchrl.modules.NOISE_SCHEDULES`.
        prediction (str): one of :data:`~llmdpd_torchrl.modules.PREDICTIONS`.
        movement (int): so many first entries of an action are a movement; 0: nothing is limited.
        least_share (float): in [0, 1]; 0 forbids turning back only, 1 slowing down at all.

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
        schedule: str = "vp",
        prediction: str = "epsilon",
        *,
        movement: int = 0,
        least_share: float = 0.75,
    ) -> None:
        super().__init__()
        if not 0 <= base.start <= base.stop <= network.condition_dim or (
            base.stop - base.start != network.action_dim
        ):
            raise ConfigError(
                f"the base action is columns {base.start} to {base.stop} of a condition "
                f"{network.condition_dim} wide: it must be {network.action_dim} of them"
            )
        if not 0 <= movement <= network.action_dim or not 0.0 <= least_share <= 1.0:
            raise ConfigError(
                f"movement is {movement} and least_share {least_share}: give at most the action's "
                f"{network.action_dim} entries, and a share in [0, 1]"
            )
        self.network = network
        self.base = base
        self.movement = movement
        self.least_share = least_share
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
        """Actions [*, A] whose movement has at least ``least_share`` of the base's along it.

        Where the base is zero, as it is where nothing is retrieved, nothing changes; however small
        it is otherwise, its direction counts, so that the result jumps where the base turns round
        through zero. The range of actions may end before that share is reached.
        """
        movement, rest = action.tensor_split([self.movement], dim=-1)
        base = condition[..., self.base][..., : self.movement]
        size = base.square().sum(-1, keepdim=True)
        share = (movement * base).sum(-1, keepdim=True) / size.clamp_min(
            torch.finfo(size.dtype).eps
        )
        movement = movement + (self.least_share - share).clamp_min(0.0) * base
        return torch.cat([movement, rest], dim=-1)

    def _back(self, output: Tensor, base: Tensor, noise: Tensor | float) -> Tensor:
        if self.prediction == "epsilon":
            return output
        return output + base if self.prediction == "x0" else output - noise * base
