"""How critics learn their targets, and what keeps them within what the data can say."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torchrl.objectives import two_hot_cross_entropy

from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.settings import Number, checked_dataclass


@checked_dataclass("critic_loss", frozen=True)
class CriticLoss:
    r"""Regression of critics onto their targets y: squared errors, or cross-entropy over bins.

    Args:
        bounds: y is clipped to these, so that values cannot run away; see :func:`return_bounds`.
            ``None``: it is not. Critics that write logits need them: their bins lie evenly between.
        expectile: τ in (0, 1). Rows whose value is below y weigh 2τ, others 2(1 - τ). Above 0.5,
            values lean towards the better ones of the actions a' that the actor samples, as in IQL
            and IDQL, where the environment is deterministic.

    Raises:
        ConfigError: on bounds that are not in order, or an expectile out of range.

    Examples:
        >>> loss = CriticLoss(bounds=(0.0, 10.0), expectile=0.9)
        >>> value, target = torch.tensor([[1.0, 12.0]]), loss.clip(torch.tensor([2.0, 12.0]))
        >>> loss(value, target)
        tensor([[1.8000, 0.8000]])
    """

    bounds: tuple[Number, Number] | None = None
    expectile: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.5

    def __post_init__(self) -> None:
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            low, high = self.bounds
            raise ConfigError(f"critic_loss.bounds is [{low}, {high}]: the first must be the lower")

    def clip(self, target: Tensor) -> Tensor:
        """Targets within the bounds."""
        return target if self.bounds is None else target.clamp(*self.bounds)

    def __call__(self, value: Tensor, target: Tensor, logits: Tensor | None = None) -> Tensor:
        """The error of each row.

        Args:
            value: ``[N, *]`` of N critics.
            target: ``[*]``, clipped.
            logits: ``[N, *, n]`` of categorical critics, over n bins evenly between the bounds.

        Returns:
            ``[N, *]``.
        """
        target = target.expand_as(value)
        if logits is None:
            error = (value - target).square()
        else:
            assert self.bounds is not None
            bins = torch.linspace(*self.bounds, logits.shape[-1]).to(logits)
            error = two_hot_cross_entropy(logits, target, bins)
        if self.expectile == 0.5:
            return error
        is_low = (value.detach() < target).to(value.dtype)
        return 2 * torch.lerp(1 - is_low, is_low, self.expectile) * error


def return_bounds(rewards: Tensor, gamma: float, steps: float = math.inf) -> tuple[float, float]:
    """The least and the largest discounted return that the rewards of a data set allow.

    Where all rewards are 0, the largest is 1: values need a range.

    Args:
        rewards: all of them, as the critics learn from them.
        gamma: discount.
        steps: of the longest episode; by default, episodes have no end.

    Raises:
        ConfigError: if there are rewards without end and no discount.

    Examples:
        >>> return_bounds(torch.tensor([-1.0, 0.5]), gamma=0.5)
        (-2.0, 1.0)
    """
    if gamma == 1 and math.isinf(steps):
        raise ConfigError("gamma is 1: returns have no bounds without an episode's length")
    total = steps if gamma == 1 else (1 - gamma**steps) / (1 - gamma)
    low, high = (float(bound) * total for bound in torch.aminmax(rewards))
    low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if low < high else (0.0, 1.0)
