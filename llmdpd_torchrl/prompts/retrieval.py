"""Retrieval, the idea of this project: the prompt's step that is nearest to the present.

A pooled embedding of a trajectory says which task is meant. It cannot say how a task that was never
trained on is done. The step of the demonstration at which the scene was most like the present one
can: its action, where the hand was relative to object and goal, and where it was a few steps later.

What counts as most alike depends on the task, and on the moment: near a handle, the handle; on the
way to the goal, the goal. So the nearest step is looked up in several relative frames, each of
which suggests movements, and a policy learns from many tasks which suggestion to trust.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from llmdpd_torchrl.prompts.frames import Fields, FrameSpec, RelativeFrame
from llmdpd_torchrl.prompts.tables import TrajectoryPromptBank
from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.settings import (
    Count,
    Many,
    NonEmpty,
    NonNegative,
    Size,
    checked_dataclass,
)

_GAIN = 20.0  # of the corrections, per metre
_MOVING = 0.005  # metres within the first lookahead above which an object counts as moving
_STRIDE = 0.01  # metres: the unit of movements within one step
_GRIPPED = 0.3  # difference of values up to which a gripper is as the prompt's
_CLEAR = 0.025  # change of a value in a step below which it merely gives


@checked_dataclass("network.retrieval", frozen=True)
class RetrievalSpec:
    """What is looked up in a demonstration, once per family of environments.

    Args:
        frames: the relative frames; the first is retrieve-and-play's.
        objects: fields of positions whose movement in the prompt is described.
        previous: by how many columns an entry of the last step lies behind that of this step; 0 if
            observations hold no last step.
        lookaheads: numbers of steps of the cut prompt, at least 1; with a ``grip`` fewer, where
            later values are still far from the present ones: while a gripper closes, nothing is
            suggested that it does when closed.
        grip: gain by which the entries of an action behind the movement, the gripper's, bring the
            values to those of the prompt; positive where a positive action makes a value smaller.
            Actions and values must then have as many of them. 0: the values are left alone.

    Raises:
        ConfigError: if a number is out of range, only some frames have an effector, or none has one
            and objects or last steps are described.

    Examples:
        >>> len(METAWORLD_RETRIEVAL.frames)
        4
    """

    frames: NonEmpty[FrameSpec]
    objects: Many[str] = ()
    previous: Count = 0
    lookaheads: NonEmpty[Size] = (3,)
    grip: NonNegative = 0.0

    def __post_init__(self) -> None:
        if len({frame.effector for frame in self.frames}) > 1:
            raise ConfigError("network.retrieval.frames must have one effector, or all none")
        if self.frames[0].effector is None and (self.objects or self.previous):
            raise ConfigError(
                "network.retrieval has objects or previous, and frames without effector: what "
                "moves is described beside an effector, give both or neither"
            )

    def layout(self, fields: Fields, action_dim: int) -> ContextLayout:
        """The columns of the context that :class:`PromptRetrieval` makes.

        Raises:
            ConfigError: if the observation lacks a field or a last step, or actions have fewer
                entries than positions, or, with a grip, not one more for each value.
        """
        self._check(fields)
        pieces: list[tuple[str, str, int]] = []  # name of the part, kind and width
        moves = 0
        for number, frame in enumerate(self.frames):
            relations, values = frame.sizes(fields)
            anchors = len(frame.anchors)
            steps = relations // anchors if anchors else 0
            moves = steps or action_dim
            vector, value, one = ("vector", steps), ("other", values), ("other", 1)
            action = [("vector", moves), ("other", action_dim - moves)]
            things = [("vector", steps)] * (len(self.objects) if anchors else 0)
            described = [*action, *[vector] * anchors, value, *[vector] * bool(anchors)]
            described += [value, one, one, one]
            for _ in self.lookaheads:
                described += [vector] * bool(anchors) + things + [*action, value, value]
                described += [one] * (1 + len(things)) * bool(anchors)
            pieces += [(f"frame_{number}", *piece) for piece in described]
        values = self.frames[0].sizes(fields)[1]
        pieces += [("state", "other", values)]
        if moves > action_dim:
            raise ConfigError(
                f"positions have {moves} entries and actions {action_dim}: actions must start with "
                "the effector's movement"
            )
        if self.grip and values != action_dim - moves:
            raise ConfigError(
                f"network.retrieval.grip is {self.grip}: a frame has {values} values and an action "
                f"{action_dim - moves} entries behind the movement, which must be as many; use 0"
            )
        if self.previous:
            moving = 1 + len(self.objects)
            pieces += [("state", "vector", moves)] * moving + [("state", "other", moving)]
        per_frame = 1 + len(self.lookaheads) * (self.frames[0].effector is not None)
        suggestions = per_frame * len(self.frames)
        pieces += [("usable", "other", suggestions)]
        pieces += [("suggestions", "vector", moves)] * suggestions
        pieces += [("grips", "other", action_dim - moves)] * suggestions
        stops = list(itertools.accumulate(width for *_, width in pieces))
        parts: dict[str, slice] = {}
        vectors: list[slice] = []
        for (name, kind, width), stop in zip(pieces, stops, strict=True):
            parts[name] = slice(parts[name].start if name in parts else stop - width, stop)
            if kind == "vector" and self.frames[0].effector is not None:
                vectors.append(slice(stop - width, stop))
        return ContextLayout(stops[-1], parts, vectors, moves, action_dim - moves, suggestions)

    def _check(self, fields: Fields) -> None:
        effector = self.frames[0].effector
        if effector is None:
            return
        if self.objects:  # positions like the effector's
            FrameSpec(effector, self.objects, weights=(1.0,) * len(self.objects)).sizes(fields)
        if effector in fields:
            last = max(fields[name][1] for name in (effector, *self.objects))
            width = max(end for _, end in fields.values())
            if last + self.previous > width:
                raise ConfigError(
                    f"network.retrieval.previous is {self.previous}: entry {last - 1} has none "
                    f"that far behind it in an observation of {width}, use 0 if there is no last "
                    "step in it"
                )


#: Meta-World's: from the object, from the goal, from the object alone, and from the second object,
#: which is the world where there is none: its position is zero then.
METAWORLD_RETRIEVAL = RetrievalSpec(
    frames=tuple(
        FrameSpec(
            effector="hand_position",
            anchors=anchors,
            values=("gripper_opening",),
            weights=(*(10.0, 5.0)[: len(anchors)], 1.0),
        )
        for anchors in (
            ("object_1_position", "goal_position"),
            ("goal_position", "object_1_position"),
            ("object_1_position",),
            ("object_2_position", "goal_position"),
        )
    ),
    objects=("object_1_position", "object_2_position"),
    previous=18,
    lookaheads=(3, 8),
    grip=5.0,
)


@dataclass(frozen=True)
class ContextLayout:
    """Where things are in a context.

    Attributes:
        width: C.
        parts: columns of ``frame_N``, of the present ``state``, of ``usable``, a flag a suggestion,
            of the ``suggestions``, one after the other, and of their ``grips``.
        vectors: columns of each vector, which turn with the scene.
        moves: entries of a suggestion, the first of an action.
        grips: the other entries of an action.
        suggestions: their number.
    """

    width: int
    parts: dict[str, slice]
    vectors: list[slice]
    moves: int
    grips: int
    suggestions: int


class PromptRetrieval(nn.Module):
    """Retrieve the prompt's nearest step in each of several relative frames, and describe it.

    With r the relative frame (see :class:`~llmdpd_torchrl.prompts.FrameSpec`) now, r_i that of the
    nearest step i and r_j that of a step j = i + ``lookahead``, the context holds for each frame

    - the action of step i, zero if the prompt's actions are not usable;
    - the error r - r_i, and the correction: the output of a proportional controller that brings the
      effector back onto the prompt's path, as it lies relative to the first anchor or, while the
      prompt moves that object (by more than 5 mm within the first lookahead), to the next;
    - the values at i, how far through the prompt i is, how many steps are left, and its distance;
    - for each lookahead: the prompt's motion r_j - r_i, that of each object, the action of step j,
      the values there and their change, and the lengths of the motions;

    then the present values, the present motion of effector and objects, and the **suggestions**: of
    each frame the action of step i plus the correction, and for each lookahead the movement
    towards the prompt's position relative to the first anchor at j. Each has a **grip**, the other
    entries of the action: those of step i, or what the last clear change of the values before j
    tells of them, and a correction that brings the values to the prompt's. The first suggestion of
    the first frame alone is the baseline retrieve-and-play. ``usable`` says which suggestions mean
    something: without usable actions, or without a prompt, the first of each frame do not.

    Positions are in units of ``FrameSpec.unit``, present motions in centimetres a step, suggestions
    are actions. Nothing of it is trained, so that transforms compute it and no gradient is lost. Of
    several demonstrations, concatenated in one prompt, the nearest step of all is read. The prompts
    are buffers, which follow ``.to()`` and are not part of a ``state_dict``.

    Args:
        bank: the prompts.
        spec: what is looked up.
        fields: half-open index ranges by name, as in a manifest's ``observation_layout``.

    Attributes:
        layout: the columns of the context.
        features: C.

    Raises:
        ConfigError: if the observation lacks a field of a frame, or actions have fewer entries than
            positions.
        DataError: when called, if the observation has another width than ``fields`` say.

    Examples:
        >>> from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT
        >>> bank = TrajectoryPromptBank.empty(length=5, observation_dim=39, action_dim=4)
        >>> fields = METAWORLD_OBSERVATION_LAYOUT["fields"]
        >>> retrieval = PromptRetrieval(bank, METAWORLD_RETRIEVAL, fields)
        >>> context = retrieval(torch.rand(3, 39), torch.tensor([0, 0, -1]))
        >>> context.shape == (3, retrieval.features)
        True
    """

    def __init__(self, bank: TrajectoryPromptBank, spec: RetrievalSpec, fields: Fields) -> None:
        super().__init__()
        prompts = bank.prompts
        observations, mask = prompts["observation"], prompts["mask"]
        self.spec = spec
        self.layout = spec.layout(fields, prompts["action"].shape[-1])
        self.features = self.layout.width
        usable = prompts.get("has_action", mask)
        actions = torch.where(usable.unsqueeze(-1), prompts["action"], 0.0)
        things = torch.tensor([i for name in spec.objects for i in range(*fields[name])]).long()
        self._things = nn.Buffer(things, persistent=False)
        effector = spec.frames[0].effector
        moving = [] if effector is None else [*range(*fields[effector]), *things.tolist()]
        self._moving = nn.Buffer(torch.tensor(moving).long(), persistent=False)
        frames = [RelativeFrame(frame, fields, observations[mask]) for frame in spec.frames]
        self._lookups = nn.ModuleList(_Lookup(frame, observations, mask) for frame in frames)
        last = (mask.sum(-1, keepdim=True) - 1).expand(mask.shape)
        # Of prompts that hold several demonstrations, each step has its own range.
        starts = prompts.get("start", torch.zeros_like(last))
        self._starts = nn.Buffer(starts, persistent=False)
        self._ends = nn.Buffer(prompts.get("end", last), persistent=False)
        # What is read of a step besides its relative frames, side by side: one look-up, not three.
        held = actions.new_zeros(*mask.shape, self.layout.grips)
        if spec.grip:
            held = _held(frames[0].values(frames[0](observations)), self._starts, self._ends)
        step = torch.cat([actions, observations[..., things], held, usable.unsqueeze(-1)], dim=-1)
        self._steps = nn.Buffer(step.to(frames[0].weights.dtype), persistent=False)

    def forward(self, observation: Tensor, row: Tensor) -> Tensor:
        """Contexts of observations ``[*, O]`` under the prompts in rows ``[*]`` of the bank.

        Returns:
            ``[*, C]``; zeros where the row is -1, which stands for no prompt.
        """
        shape = row.shape
        observation, row = observation.reshape(-1, observation.shape[-1]), row.reshape(-1)
        absent, row = (row < 0).unsqueeze(-1), row.clamp_min(0)
        parts: list[Tensor] = []
        values: list[Tensor] = []
        usable: list[Tensor] = []
        suggestions: list[Tensor] = []
        grips: list[Tensor] = []
        for lookup in cast("Iterable[_Lookup]", self._lookups):
            now = lookup.frame(observation)
            values.append(lookup.frame.values(now))
            described, suggested, gripped, has_action = self._describe(lookup, now, row)
            parts += described
            suggestions += suggested
            grips += gripped
            usable += [has_action, *[torch.ones_like(has_action)] * (len(suggested) - 1)]
        parts.append(values[0])
        if self.spec.previous:
            before = observation[:, self._moving + self.spec.previous]
            moved = (observation[:, self._moving] - before).to(parts[0].dtype) / _STRIDE
            moved = moved.clamp(-5.0, 5.0)
            parts += [moved, _lengths(moved, self.layout.moves)]
        context = torch.cat([*parts, *usable, *suggestions, *grips], dim=-1)
        return context.masked_fill(absent, 0.0).reshape(*shape, -1)

    def _describe(
        self, lookup: _Lookup, now: Tensor, row: Tensor
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
        """What a frame says, its suggestions, their grips, and if actions are usable [B, 1]."""
        frame, moves = lookup.frame, self.layout.moves
        near, distance = lookup(now, row)
        start, end = self._starts[row, near], self._ends[row, near]
        there, step = lookup.frames[row, near], self._steps[row, near]
        action, things, _, has_action = self._split(step)
        error = now - there
        progress = ((near - start) / (end - start + 1)).to(now.dtype)
        left = (end - near).clamp(max=20).to(now.dtype) / 20
        unit = frame.scale
        ahead: list[Tensor] = []
        towards: list[Tensor] = []
        grips = [self._grip(action[:, moves:], frame.values(error)) * has_action]
        correction = error[:, :0]
        reach = self._reach(lookup, now, row, near, end)
        for number, lookahead in enumerate(self.spec.lookaheads):
            later = torch.minimum(near + reach.clamp(max=lookahead), end)
            frame_then, step_then = lookup.frames[row, later], self._steps[row, later]
            action_then, things_then, held, _ = self._split(step_then)
            motion = frame_then - there
            if frame.anchors:
                if not number:
                    correction = self._correction(frame, error, motion)
                hand = motion[:, :moves] * unit[:moves]
                objects = (things_then - things) * unit[0]
                ahead += [hand, objects]
                # Of full speed, in the direction of the position, unless that is near.
                way = _GAIN * (frame_then - now)[:, :moves]
                towards.append(way / way.norm(dim=-1, keepdim=True).clamp_min(1.0))
                grips.append(self._grip(held, frame.values(now - frame_then)))
            ahead += [action_then, frame.values(frame_then), frame.values(motion)]
            if frame.anchors:
                ahead += [_lengths(hand, moves), _lengths(objects, moves)]
        described = [action, (unit * error).clamp(-5.0, 5.0)]
        suggestion = action[:, :moves]
        if frame.anchors:
            suggestion = (suggestion + correction).clamp(-1.0, 1.0) * has_action
            described.append(correction.clamp(-1.0, 1.0))
        described += [frame.values(there), progress.unsqueeze(-1), left.unsqueeze(-1)]
        described += [distance.unsqueeze(-1), *ahead]
        return described, [suggestion, *towards], grips, has_action

    def _split(self, step: Tensor) -> tuple[Tensor, ...]:
        """Action, objects, what is held, and whether the action is usable."""
        things, grips = len(self._things), self.layout.grips
        return step.split([step.shape[-1] - things - grips - 1, things, grips, 1], dim=-1)

    def _reach(
        self, lookup: _Lookup, now: Tensor, row: Tensor, near: Tensor, end: Tensor
    ) -> Tensor:
        """How many steps may be looked ahead [B]: while a gripper closes, not to where it lifts."""
        most = max(self.spec.lookaheads)
        if not self.spec.grip:
            return torch.full_like(near, most)
        ahead = torch.arange(1, most + 1, device=near.device)
        steps = torch.minimum(near.unsqueeze(-1) + ahead, end.unsqueeze(-1))
        values = lookup.frame.values(lookup.frames[row.unsqueeze(-1), steps])
        missing = (values - lookup.frame.values(now).unsqueeze(1)).abs().amax(-1)
        return (missing < _GRIPPED).long().cumprod(-1).sum(-1).clamp_min(1)

    def _grip(self, action: Tensor, error: Tensor) -> Tensor:
        """The entries [B, A - moves] of an action, corrected by the error [B, V] of the values."""
        return (action + self.spec.grip * error).clamp(-1.0, 1.0) if self.spec.grip else action

    def _correction(self, frame: RelativeFrame, error: Tensor, motion: Tensor) -> Tensor:
        size = frame.relation_size
        first, *others = error[:, :size].split(frame.position_dim, dim=-1)
        moves = motion[:, :size].split(frame.position_dim, dim=-1)[1:]
        # An object that moves with the effector is no landmark: take the next anchor.
        for other, move in zip(others, moves, strict=True):
            first = first + torch.where(move.norm(dim=-1, keepdim=True) > _MOVING, other, 0.0)
        return -_GAIN * first


class _Lookup(nn.Module):
    """The nearest steps of prompts [P, L] in one relative frame."""

    def __init__(self, frame: RelativeFrame, observations: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.frame = frame.to(observations.device)
        frames = self.frame(observations)
        # |w (a - b)|² is expanded, and what depends on the prompt alone is computed here: a query
        # is one matrix-vector product. Far from the origin the expansion would lose its digits.
        centre = frames[mask].mean(0)
        scaled = (frames - centre) * self.frame.weights
        squared = scaled.square().sum(-1).masked_fill(~mask, torch.inf)
        self.frames = nn.Buffer(frames, persistent=False)
        self._centre = nn.Buffer(centre, persistent=False)
        self._scaled = nn.Buffer(scaled, persistent=False)
        self._squared = nn.Buffer(squared, persistent=False)

    def forward(self, now: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest step [B] to relative frames ``now`` [B, F], and its distance, at most 3."""
        scaled = (now - self._centre) * self.frame.weights
        products = torch.einsum("blf,bf->bl", self._scaled[row], scaled)
        near = (self._squared[row] - 2 * products).argmin(-1)
        distance = (scaled - self._scaled[row, near]).norm(dim=-1)
        return near, distance.clamp(max=3.0)


def _held(values: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Actions [P, L, V] by which values [P, L, V] stay as their last clear change left them.

    An action of 1 makes a value smaller. Before a change, values are held half as firmly where they
    are, as if they had grown: a gripper begins open.
    """
    steps = torch.arange(values.shape[1], device=values.device).unsqueeze(-1)
    start, end = start.unsqueeze(-1), end.unsqueeze(-1)
    changed = values.roll(-1, dims=1) - values
    is_clear = (changed.abs() > _CLEAR) & (steps < end)
    last = torch.where(is_clear, steps, -1).cummax(1).values
    return torch.where(last < start, -0.5, -changed.sign().gather(1, last.clamp_min(0)))


def _lengths(vectors: Tensor, size: int) -> Tensor:
    """The lengths [B, n] of the vectors that stand side by side in [B, n · size]."""
    return vectors.unflatten(-1, (vectors.shape[-1] // size, size)).norm(dim=-1)
