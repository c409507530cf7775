"""Retrieval, the idea of this project: the prompt's step that is nearest to the present.

A pooled embedding of a trajectory says which task is meant. It cannot say how a task that was never
trained on is done. The step of the demonstration at which the scene was most like the present one
can: its action, where the hand was relative to object and goal, and where it was a few steps later.

What counts as most alike depends on the task, and on the moment: near a handle, the handle; on the
way to the goal, the goal. So the nearest step is looked up in several relative frames, each of
which suggests movements, and a policy learns from many tasks which suggestion to trust.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from llmdpd_torchrl.prompts.demonstrations import carried_distances, held_grips
from llmdpd_torchrl.prompts.frames import Fields, RelativeFrame
from llmdpd_torchrl.prompts.retrieval_spec import RetrievalSpec
from llmdpd_torchrl.prompts.tables import TrajectoryPromptBank

_GAIN = 20.0  # of the corrections, per metre
_MOVING = 0.005  # metres within the first lookahead above which an object counts as moving
_STRIDE = 0.01  # metres: the unit of movements within one step
_GRIPPED = 0.3  # difference of values up to which a gripper is as the prompt's


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
    entries of the action: what the values tell of them at i, which is steadier than what a
    demonstrator did (see :func:`~llmdpd_torchrl.prompts.demonstrations.held_grips`), and a
    correction towards the values at i. The first suggestion of the first frame, with the action's
    own grip, is the baseline retrieve-and-play. ``usable`` says which suggestions mean something:
    without usable actions, or without a prompt, the first of each frame do not.

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
        >>> from llmdpd_torchrl.prompts import METAWORLD_RETRIEVAL
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
        frames = [RelativeFrame(frame, fields) for frame in spec.frames]
        lookups = [_Lookup(frame, observations, mask) for frame in frames]
        self._lookups = nn.ModuleList(lookups)
        last = (mask.sum(-1, keepdim=True) - 1).expand(mask.shape)
        # Of prompts that hold several demonstrations, each step has its own range.
        starts = prompts.get("start", torch.zeros_like(last))
        ends = prompts.get("end", last)
        ranges = torch.stack([starts, ends], dim=-1).flatten(0, 1)
        self._ranges = nn.Buffer(ranges, persistent=False)
        self._length = mask.shape[1]
        lookaheads = torch.tensor(spec.lookaheads, device=mask.device)
        self._lookaheads = nn.Buffer(lookaheads, persistent=False)
        most = torch.arange(1, max(spec.lookaheads) + 1, device=mask.device)
        self._ahead = nn.Buffer(most, persistent=False)
        # What is read of a step besides its relative frames, side by side: one look-up, not three.
        held = actions.new_zeros(*mask.shape, self.layout.grips)
        if spec.grip:
            # Padding is as the last step, or a gripper would seem to move there.
            steps = torch.arange(mask.shape[1], device=mask.device).minimum(ends)
            padded = observations.gather(1, steps.unsqueeze(-1).expand_as(observations))
            # No object: nothing that is carried.
            positions = padded[..., self._moving].split(frames[0].position_dim, dim=-1)
            carried = carried_distances(*positions[:2] if len(positions) > 1 else 2 * positions)
            rows = torch.arange(len(mask), device=mask.device).unsqueeze(-1)
            values = frames[0].values(lookups[0].standardise(frames[0](padded), rows)).unbind(-1)
            grips = [held_grips(value, carried, starts) for value in values]
            held = torch.stack(grips, -1)
        step = torch.cat([actions, observations[..., things], held, usable.unsqueeze(-1)], dim=-1)
        step = step.flatten(0, 1).to(frames[0].weights.dtype)
        self._steps = nn.Buffer(step, persistent=False)

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
            now = lookup.standardise(lookup.frame(observation), row)
            values.append(lookup.frame.values(now))
            described, suggested, grip, has_action = self._describe(lookup, now, row)
            parts += described
            suggestions += suggested
            grips += [grip] * len(suggested)
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
    ) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        """What a frame says, its suggestions, their grip, and if actions are usable [B, 1]."""
        frame, moves, unit = lookup.frame, self.layout.moves, lookup.frame.scale
        near, first = lookup(now, row), row * self._length
        place = first + near  # among the steps of all prompts, which lie one after the other
        start, end = self._ranges[place].unbind(-1)
        there, step = lookup.frames[place], self._steps[place]
        action, things, held, has_action = self._split(step)
        error = now - there
        distance = vector_norm(error * frame.weights, dim=-1).clamp(max=3.0)
        progress = ((near - start) / (end - start + 1)).to(now.dtype)
        left = (end - near).clamp(max=20).to(now.dtype) / 20
        grip = action[:, moves:]
        if self.spec.grip:
            grip = (held + self.spec.grip * frame.values(error)).clamp(-1.0, 1.0)
        reach = self._reach(lookup, now, first, near, end).unsqueeze(-1)
        later = torch.minimum(reach, self._lookaheads) + near.unsqueeze(-1)
        place = first.unsqueeze(-1) + torch.minimum(later, end.unsqueeze(-1))
        frame_then = lookup.frames[place]
        action_then, things_then, _, _ = self._split(self._steps[place])
        motion = frame_then - there.unsqueeze(1)
        ahead = [action_then, frame.values(frame_then), frame.values(motion)]
        described = [action, (unit * error).clamp(-5.0, 5.0)]
        suggestion, towards = action[:, :moves], []
        if frame.anchors:
            hand = motion[..., :moves] * unit[:moves]
            objects = (things_then - things.unsqueeze(1)) * unit[0]
            ahead = [hand, objects, *ahead, _lengths(hand, moves), _lengths(objects, moves)]
            # Of full speed, in the direction of the position, unless that is near.
            way = _GAIN * (frame_then - now.unsqueeze(1))[..., :moves]
            speed = vector_norm(way, dim=-1, keepdim=True)
            towards = list((way / speed.clamp_min(1.0)).unbind(1))
            correction = self._correction(frame, error, motion[:, 0])
            suggestion = (suggestion + correction).clamp(-1.0, 1.0) * has_action
            described.append(correction.clamp(-1.0, 1.0))
        described += [frame.values(there), progress.unsqueeze(-1), left.unsqueeze(-1)]
        described += [distance.unsqueeze(-1), torch.cat(ahead, dim=-1).flatten(1)]
        return described, [suggestion, *towards], grip, has_action

    def _split(self, step: Tensor) -> tuple[Tensor, ...]:
        """Action, objects, what is held, and whether the action is usable."""
        things, grips = len(self._things), self.layout.grips
        return step.split([step.shape[-1] - things - grips - 1, things, grips, 1], dim=-1)

    def _reach(
        self, lookup: _Lookup, now: Tensor, first: Tensor, near: Tensor, end: Tensor
    ) -> Tensor:
        """How many steps may be looked ahead [B]: while a gripper closes, not to where it lifts."""
        if not self.spec.grip:
            return self._ahead[-1].expand_as(near)
        steps = torch.minimum(near.unsqueeze(-1) + self._ahead, end.unsqueeze(-1))
        values = lookup.frame.values(lookup.frames)[first.unsqueeze(-1) + steps]
        missing = (values - lookup.frame.values(now).unsqueeze(1)).abs().amax(-1)
        return (missing < _GRIPPED).long().cumprod(-1).sum(-1).clamp_min(1)

    def _correction(self, frame: RelativeFrame, error: Tensor, motion: Tensor) -> Tensor:
        size = frame.relation_size
        first, *others = error[:, :size].split(frame.position_dim, dim=-1)
        moves = motion[:, :size].split(frame.position_dim, dim=-1)[1:]
        # An object that moves with the effector is no landmark: take the next anchor.
        for other, move in zip(others, moves, strict=True):
            first = first + torch.where(
                vector_norm(move, dim=-1, keepdim=True) > _MOVING, other, 0.0
            )
        return -_GAIN * first


class _Lookup(nn.Module):
    """The nearest steps of prompts [P, L] in one relative frame, standardised where it says so.

    Attributes:
        frame: the relative frame.
        frames: of all steps, one prompt after the other, ``[P * L, F]``.
    """

    _mean: Tensor | None
    _factor: Tensor | None

    def __init__(self, frame: RelativeFrame, observations: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.frame = frame.to(observations.device)
        frames = self.frame(observations)
        self.register_buffer("_mean", None, persistent=False)
        self.register_buffer("_factor", None, persistent=False)
        if self.frame.standardised.any():
            self._mean, self._factor = self._statistics(frames, mask)
            frames = self.standardise(frames, torch.arange(len(mask)).unsqueeze(-1))
        # |w (a - b)|² is expanded, and what depends on the prompt alone is computed here: a query
        # is one vector-matrix product. Far from the origin the expansion would lose its digits.
        centre = frames[mask].mean(0)
        scaled = (frames - centre) * self.frame.weights
        squared = scaled.square().sum(-1).masked_fill(~mask, torch.inf)
        self.frames = nn.Buffer(frames.flatten(0, 1), persistent=False)
        self._centre = nn.Buffer(centre, persistent=False)
        # [P, F, L] and [P, 1, L]: with the steps last, the product is several times as fast.
        self._scaled = nn.Buffer(scaled.mT.contiguous(), persistent=False)
        self._squared = nn.Buffer(squared.unsqueeze(1), persistent=False)

    def _statistics(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and one over the spread [P, F] of a prompt's steps, 0 for a constant entry.

        A prompt's own: what is retrieved does not depend on the other prompts that there are, and
        a state counts by where it lies in the demonstration, on a task of any kind.
        """
        is_step, count = mask.unsqueeze(-1), mask.sum(-1, keepdim=True)
        mean = torch.where(is_step, frames, 0.0).sum(1) / count.clamp_min(1)
        apart = torch.where(is_step, frames - mean.unsqueeze(1), 0.0)
        spread = (apart.square().sum(1) / (count - 1).clamp_min(1)).sqrt()
        largest = torch.where(is_step, frames, 0.0).abs().amax(1)
        # The rounding of a mean is no spread.
        factor = torch.where(spread > 1e-5 * largest, 1.0 / spread, 0.0)
        chosen = self.frame.standardised
        return torch.where(chosen, mean, 0.0), torch.where(chosen, factor, 1.0)

    def standardise(self, frames: Tensor, row: Tensor) -> Tensor:
        """Relative frames ``[*, F]`` by the statistics of the prompts in rows ``[*]``."""
        if self._mean is None:
            return frames
        assert self._factor is not None
        return (frames - self._mean[row]) * self._factor[row]

    def forward(self, now: Tensor, row: Tensor) -> Tensor:
        """The nearest step [B] to relative frames ``now`` [B, F]."""
        scaled = ((now - self._centre) * self.frame.weights).unsqueeze(1)
        squared, prompts = self._squared.index_select(0, row), self._scaled.index_select(0, row)
        return torch.baddbmm(squared, scaled, prompts, alpha=-2.0).argmin(-1).squeeze(-1)


def _lengths(vectors: Tensor, size: int) -> Tensor:
    """The lengths [*, n] of the vectors that stand side by side in [*, n · size]."""
    return vector_norm(vectors.unflatten(-1, (vectors.shape[-1] // size, size)), dim=-1)
