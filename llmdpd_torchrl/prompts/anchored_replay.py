"""The strongest replay written by hand: it chooses its anchors, and keeps its place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmdpd_torchrl.prompts.frames import Fields
from llmdpd_torchrl.prompts.tables import TrajectoryPromptBank

#: What the hand is led by. Carry: by the first object and, while that moves, by the goal. World: by
#: the second object, which is the world where there is none, as its position is zero then.
CARRY, OBJECT, GOAL, WORLD = range(4)
#: Steps that one step may advance; and by how much nearer, in weighted distance, another step must
#: be for a jump to it.
SKIP, REENTRY = 4, 0.5
#: The progress that stands for starting over; and how near to the beginning the hand must be, in
#: metres, and the gripper, in its opening, for the replay to begin there.
START_OVER, _ARRIVED, _OPENED = -2, 0.03, 0.2

_GAIN = 20.0  # of the corrections, per metre
_GRIP = 5.0  # of that of the gripper on the way back to the beginning
_LOOKAHEAD = 3  # steps in which movement is looked for
_MOVING = 0.005  # metres within the lookahead above which an object counts as moving
#: The goal counts if the object ends at most this fraction of the way from it that it began.
_BROUGHT = 0.5
#: Metres by which an object must be further away than the goal for the goal to be the nearer one;
#: and beyond which nothing is near: the hand went to a place in the world.
_NEARER, _FAR = 0.02, 0.15
#: Of differences, per metre, of hand and anchor, and of object and goal; and of the gripper's.
_WEIGHTS = (10.0, 10.0, 10.0, 5.0, 5.0, 5.0, 1.0)


#: What is read of an observation: hand, objects, goal, gripper.
_FIELDS = (
    "hand_position", "object_1_position", "object_2_position", "goal_position", "gripper_opening",
)  # fmt: skip


def is_replayable(fields: Fields) -> bool:
    """Whether observations have what an :class:`AnchoredReplay` reads."""
    return all(name in fields for name in _FIELDS)


def choose_anchors(hand: Tensor, first: Tensor, second: Tensor, goal: Tensor) -> Tensor:
    """What the hand is led by at each step of a demonstration, read off it alone.

    If the first object moves, it leads the hand: with the goal if it is brought to that, or else
    alone. If it never does, what the hand ends near to leads it; if that is nothing, the world.

    Args:
        hand: positions [T, 3].
        first: of the object.
        second: of another, zeros where there is none.
        goal: of the goal.

    Returns:
        ``[T]`` int64: :data:`CARRY`, :data:`OBJECT`, :data:`GOAL` or :data:`WORLD`.
    """
    moving = _moves(first).nonzero()
    if len(moving):
        placed = min(int(moving[-1]) + _LOOKAHEAD, len(first) - 1)
        before, after = ((first[step] - goal[step]).norm() for step in (0, placed))
        anchor = CARRY if after <= _BROUGHT * before else OBJECT
    else:
        distances = {OBJECT: (hand[-1] - first[-1]).norm() - _NEARER}
        distances[GOAL] = (hand[-1] - goal[-1]).norm()
        if second[0].any():
            distances[WORLD] = (hand[-1] - second[-1]).norm()
        anchor = min(distances, key=lambda each: float(distances[each]))
        if distances[anchor] > _FAR:
            anchor = WORLD
    return torch.full((len(first),), anchor)


class AnchoredReplay(nn.Module):
    """Replay a demonstration relative to anchors that a rule chooses, without losing the place.

    The rule, :func:`choose_anchors`, reads a demonstration. The step that is played is the nearest
    one, in the relative frames of the steps' anchors, among the last one and the :data:`SKIP` steps
    that follow it. Only where some other step is nearer by :data:`REENTRY`, as when something was
    dropped, the replay enters there. Its action is that of the step, corrected towards its path; of
    prompts whose actions are not usable, which are finite differences, as well.

    Args:
        bank: the prompts; of several demonstrations in one, each has its own anchor.
        fields: half-open index ranges of the observation by name, those of Meta-World.

    Examples:
        >>> from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT
        >>> bank = TrajectoryPromptBank.empty(length=5, observation_dim=39, action_dim=4)
        >>> replay = AnchoredReplay(bank, METAWORLD_OBSERVATION_LAYOUT["fields"])
        >>> begin = torch.tensor([-1, -1])
        >>> action, progress = replay(torch.rand(2, 39), torch.tensor([0, -1]), begin)
        >>> action.shape, progress.tolist()
        (torch.Size([2, 4]), [0, -1])
    """

    def __init__(self, bank: TrajectoryPromptBank, fields: Fields) -> None:
        super().__init__()
        *self._positions, self._gripper = (slice(*fields[name]) for name in _FIELDS)
        prompts = bank.prompts
        observation, mask = prompts["observation"], prompts["mask"]
        last = (mask.sum(-1, keepdim=True) - 1).expand(mask.shape)
        start = prompts.get("start", torch.zeros_like(last))
        end = prompts.get("end", last)
        anchor = torch.zeros_like(start)
        moving = torch.zeros_like(mask)
        for row in range(len(bank)):
            for begin in start[row, mask[row]].unique().tolist():
                steps = slice(begin, int(end[row, begin]) + 1)
                hand, first, second, goal = self._split(observation[row, steps])
                anchor[row, steps] = choose_anchors(hand, first, second, goal)
                moving[row, steps] = _moves(first)
        relations = self._relations(observation)
        columns = anchor[..., None, None].expand(*anchor.shape, 1, relations.shape[-1])
        self._frames = nn.Buffer(relations.gather(2, columns).squeeze(2), persistent=False)
        self._is_carried = nn.Buffer(moving & (anchor == CARRY), persistent=False)
        self._anchor = nn.Buffer(anchor, persistent=False)
        self._action = nn.Buffer(prompts["action"], persistent=False)
        self._mask = nn.Buffer(mask, persistent=False)
        self._start = nn.Buffer(start, persistent=False)
        self._end = nn.Buffer(end, persistent=False)
        self._weights = nn.Buffer(torch.tensor(_WEIGHTS), persistent=False)

    def forward(self, observation: Tensor, row: Tensor, progress: Tensor) -> tuple[Tensor, Tensor]:
        """Play a step.

        Args:
            observation: ``[*, O]``.
            row: ``[*]``, the prompt in the bank; -1: none.
            progress: ``[*]``, the step that was played last; -1 where an episode begins;
                :data:`START_OVER` to go back to the first step, wherever the hand is.

        Returns:
            actions ``[*, A]``, zeros without a prompt, and the steps ``[*]`` that they are of, or
            :data:`START_OVER` until the hand is back.
        """
        shape = row.shape
        observation, row = observation.reshape(-1, observation.shape[-1]), row.reshape(-1)
        absent, row = row < 0, row.clamp_min(0)
        steps = torch.arange(self._mask.shape[1], device=row.device)
        now = self._relations(observation.to(self._frames.dtype))
        anchor = self._anchor[row].unsqueeze(-1).expand(-1, -1, now.shape[-1])
        errors = now.gather(1, anchor) - self._frames[row]
        distances = (errors * self._weights).norm(dim=-1).masked_fill(~self._mask[row], torch.inf)
        # An episode begins in the first steps of any of the demonstrations.
        last = progress.reshape(-1, 1)
        first = torch.where(last < 0, self._start[row], last)
        final = torch.where(last < 0, self._end[row], self._end[row].gather(1, last.clamp_min(0)))
        ahead = (steps >= first) & (steps <= torch.minimum(first + SKIP, final))
        nearest = distances.min(-1)
        following = distances.masked_fill(~ahead, torch.inf).min(-1)
        is_lost = following.values > nearest.values + REENTRY
        played = torch.where(is_lost, nearest.indices, following.indices)
        starts_over = progress.reshape(-1) == START_OVER
        played = torch.where(starts_over, self._start[row, nearest.indices], played)
        error = errors.gather(1, played[:, None, None].expand(-1, 1, errors.shape[-1])).squeeze(1)
        is_away = (error[:, :3].norm(dim=-1) > _ARRIVED) | (error[:, 6].abs() > _OPENED)
        carried = self._is_carried[row, played].unsqueeze(-1)
        correction = -_GAIN * (error[:, :3] + torch.where(carried, error[:, 3:6], 0.0))
        # The way back has no other aim than the place and the opening at the beginning.
        back = torch.cat([-_GAIN * error[:, :3], _GRIP * error[:, 6:]], -1)
        onwards = self._action[row, played] + nn.functional.pad(correction, (0, 1))
        action = torch.where(starts_over.unsqueeze(-1), back, onwards).clamp(-1.0, 1.0)
        action = action.masked_fill(absent.unsqueeze(-1), 0.0)
        played = torch.where(starts_over & is_away, START_OVER, played)
        return action.reshape(*shape, -1), played.masked_fill(absent, -1).reshape(shape)

    def _split(self, observation: Tensor) -> list[Tensor]:
        return [observation[..., part] for part in self._positions]

    def _relations(self, observation: Tensor) -> Tensor:
        """The relative frames [*, 4, 7] of observations [*, O], one for each kind of anchor."""
        hand, first, second, goal = self._split(observation)
        none, gripper = torch.zeros_like(hand), observation[..., self._gripper]
        frames = [(hand - first, first - goal), (hand - first, none)]
        frames += [(hand - goal, none), (hand - second, none)]
        return torch.stack([torch.cat([*frame, gripper], -1) for frame in frames], -2)


def _moves(positions: Tensor) -> Tensor:
    """Whether something at positions [T, 3] moves within the lookahead [T]."""
    later = torch.arange(len(positions)).add(_LOOKAHEAD).clamp_max(len(positions) - 1)
    return (positions[later] - positions).norm(dim=-1) > _MOVING
