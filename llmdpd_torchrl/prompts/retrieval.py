"""What a trajectory prompt says about the present: its nearest step, read relative to the objects.

A pooled embedding of a trajectory says which task is meant. It can not say how a task that was
never trained on is done. The step of the demonstration at which things stood as they stand now can:
its action, where the hand was relative to object and goal then, and a few steps later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from llmdpd_torchrl.prompts.relative_frame import Frame, FrameSpec
from llmdpd_torchrl.prompts.trajectory import TrajectoryPromptBank
from llmdpd_torchrl.utils.errors import ConfigError

__all__ = ["PromptRetrieval"]


class PromptRetrieval:
    """Retrieve the nearest step of a prompt in a task-agnostic frame and describe it.

    With r the frame (:class:`~llmdpd_torchrl.prompts.relative_frame.FrameSpec`) now, r_i that of
    the nearest step i and r_j that of a step j = i + ``lookahead``, the context is made of

    - ``action``: of step i;
    - ``error``: r - r_i, in units of the frame;
    - ``play``: the action of step i, plus what a proportional controller does to bring the effector
      back onto the prompt's way: to where it was from the first anchor or, while the prompt moves
      that (``carried``), from the next. This is what retrieve and play does; ``way`` is the
      controller's part alone;
    - for each lookahead K, ``ahead_K``: the prompt's own motion r_j - r_i; the pull
      clip(gain · (r_j - r), -1, 1) of the effector towards where the prompt's was relative to the
      first anchor, a proportional controller's output; the values at j; from the second lookahead
      on, also the action of step j;
    - ``values``: now and at i; ``progress``: i / length; ``distance`` to step i;
    - ``known``, last: the pull towards where the prompt's effector was relative to the *further*
      anchors, the goal. Which of the pulls counts depends on the task, so that a policy can only
      know it on tasks it was trained on: these columns are for those.

    Nothing of it is trained, so that transforms compute it and no gradient is lost. Of a task's
    several demonstrations, concatenated by :meth:`~llmdpd_torchrl.prompts.trajectory.\
TrajectoryPromptBank.concatenated`, the nearest step of all is read.

    Args:
        bank: the prompts.
        spec: the frame of the family of environments.
        fields: index ranges of the observation's fields, as in a manifest's ``observation_layout``.
        lookaheads: steps of the cut prompt.
        gain: of the pulls, per metre.
        moving: what the prompt moves further than this within the first lookahead is carried, in
            metres.

    Attributes:
        frame: the frame.
        parts: the columns of each part of the context, by the names above.
        features: C.

    Raises:
        ConfigError: if a lookahead is below 1, or the observation lacks a field of the frame.

    Examples:
        >>> from tensordict import TensorDict
        >>> from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT
        >>> from llmdpd_torchrl.prompts.relative_frame import METAWORLD_FRAME
        >>> entries = {"observation": torch.rand(2, 5, 39), "action": torch.rand(2, 5, 4),
        ...            "mask": torch.ones(2, 5, dtype=torch.bool)}
        >>> prompts = TensorDict(entries, [2, 5])
        >>> bank = TrajectoryPromptBank(prompts, torch.tensor([0, 1]), torch.tensor([0, 1]))
        >>> fields = METAWORLD_OBSERVATION_LAYOUT["fields"]
        >>> retrieval = PromptRetrieval(bank, METAWORLD_FRAME, fields)
        >>> context = retrieval(torch.rand(3, 39), torch.tensor([0, 1, 1]))
        >>> context.shape == (3, retrieval.features)
        True
    """

    def __init__(
        self,
        bank: TrajectoryPromptBank,
        spec: FrameSpec,
        fields: Mapping[str, Sequence[int]],
        *,
        lookaheads: Sequence[int] = (3,),
        gain: float = 20.0,
        moving: float = 0.005,
    ) -> None:
        observations = bank.prompts["observation"]
        mask = bank.prompts["mask"]
        self.frame = Frame(spec, fields, observations[mask])
        self.lookaheads = tuple(lookaheads)
        self.gain = gain
        self.moving = moving
        self._frames = self.frame(observations)
        self._actions = bank.prompts["action"]
        # |w (a - b)|² is expanded, and what depends on the prompt alone is computed here: a query
        # is one matrix-vector product. Far from the origin the expansion would lose its digits.
        self._centre = self._frames[mask].mean(0)
        self._scaled = (self._frames - self._centre) * self.frame.weights
        self._squared = self._scaled.square().sum(-1).masked_fill(~mask, torch.inf)
        last = (mask.sum(-1, keepdim=True) - 1).expand(mask.shape)
        # Of prompts that hold several demonstrations, each step knows its own.
        self._starts = bank.prompts.get("start", torch.zeros_like(last))
        self._ends = bank.prompts.get("end", last)
        self.parts = self.layout(spec, fields, self._actions.shape[-1], self.lookaheads)
        self.features = max(part.stop for part in self.parts.values())

    @classmethod
    def layout(
        cls,
        spec: FrameSpec,
        fields: Mapping[str, Sequence[int]],
        action_dim: int,
        lookaheads: Sequence[int] = (3,),
    ) -> dict[str, slice]:
        """The columns of each part of the context, of a frame and an action of these sizes."""
        if not lookaheads or min(lookaheads) < 1:
            raise ConfigError(f"lookaheads are {list(lookaheads)}: give steps of at least 1")
        relations, values = spec.sizes(fields)
        anchors = len(spec.anchors)
        steps = relations // anchors if anchors else 0
        if steps > action_dim:
            raise ConfigError(
                f"positions have {steps} entries and actions {action_dim}: actions must start with "
                "the effector's movement"
            )
        sizes = {"action": action_dim, "error": relations + values}
        sizes |= {"play": action_dim, "way": steps, "carried": max(anchors - 1, 0)}
        for number, lookahead in enumerate(lookaheads):
            sizes[f"ahead_{lookahead}"] = (
                relations + values + steps + values + (action_dim if number else 0)
            )
        sizes |= {"values": 2 * values, "progress": 1, "distance": 1}
        sizes["known"] = steps * max(anchors - 1, 0)
        parts, start = {}, 0
        for name, size in sizes.items():
            parts[name] = slice(start, start + size)
            start += size
        return parts

    def equivariant_columns(self) -> tuple[list[slice], list[slice]]:
        """Columns that turn with the world, and those that grow with the actions' other entries.

        Returns:
            the context's vectors, each as wide as a position: turn them, and the movement in the
            action, and nothing else has changed; and the entries of the actions in it that are no
            movement, a gripper's say.
        """
        frame, parts, tail = self.frame, self.parts, self._actions.shape[-1] - self.frame.steps
        vectors: list[slice] = []
        tails: list[slice] = []

        def take(start: int, count: int) -> int:
            for _ in range(count if frame.steps else 0):
                vectors.append(slice(start, start + frame.steps))
                start += frame.steps
            return start

        def take_action(start: int) -> None:
            start = take(start, 1)
            tails.append(slice(start, start + tail))

        take_action(parts["action"].start)
        take(parts["error"].start, frame.anchors)
        take_action(parts["play"].start)
        take(parts["way"].start, 1)
        for number, lookahead in enumerate(self.lookaheads):
            start = parts[f"ahead_{lookahead}"].start
            take(start, frame.anchors)
            after_pull = take(start + frame.size, 1)
            if number:
                take_action(after_pull + frame.size - frame.relation_size)
        take(parts["known"].start, max(frame.anchors - 1, 0))
        return vectors, tails

    def nearest(self, observation: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """The step, ``[B]``, of the prompts in ``row`` [B] that is nearest to ``observation``."""
        now = (self.frame(observation) - self._centre) * self.frame.weights
        products = torch.einsum("blf,bf->bl", self._scaled[row], now)
        return (self._squared[row] - 2 * products).argmin(-1)

    def __call__(self, observation: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """Contexts of observations ``[*, O]`` under the prompts in rows ``[*]`` of the bank.

        Returns:
            ``[*, C]``; zeros where the row is -1, which stands for no prompt.
        """
        shape = row.shape
        observation, row = observation.reshape(-1, observation.shape[-1]), row.reshape(-1)
        absent, row = (row < 0).unsqueeze(-1), row.clamp_min(0)
        frame = self.frame
        now, near = frame(observation), self.nearest(observation, row)
        there = self._frames[row, near]
        error = now - there
        action = self._actions[row, near]
        start, end = self._starts[row, near], self._ends[row, near]
        parts = [action, frame.scale * error]
        known: list[torch.Tensor] = []
        for number, lookahead in enumerate(self.lookaheads):
            ahead = torch.minimum(near + lookahead, end)
            later = self._frames[row, ahead]
            pulls = self._pulls(later - now)
            if not number:
                parts += self._play(action, error, later - there)
            parts += [frame.scale * (later - there), *pulls[:1], frame.values(later)]
            if number:
                parts.append(self._actions[row, ahead])
            else:
                known = pulls[1:]
        progress = ((near - start) / (end - start + 1)).to(now.dtype)
        distance = (error * frame.weights).norm(dim=-1).clamp(max=3.0)
        parts += [frame.values(now), frame.values(there)]
        parts += [progress.unsqueeze(-1), distance.unsqueeze(-1), *known]
        return torch.cat(parts, dim=-1).masked_fill(absent, 0.0).reshape(*shape, -1)

    def _play(
        self, action: torch.Tensor, error: torch.Tensor, motion: torch.Tensor
    ) -> list[torch.Tensor]:
        """The columns of ``play``, ``way`` and ``carried``."""
        frame = self.frame
        if not frame.anchors:
            return [action]
        size = frame.relation_size
        first, *others = error[:, :size].split(frame.steps, dim=-1)
        moves = motion[:, :size].split(frame.steps, dim=-1)[1:]
        carried = [move.norm(dim=-1, keepdim=True) > self.moving for move in moves]
        # What is carried goes with the effector: where the thing is counts, from the next anchor.
        for other, moved in zip(others, carried, strict=True):
            first = first + torch.where(moved, other, 0.0)
        way = -self.gain * first
        play = torch.cat([action[:, : frame.steps] + way, action[:, frame.steps :]], dim=-1)
        way = way.clamp(-1.0, 1.0)
        return [play.clamp(-1.0, 1.0), way, *(moved.to(way.dtype) for moved in carried)]

    def _pulls(self, way: torch.Tensor) -> list[torch.Tensor]:
        """Of the effector, towards a place as seen from each anchor: a way in the frame off."""
        return [(self.gain * part).clamp(-1.0, 1.0) for part in self.frame.from_anchors(way)]
