"""Trajectories cut to the length of a prompt: evenly in time, or evenly in what moves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase, pad
from torch import Tensor

from llmdpd_torchrl.data.dataset import returns_to_go
from llmdpd_torchrl.prompts.demonstrations import finite_differences
from llmdpd_torchrl.utils.errors import ConfigError

#: Neighbouring steps that are further apart, in units, have states interpolated between them, so
#: many at most.
_GAP = 1.5
_MOST_PER_GAP = 40
#: What units grow by while too many steps remain.
_GROWTH = 1.25


@dataclass(frozen=True)
class Spacing:
    """Where the steps of a prompt lie: at least one unit apart, see :func:`space_evenly`.

    Args:
        units: by field of the observation, the distance that counts as one.
        fields: half-open index ranges of the observation by name.

    Examples:
        >>> Spacing({"hand": 0.01}, {"hand": (0, 3)}).units
        {'hand': 0.01}
    """

    units: Mapping[str, float]
    fields: Mapping[str, Sequence[int]]


def cut_trajectory(
    trajectory: TensorDictBase,
    length: int,
    spacing: Spacing | None = None,
    *,
    recorded: bool = False,
) -> TensorDictBase:
    """Choose L steps of a trajectory ``[T]``, the first and the last among them.

    Args:
        trajectory: ``observation`` [T, O], ``action`` [T, A] and ``("next", "reward")`` [T, 1].
        length: L.
        spacing: where they lie; ``None``: evenly in time.
        recorded: with a spacing, whether to cut the trajectory evenly in time as well.

    Returns:
        TensorDict ``[L]`` with ``observation``, ``action``, ``reward``, ``return_to_go`` (all
        rewards of the trajectory from that step on), ``has_action`` [L] (bool), which is false
        where the trajectory has that entry and its actions are not the environment's, and ``mask``
        [L] (bool), which is false where a shorter trajectory is padded with zeros. With
        ``recorded`` also ``recorded_observation``, ``recorded_action``, which are finite
        differences where the actions are not the environment's, and ``recorded_mask``.

    Raises:
        ConfigError: if a unit is of no field.
    """
    if spacing is not None:
        even = space_evenly(trajectory, spacing.units, spacing.fields, length)
        cut = cut_trajectory(even, length)
        return cut.update(_recorded(trajectory, length, spacing)) if recorded else cut
    steps = len(trajectory)
    reward = trajectory["next", "reward"]
    to_go = returns_to_go(reward, torch.tensor([steps], device=reward.device))
    chosen = torch.linspace(0, steps - 1, min(length, steps)).round().long()
    is_there = torch.ones(len(chosen), dtype=torch.bool)
    has_action = trajectory.get("has_action", None)
    entries = {
        "observation": trajectory["observation"][chosen],
        "action": trajectory["action"][chosen],
        "reward": reward[chosen],
        "return_to_go": to_go[chosen],
        "has_action": is_there if has_action is None else has_action[chosen],
        "mask": is_there.clone(),
    }
    return pad(TensorDict(entries, [len(chosen)]), [0, length - len(chosen)])


def _recorded(trajectory: TensorDictBase, length: int, spacing: Spacing) -> dict[str, Tensor]:
    """The trajectory cut evenly in time, with actions that can be played."""
    if "has_action" in trajectory and not trajectory["has_action"].any():
        trajectory = trajectory.clone(recurse=False)
        trajectory["action"] = finite_differences(trajectory, spacing.fields)
    cut = cut_trajectory(trajectory, length)
    return {f"recorded_{name}": cut[name] for name in ("observation", "action", "mask")}


def space_evenly(
    trajectory: TensorDictBase,
    units: Mapping[str, float],
    fields: Mapping[str, Sequence[int]],
    length: int,
) -> TensorDictBase:
    """A trajectory whose steps lie at even distances, whatever the speed it was recorded at.

    A step remains if, in some field, it is a unit or more from the last one that remains; so do the
    first and the last. Where neighbours are further apart, as when steps are missing, states are
    interpolated between them, under the action of the earlier one. Demonstrations of one path at
    different speeds, with pauses or with gaps become nearly the same.

    Args:
        trajectory: TensorDict ``[T]`` with ``observation`` [T, O], ``action`` [T, A],
            ``("next", "reward")`` [T, 1], and ``has_action`` [T] (bool) where it has that.
        units: by field, the distance that counts as one. They grow by quarters while more than
            ``length`` steps remain.
        fields: half-open index ranges of the observation by name.
        length: of the result, at most; two steps always fit.

    Returns:
        TensorDict ``[n]`` with the same entries: of each step that remains, the mean action and the
        sum of the rewards up to the next one.

    Raises:
        ConfigError: if a unit is of no field.

    Examples:
        >>> hand = torch.tensor([0.0, 0.0, 0.02, 0.04, 0.1, 0.1]).unsqueeze(-1)
        >>> rewards = torch.ones(6, 1)
        >>> steps = {"observation": hand, "action": -hand, "next": {"reward": rewards}}
        >>> even = space_evenly(TensorDict(steps, [6]), {"hand": 0.03}, {"hand": (0, 1)}, 9)
        >>> even["observation"].squeeze(-1)
        tensor([0.0000, 0.0400, 0.0700, 0.1000, 0.1000])
        >>> even["next", "reward"].squeeze(-1).tolist()
        [3.0, 0.5, 0.5, 1.0, 1.0]
    """
    if unknown := set(units) - set(fields):
        raise ConfigError(
            f"network.trajectory_spacing has {min(unknown)}: the observation's fields are "
            f"{', '.join(fields)}"
        )
    observation = trajectory["observation"]
    moving = [observation[:, slice(*fields[name])].double() / units[name] for name in units]
    # All points, recorded and interpolated: the step that each belongs to, and how far it is
    # on the way to the next one.
    gaps = torch.stack([values.diff(dim=0).norm(dim=-1) for values in moving]).amax(0)
    parts = torch.ones(len(trajectory), dtype=torch.int64)
    parts[:-1] = (gaps / _GAP).ceil().clamp(1, _MOST_PER_GAP).long()
    step = torch.arange(len(parts)).repeat_interleave(parts)
    following = (step + 1).clamp(max=len(parts) - 1)
    way = (torch.arange(len(step)) - (parts.cumsum(0) - parts)[step]) / parts[step]

    def interpolate(values: Tensor) -> Tensor:
        return torch.lerp(values[step], values[following], way.to(values.dtype).unsqueeze(-1))

    points = list(zip(*(interpolate(values).tolist() for values in moving), strict=True))
    unit, remaining = 1.0, _one_unit_apart(points, 1.0)
    while len(remaining) > max(length, 2):
        unit *= _GROWTH
        remaining = _one_unit_apart(points, unit)
    chosen = torch.tensor(remaining)
    lengths = chosen.diff(append=torch.tensor([len(step)]))
    reward = (trajectory["next", "reward"] / parts.unsqueeze(-1))[step]
    entries = {
        "observation": interpolate(observation)[chosen],
        "action": torch.segment_reduce(trajectory["action"][step], "mean", lengths=lengths),
        "next": {"reward": torch.segment_reduce(reward, "sum", lengths=lengths)},
    }
    if (has_action := trajectory.get("has_action", None)) is not None:
        entries["has_action"] = has_action[step[chosen]]
    return TensorDict(entries, [len(chosen)])


def _one_unit_apart(points: Sequence[Sequence[Sequence[float]]], unit: float) -> list[int]:
    """The points, each a sequence of fields, that remain; the first and the last among them."""
    # Of plain floats: each choice depends on the last one, and a tensor's operation takes longer
    # than all that a point needs.
    last, remaining = points[0], [0]
    for number, point in enumerate(itertools.islice(points, 1, None), 1):
        if max(map(math.dist, point, last)) >= unit:
            remaining.append(number)
            last = point
    if remaining[-1] != len(points) - 1:
        remaining.append(len(points) - 1)
    return remaining
