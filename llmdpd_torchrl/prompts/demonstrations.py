"""Demonstrations: what they must hold, and poorer ones made of recorded ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from llmdpd_torchrl.utils.errors import ConfigError, PromptError

#: What is left of a recorded demonstration: all of it; every tenth step; a random half of the
#: steps; the states, whose differences take the place of the actions; or the states, and actions of
#: another action space.
Demonstration = Literal["as_recorded", "every_10th", "half_missing", "states_only", "other_actions"]
DEMONSTRATIONS: tuple[str, ...] = get_args(Demonstration)

#: Metres that Meta-World's hand is commanded to move by an action of 1.
_STRIDE = 0.01
#: Change of a gripper's opening that is a turn, and of one step below which it merely gives; and
#: the command of one that closes or holds, which demonstrators choose between 0.5 and 1.
_TURN, _GIVE, _HELD = 0.1, 0.01, 0.7
#: Metres that a hand carries something while its gripper opens, and has not let go of it.
_CARRIED = 0.03
#: Of an observation, what carries and what is carried.
_CARRYING = ("hand_position", "object_1_position")
#: Probabilities with which :func:`vary_demonstration` leaves out steps, each way, and actions.
_STEPS_MISSING, _STATES_ONLY = 0.15, 0.6
_PERMUTATION, _SIGNS, _GAIN = (1, 2, 0), (-1.0, 1.0, -1.0), 0.6


def check_demonstration(
    rollout: TensorDictBase, number: int, observation_dim: int | None, action_dim: int | None
) -> TensorDictBase:
    """The entries of a demonstration that a prompt is made of, in float32.

    Raises:
        PromptError: if it lacks one, or has another width, a number that is not finite, or several
            episodes; ``number`` says which it is.
    """
    if not isinstance(rollout, TensorDictBase) or rollout.ndim != 1 or not len(rollout):
        found = getattr(rollout, "batch_size", None)
        found = f"a {type(rollout).__name__}" if found is None else f"batch size {list(found)}"
        raise PromptError(
            f"demonstration {number} has {found}: give a TensorDict [T] of at least one step"
        )
    for end in ("done", "terminated", "truncated"):
        flags = rollout.get(("next", end), None)
        if flags is not None and flags[:-1].any():
            raise PromptError(
                f"demonstration {number} spans several episodes, ('next', {end!r}) is true before "
                "its last step: give each episode as a demonstration of its own"
            )
    for name in ("trajectory_id", ("collector", "traj_ids")):
        ids = rollout.get(name, None)
        if ids is not None and (ids != ids[:1]).any():
            raise PromptError(
                f"demonstration {number} spans several episodes, {name!r} changes: give each "
                "episode as a demonstration of its own"
            )
    widths = {"observation": observation_dim, "action": action_dim, "next reward": 1}
    entries = TensorDict({}, batch_size=rollout.batch_size)
    for name, width in widths.items():
        key = tuple(name.split())
        value = rollout.get(key, None)
        if value is None or value.ndim != 2 or width not in (None, value.shape[1]):
            found = "nothing" if value is None else f"shape {list(value.shape)}"
            raise PromptError(
                f"demonstration {number} has {found} as {name}: the policy was trained with "
                f"[T, {width or 'width'}]"
            )
        if not value.isfinite().all():
            raise PromptError(f"demonstration {number} has numbers that are not finite in {name}")
        entries[key] = value.to(torch.float32)
    return entries


def change_demonstration(
    trajectory: TensorDictBase, kind: str, fields: Mapping[str, Sequence[int]], *, seed: int = 0
) -> TensorDictBase:
    """A demonstration with less in it than was recorded.

    ``"states_only"`` and ``"other_actions"`` are marked by the entry ``has_action`` [T] (bool),
    which is false: the actions are not those of the policy's action space.

    Args:
        trajectory: TensorDict ``[T]``: ``observation`` [T, O], ``action`` [T, 4], and both of what
            follows under ``"next"``. It is not changed.
        kind: one of :data:`DEMONSTRATIONS`.
        fields: index ranges of the observation, with ``hand_position``, ``gripper_opening`` and
            ``object_1_position``.
        seed: of the missing steps.

    Raises:
        ConfigError: if there is no such kind.

    Examples:
        >>> from tensordict import TensorDict
        >>> hand = torch.linspace(0, 1, 25).unsqueeze(-1) * torch.eye(7)[:1] * 0.12
        >>> steps = {"observation": hand[:-1], "action": torch.ones(24, 4),
        ...          "next": {"observation": hand[1:]}}
        >>> recorded = TensorDict(steps, [24])
        >>> fields = {"hand_position": (0, 3), "gripper_opening": (3, 4),
        ...           "object_1_position": (4, 7)}
        >>> len(change_demonstration(recorded, "every_10th", fields))
        4
        >>> states = change_demonstration(recorded, "states_only", fields)
        >>> states["action"][7], states["has_action"].any()
        (tensor([ 0.5000,  0.0000,  0.0000, -0.5000]), tensor(False))
        >>> change_demonstration(recorded, "other_actions", fields)["action"][7]
        tensor([-0.6000,  0.6000, -0.6000,  1.0000])
    """
    if kind not in DEMONSTRATIONS:
        raise ConfigError(f"unknown demonstration {kind!r}: use one of {', '.join(DEMONSTRATIONS)}")
    if kind == "as_recorded":
        return trajectory
    steps = len(trajectory)
    if kind == "every_10th":
        return trajectory[_with_ends(torch.arange(0, steps, 10), steps)]
    if kind == "half_missing":
        order = torch.randperm(steps, generator=torch.Generator().manual_seed(seed))
        return trajectory[_with_ends(order[: steps // 2], steps)]
    actions = finite_differences if kind == "states_only" else _foreign_actions
    changed = trajectory.clone(recurse=False)
    changed["action"] = actions(trajectory, fields)
    changed["has_action"] = torch.zeros(steps, dtype=torch.bool)
    return changed


def vary_demonstration(trajectory: TensorDictBase, seed: int | Sequence[int]) -> TensorDictBase:
    """A demonstration with less in it, at random, for policies to learn from poorer ones too.

    Three in twenty have 30 to 80 % of their steps, as many every second to eleventh step, and the
    others all; and three in five are of states only: their actions are zero, and ``has_action`` [T]
    is false.

    Args:
        trajectory: TensorDict ``[T]`` with ``action``. It is not changed.
        seed: of what is left out.

    Examples:
        >>> from tensordict import TensorDict
        >>> recorded = TensorDict({"action": torch.ones(100, 4)}, [100])
        >>> [len(vary_demonstration(recorded, seed)) for seed in range(4)]
        [100, 100, 18, 70]
    """
    random, steps = np.random.default_rng(seed), len(trajectory)
    kind, states_only = random.random(), random.random() < _STATES_ONLY
    if kind < _STEPS_MISSING:
        share = random.uniform(0.3, 0.8)
        chosen = torch.from_numpy(random.permutation(steps)[: int(share * steps)])
        trajectory = trajectory[_with_ends(chosen, steps)]
    elif kind < 2 * _STEPS_MISSING:
        every = int(random.integers(2, 12))
        trajectory = trajectory[_with_ends(torch.arange(0, steps, every), steps)]
    if states_only:
        trajectory = trajectory.clone(recurse=False)
        trajectory["action"] = torch.zeros_like(trajectory["action"])
        trajectory["has_action"] = torch.zeros(len(trajectory), dtype=torch.bool)
    return trajectory


def _with_ends(chosen: Tensor, steps: int) -> Tensor:
    """Some of the steps in their order, the first and the last among them."""
    return torch.cat([chosen, torch.tensor([0, steps - 1])]).unique()


def finite_differences(trajectory: TensorDictBase, fields: Mapping[str, Sequence[int]]) -> Tensor:
    """Actions [T, 4] that the movement of hand and gripper suggests, which are not those taken.

    The hand's are the distances moved, in strides of the action space; the gripper's are those of
    :func:`held_grips`: one that holds something does not move.

    Args:
        trajectory: see :func:`change_demonstration`.
        fields: see there.
    """
    moved = trajectory["next", "observation"] - trajectory["observation"]
    hand = (moved[:, slice(*fields["hand_position"])] / _STRIDE).clamp(-1, 1)
    observation = trajectory["observation"].unsqueeze(0)
    opening = observation[..., fields["gripper_opening"][0]]
    places = [observation[..., slice(*fields[name])] for name in _CARRYING]
    grips = held_grips(opening, carried_distances(*places))
    return torch.cat([hand, grips.mT], -1)


def carried_distances(hand: Tensor, thing: Tensor) -> Tensor:
    """Metres ``[P, L]`` that a hand carries a thing from each step to the next.

    Zero where the thing moves otherwise than the hand, by more than half of its way. Both are
    positions ``[P, L, 3]``.
    """
    moved = thing.diff(dim=1)
    way = moved.norm(dim=-1)
    is_carried = (hand.diff(dim=1) - moved).norm(dim=-1) < way / 2
    return torch.nn.functional.pad(way * is_carried, (0, 1))


def held_grips(openings: Tensor, carried: Tensor, start: Tensor | None = None) -> Tensor:
    """The commands of a gripper, read off its opening: where it turns, they change.

    A turn is a change by a tenth against the last one; a gripper that closes on something springs
    back by less. It may also be forced open by what it holds, and then carries it on.

    Args:
        openings: ``[P, L]``.
        carried: ``[P, L]``, see :func:`carried_distances`.
        start: ``[P, L]``, the first step of each step's own demonstration; default: 0.

    Returns:
        ``[P, L]``: 0.7 while it closes, and holds, -1 while it opens, and -0.5 before the first
        turn: left alone or held open, which look alike.

    Examples:
        >>> openings = torch.tensor([[1.0, 1.0, 0.7, 0.5, 0.53, 0.53, 0.8, 1.0]])
        >>> held_grips(openings, torch.zeros(1, 8))
        tensor([[-0.5000,  0.7000,  0.7000,  0.7000,  0.7000, -1.0000, -1.0000, -1.0000]])
        >>> held_grips(openings, torch.full((1, 8), 0.05))[0, -1]
        tensor(0.7000)
    """
    steps = torch.arange(openings.shape[1], device=openings.device)
    begins = steps == (0 if start is None else start)
    return _held_on(_commands(openings, begins), openings, carried, begins)


def _commands(openings: Tensor, begins: Tensor) -> Tensor:
    """The commands [P, L] from turn to turn of the opening alone."""
    held = torch.full_like(openings, -0.5)
    steps = torch.arange(openings.shape[1], device=openings.device)
    command = held[:, 0]
    before = low = high = openings[:, 0]
    falls = rises = torch.zeros(len(openings), dtype=torch.int64, device=openings.device)
    for step, opening in enumerate(openings.unbind(1)):
        new = begins[..., step]
        command = torch.where(new, -0.5, command)
        low, high = (torch.where(new, opening, f(opening, x)) for f, x in
                     ((torch.minimum, low), (torch.maximum, high)))  # fmt: skip
        # Where the present fall, or rise, began.
        falls = torch.where((opening < before - _GIVE) & ~new, falls, step)
        rises = torch.where((opening > before + _GIVE) & ~new, rises, step)
        closes, opens = opening < high - _TURN, opening > low + _TURN
        command = torch.where(closes, _HELD, torch.where(opens, -1.0, command))
        since = torch.where(closes, falls, torch.where(opens, rises, step)).unsqueeze(-1)
        held = torch.where((steps >= since) & (steps <= step), command.unsqueeze(-1), held)
        # After a turn it is a turn back that counts.
        low, high = (torch.where(closes | opens, opening, extreme) for extreme in (low, high))
        before = opening
    return held


def _held_on(held: Tensor, openings: Tensor, carried: Tensor, begins: Tensor) -> Tensor:
    """The same, but that what is carried while the gripper is open is still held."""
    turns = held.diff(dim=1, prepend=held[:, :1]).ne(0) | begins
    run = turns.long().cumsum(1) - 1
    # What was let go may fly on, while the gripper still opens.
    is_opening = openings.diff(dim=1, append=openings[:, -1:]) > _GIVE
    way = torch.zeros_like(carried).scatter_add(1, run, carried.masked_fill(is_opening, 0.0))
    held_before = torch.full_like(held, -0.5).scatter(1, run, held)
    was_held = held_before.roll(1, 1).gather(1, run) == _HELD
    return torch.where((held < -0.5) & was_held & (way.gather(1, run) > _CARRIED), _HELD, held)


def _foreign_actions(trajectory: TensorDictBase, fields: Mapping[str, Sequence[int]]) -> Tensor:
    """The actions [T, 4] as a robot with other axes, directions and strides would have them."""
    action = trajectory["action"].clone()
    action[:, :3] = _GAIN * action[:, _PERMUTATION] * action.new_tensor(_SIGNS)
    return action
