"""What a loss refuses, and in which words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from tensordict.utils import NestedKey
from torch import Tensor

from llmdpd_torchrl.utils.errors import ConfigError, DataError

__all__ = [
    "check_action",
    "check_bounds",
    "check_columns",
    "check_discount",
    "check_finite",
    "check_losses",
    "check_names",
    "check_weight",
]

#: How far an action may leave its bounds, as a share of their distance: float16 storage rounds.
_TOLERANCE = 1e-3


def check_names(setting: str, names: Iterable[str], choices: Sequence[str]) -> None:
    """Refuse a name that is not among ``choices``."""
    for name in names:
        if name not in choices:
            raise ConfigError(f"unknown {setting} {name!r}: choose from {', '.join(choices)}")


def check_weight(name: str, weight: float | Tensor) -> None:
    """Refuse a loss weight that is negative, infinite or NaN."""
    if not 0 <= float(weight) < math.inf:
        raise ConfigError(f"{name} is {float(weight)}: it must be a finite number, not negative")


def check_discount(gamma: float | Tensor) -> None:
    """Refuse a discount outside [0, 1], NaN included."""
    if not 0 <= float(gamma) <= 1:
        raise ConfigError(f"gamma is {float(gamma)}: it must lie in [0, 1]")


def check_action(key: NestedKey, action: Tensor, width: int) -> None:
    """Refuse actions [*, A] of another width than the actor's, and empty batches."""
    if action.ndim == 0 or action.shape[-1] != width:
        raise DataError(
            f"{key!r} has shape {list(action.shape)}, but the actor makes {width} numbers an "
            f"action: give it [*, {width}], or build the actor with the data's action_dim"
        )
    if action.numel() == 0:
        raise DataError(f"{key!r} has shape {list(action.shape)}: the batch is empty")


def check_columns(columns: Mapping[NestedKey, Tensor], batch: torch.Size) -> None:
    """Refuse anything but one number per row.

    A reward [B] would else be subtracted from values [B, 1], and broadcast to [B, B] silently.
    """
    shape = (*batch, 1)
    for key, column in columns.items():
        if column.shape != shape:
            raise DataError(
                f"{key!r} has shape {list(column.shape)}, but the actions ask for {list(shape)}: "
                "one number per row, in a last dimension of its own (unsqueeze(-1) adds it)"
            )


def check_finite(key: NestedKey, value: Tensor) -> None:
    """Refuse NaN and infinity. Reads one number back from the device."""
    if not value.is_floating_point() or value.is_nested:
        return
    # A sum is a fifth of the cost of isfinite().all(), and finite only if all its terms are.
    if math.isfinite(value.detach().sum().item()):
        return
    wrong = ~value.detach().isfinite()
    count = int(wrong.sum())
    if count:  # otherwise only the sum was too large
        raise DataError(
            f"{key!r} is NaN or infinite in {count} places, the first at "
            f"{wrong.nonzero()[0].tolist()}: remove these rows from the data"
        )


def check_bounds(key: NestedKey, action: Tensor, bounds: tuple[float, float]) -> None:
    """Refuse actions that the actor can not make. Reads two numbers back from the device."""
    low, high = bounds
    slack = _TOLERANCE * (high - low)
    least, most = (extreme.item() for extreme in action.detach().aminmax())
    if least < low - slack or most > high + slack:
        raise DataError(
            f"{key!r} reaches from {least:.4g} to {most:.4g}, outside the actor's [{low:g}, "
            f"{high:g}]: rescale the actions (torchrl's ActionScaling), or give the actor their "
            "spec"
        )


def check_losses(**losses: Tensor) -> None:
    """Refuse to hand on a loss that is not finite. Reads one number back per loss."""
    for name, loss in losses.items():
        if not loss.detach().isfinite().all():
            raise ConfigError(
                f"{name} is not finite though every input is: the networks have diverged; lower "
                "the learning rate or lmbda, or clip gradients"
            )
