"""Retrieval, the idea of this project: the prompt's step that is nearest to the present.

A pooled embedding of a trajectory says which task is meant. It cannot say how a task that was never
trained on is done. The step of the demonstration at which the scene was most like the present one
can: its action, where the hand was relative to object and goal, and where it was a few steps later.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from llmdpd_torchrl.prompts.tables import TrajectoryPromptBank
from llmdpd_torchrl.utils.errors import ConfigError, DataError
from llmdpd_torchrl.utils.settings import Many, Number, Positive, checked_dataclass

Fields = Mapping[str, Sequence[int]]  # half-open index ranges by name
_GAIN = 20.0  # of the corrections, per metre
_MOVING = 0.005  # metres within the first lookahead above which an object counts as moving


@checked_dataclass("network.frame", frozen=True)
class FrameSpec:
    """The fields of an observation that are effector, objects and goal, once per family.

    A relative frame holds the position of the effector relative to the first anchor, of each anchor
    relative to the next one, and ``values`` as they are. Absolute positions are not in it, so that
    a step of one episode can be recognised in another whose objects lie elsewhere.

    Args:
        effector: field of the position that actions move; ``None`` where there is none, as in
            locomotion.
        anchors: fields of positions that it is seen from, the nearest object first, the goal last.
        values: other fields that are compared.
        weights: weights of differences in distances, a number per relation and value, in this
            order; per metre for positions. ``None`` standardises a value over the prompts: the
            plain, normalised state.
        unit: difference of positions that counts as one in the context, in metres.

    Raises:
        ConfigError: if the numbers of fields and weights disagree, if there is nothing to compare,
            or if anchors are given without an effector, or the reverse.

    Examples:
        >>> FrameSpec(values=("state",), weights=(None,)).relations
        ()
        >>> METAWORLD_FRAME.relations
        (('hand_position', 'object_1_position'), ('object_1_position', 'goal_position'))
    """

    effector: str | None = None
    anchors: Many[str] = ()
    values: Many[str] = ()
    weights: Many[Number | None] = ()
    unit: Positive = 0.1

    def __post_init__(self) -> None:
        if (self.effector is None) != (not self.anchors):
            raise ConfigError("a frame needs both an effector and anchors, or neither")
        count = len(self.anchors) + len(self.values)
        if count == 0:
            raise ConfigError("a frame compares nothing: name an effector and anchors, or values")
        if len(self.weights) != count:
            raise ConfigError(
                f"a frame of {len(self.anchors)} relations and {len(self.values)} values has "
                f"{len(self.weights)} weights: give {count}"
            )
        if None in self.weights[: len(self.anchors)]:
            raise ConfigError("only values may be weighed by their spread: give positions a number")

    @property
    def relations(self) -> tuple[tuple[str, str], ...]:
        """Pairs of fields whose difference is in the relative frame."""
        chain = () if self.effector is None else (self.effector, *self.anchors)
        return tuple(itertools.pairwise(chain))

    def sizes(self, fields: Fields) -> tuple[int, int]:
        """How many entries are differences of positions, and how many are values.

        Raises:
            ConfigError: if the observation lacks a field, or two positions differ in width.
        """
        names = [name for pair in self.relations for name in pair] + list(self.values)
        for name in names:
            if name not in fields:
                raise ConfigError(
                    f"the frame reads {name!r}, which the observation lacks: it has "
                    f"{', '.join(fields)}"
                )
        width = {name: fields[name][1] - fields[name][0] for name in names}
        for first, second in self.relations:
            if width[first] != width[second]:
                raise ConfigError(
                    f"the frame subtracts {second!r} ({width[second]} wide) from {first!r} "
                    f"({width[first]} wide): positions must have one width"
                )
        relations = sum(width[first] for first, _ in self.relations)
        return relations, sum(width[name] for name in self.values)


#: Hand, object and goal of Meta-World; the hand's position relative to the object counts most.
METAWORLD_FRAME = FrameSpec(
    effector="hand_position",
    anchors=("object_1_position", "goal_position"),
    values=("gripper_opening",),
    weights=(10.0, 5.0, 1.0),
)


class RelativeFrame(nn.Module):
    """A :class:`FrameSpec` on an observation layout: ``[*, O]`` to relative frames ``[*, F]``.

    ``observations`` [N, O] of the prompts are read where values are standardised. The constants are
    buffers that follow ``.to()`` and are not part of a ``state_dict``.

    Attributes:
        relation_size: number of the first entries that are differences of positions.
        anchors: number of anchors.
        position_dim: number of entries of a position.
        weights: ``[F]``, weights of differences in distances.
        scale: ``[F]``, factors of differences in contexts.
    """

    def __init__(self, spec: FrameSpec, fields: Fields, observations: Tensor) -> None:
        super().__init__()
        self.relation_size, _ = spec.sizes(fields)
        self.anchors = len(spec.anchors)
        self.position_dim = self.relation_size // self.anchors if self.anchors else 0
        self.width = max(end for _, end in fields.values())
        unit = 1 / spec.unit
        rows: list[tuple[float, ...]] = []  # of each entry: weight, scale, mean and factor
        for weight, name in zip(spec.weights, (*spec.anchors, *spec.values), strict=True):
            part = slice(*fields[name])
            if weight is None:
                rows += [(1.0, 1.0, *both) for both in _standardiser(observations, part)]
            else:
                rows += [(weight, unit, 0.0, 1.0)] * (part.stop - part.start)

        def constants(numbers: Iterable[float]) -> nn.Buffer:
            return nn.Buffer(torch.tensor(list(numbers), dtype=torch.float32), persistent=False)

        def columns(names: Iterable[str]) -> nn.Buffer:
            indices = [i for name in names for i in range(*fields[name])]
            return nn.Buffer(torch.tensor(indices, dtype=torch.int64), persistent=False)

        self.weights = constants(row[0] for row in rows)
        self.scale = constants(row[1] for row in rows)
        self._mean = constants(row[2] for row in rows[self.relation_size :])
        self._factor = constants(row[3] for row in rows[self.relation_size :])
        self._first = columns(first for first, _ in spec.relations)
        self._second = columns(second for _, second in spec.relations)
        self._others = columns(spec.values)

    def forward(self, observation: Tensor) -> Tensor:
        """The relative frame of observations ``[*, O]``: ``[*, F]``."""
        if observation.shape[-1] != self.width:
            raise DataError(
                f"the observation has {observation.shape[-1]} entries, the relative frame reads "
                f"{self.width}: use the environment that the policy was trained for"
            )
        observation = observation.to(self.weights.dtype)
        positions = observation[..., self._first] - observation[..., self._second]
        values = (observation[..., self._others] - self._mean) * self._factor
        return torch.cat([positions, values], dim=-1)

    def from_anchors(self, frame: Tensor) -> list[Tensor]:
        """The effector's position relative to each anchor, ``[*, position_dim]``, of ``[*, F]``."""
        relations = frame[..., : self.relation_size]
        parts = relations.split(self.position_dim, dim=-1) if self.anchors else ()
        # (effector - first) + (first - second) = effector - second
        return list(itertools.accumulate(parts, torch.add))

    def values(self, frame: Tensor) -> Tensor:
        """All but the differences of positions, of relative frames ``[*, F]``."""
        return frame[..., self.relation_size :]


def _standardiser(observations: Tensor, part: slice) -> list[tuple[float, float]]:
    """Mean and one over the spread of each entry; the latter is 0 for a constant entry."""
    entries = observations[..., part].reshape(-1, part.stop - part.start)
    mean, spread = entries.mean(0), entries.std(0)
    changes = spread > 1e-5 * entries.abs().amax(0)  # the rounding of a mean is no spread
    factor = torch.where(changes, 1.0 / spread, 0.0)
    return list(zip(mean.tolist(), factor.tolist(), strict=True))


def _pieces(
    spec: FrameSpec, fields: Fields, action_dim: int, lookaheads: Sequence[int]
) -> list[tuple[str, str, slice]]:
    """The context's pieces in order: name of the part, kind (action, vector, other) and columns."""
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
    action, vector, value = ("action", action_dim), ("vector", steps), ("other", values)
    position = [vector] * anchors
    parts: dict[str, list[tuple[str, int]]] = {
        "action": [action],
        "error": [*position, value],
        "suggested_action": [action],
        "correction": [vector],
        "object_is_moving": [("other", max(anchors - 1, 0))],
    }
    for number, lookahead in enumerate(lookaheads):
        later = [action] if number else []
        parts[f"ahead_{lookahead}"] = [*position, value, vector, value, *later]
    parts |= {"values": [value, value], "progress": [("other", 1)], "distance": [("other", 1)]}
    parts["goal_correction"] = position[1:]
    pieces = [(name, *piece) for name, some in parts.items() for piece in some or [("other", 0)]]
    stops = itertools.accumulate(width for *_, width in pieces)
    return [
        (name, kind, slice(stop - width, stop))
        for (name, kind, width), stop in zip(pieces, stops, strict=True)
    ]


def context_layout(
    spec: FrameSpec, fields: Fields, action_dim: int, lookaheads: Sequence[int] = (3,)
) -> dict[str, slice]:
    """The columns of each part of the context that :class:`PromptRetrieval` makes."""
    parts: dict[str, slice] = {}
    for name, _, columns in _pieces(spec, fields, action_dim, lookaheads):
        parts[name] = slice(parts.get(name, columns).start, columns.stop)
    return parts


class PromptRetrieval(nn.Module):
    """Retrieve the prompt's step that is nearest in a relative frame, and describe it.

    With r the relative frame (see :class:`FrameSpec`) now, r_i that of the nearest step i and r_j
    that of a step j = i + ``lookahead``, the context holds

    - ``action``: the action of step i;
    - ``error``: r - r_i, in units of the relative frame;
    - ``suggested_action``: the action of step i plus the correction. This alone is the baseline
      retrieve-and-play;
    - ``correction``: the output of a proportional controller that brings the effector back onto the
      prompt's path: to its position relative to the first anchor or, while the prompt moves that
      object (``object_is_moving``: by more than 5 mm within the first lookahead), relative to the
      next;
    - for each lookahead K, ``ahead_K``: the prompt's own motion r_j - r_i; the proportional
      correction clip(20 · (r_j - r), -1, 1) of the effector towards the prompt's position
      relative to the first anchor at j; the values at j; from the second lookahead on, also the
      action of step j;
    - ``values``: now and at i; ``progress``: i / length; ``distance`` to step i;
    - ``goal_correction``, last: the proportional corrections towards the prompt's positions
      relative to the *further* anchors, the goal. Which correction counts depends on the task, so
      that a policy can only know it on tasks that it was trained on: the observation gate hides
      these columns on others.

    Nothing of it is trained, so that transforms compute it and no gradient is lost. Of several
    demonstrations, concatenated in one prompt, the nearest step of all is read. The prompts are
    buffers, which follow ``.to()`` and are not part of a ``state_dict``.

    Args:
        bank: the prompts.
        spec: the relative frame of the family of environments.
        fields: half-open index ranges by name, as in a manifest's ``observation_layout``.
        lookaheads: the K of each ``ahead_K``, counted in steps of the cut prompt.

    Attributes:
        frame: the relative frame.
        parts: the columns of each part of the context, by the names above.
        features: C.

    Raises:
        ConfigError: if a lookahead is below 1, the observation lacks a field of the relative frame,
            or actions have fewer entries than positions.
        DataError: when called, if the observation has another width than ``fields`` say.

    Examples:
        >>> from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT
        >>> bank = TrajectoryPromptBank.empty(length=5, observation_dim=39, action_dim=4)
        >>> fields = METAWORLD_OBSERVATION_LAYOUT["fields"]
        >>> retrieval = PromptRetrieval(bank, METAWORLD_FRAME, fields)
        >>> context = retrieval(torch.rand(3, 39), torch.tensor([0, 0, -1]))
        >>> context.shape == (3, retrieval.features)
        True
    """

    def __init__(
        self,
        bank: TrajectoryPromptBank,
        spec: FrameSpec,
        fields: Fields,
        *,
        lookaheads: Sequence[int] = (3,),
    ) -> None:
        super().__init__()
        observations, actions = bank.prompts["observation"], bank.prompts["action"]
        mask = bank.prompts["mask"]
        self.frame = RelativeFrame(spec, fields, observations[mask]).to(observations.device)
        self.lookaheads = tuple(lookaheads)
        self._pieces = _pieces(spec, fields, actions.shape[-1], self.lookaheads)
        self.parts = context_layout(spec, fields, actions.shape[-1], self.lookaheads)
        self.features = self._pieces[-1][-1].stop
        frames = self.frame(observations)
        # |w (a - b)|² is expanded, and what depends on the prompt alone is computed here: a query
        # is one matrix-vector product. Far from the origin the expansion would lose its digits.
        centre = frames[mask].mean(0)
        scaled = (frames - centre) * self.frame.weights
        last = (mask.sum(-1, keepdim=True) - 1).expand(mask.shape)
        squared = scaled.square().sum(-1).masked_fill(~mask, torch.inf)
        self._frames = nn.Buffer(frames, persistent=False)
        self._actions = nn.Buffer(actions.to(frames.dtype), persistent=False)
        self._centre = nn.Buffer(centre, persistent=False)
        self._scaled = nn.Buffer(scaled, persistent=False)
        self._squared = nn.Buffer(squared, persistent=False)
        # Of prompts that hold several demonstrations, each step has its own range.
        starts = bank.prompts.get("start", torch.zeros_like(last))
        self._starts = nn.Buffer(starts, persistent=False)
        self._ends = nn.Buffer(bank.prompts.get("end", last), persistent=False)

    def equivariant_columns(self) -> tuple[list[slice], list[slice]]:
        """Columns that rotate with the scene, and those that scale with the actions' other entries.

        Returns:
            the context's vectors, each as wide as a position, and the entries of the actions in it
            that are no movement, a gripper's for instance.
        """
        steps = self.frame.position_dim
        moving = [part for _, kind, part in self._pieces if kind != "other" and steps]
        actions = [part for _, kind, part in self._pieces if kind == "action"]
        vectors = [slice(part.start, part.start + steps) for part in moving]
        return vectors, [slice(part.start + steps, part.stop) for part in actions]

    def nearest(self, observation: Tensor, row: Tensor) -> Tensor:
        """The step, ``[B]``, of the prompts in ``row`` [B] that is nearest to ``observation``."""
        now = (self.frame(observation) - self._centre) * self.frame.weights
        products = torch.einsum("blf,bf->bl", self._scaled[row], now)
        return (self._squared[row] - 2 * products).argmin(-1)

    def forward(self, observation: Tensor, row: Tensor) -> Tensor:
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
        goal_corrections: list[Tensor] = []
        for number, lookahead in enumerate(self.lookaheads):
            ahead = torch.minimum(near + lookahead, end)
            later = self._frames[row, ahead]
            motion = later - there
            corrections = [
                (_GAIN * part).clamp(-1.0, 1.0) for part in frame.from_anchors(later - now)
            ]
            if not number:
                parts += self._suggest(action, error, motion)
                goal_corrections = corrections[1:]
            parts += [frame.scale * motion, *corrections[:1], frame.values(later)]
            if number:
                parts.append(self._actions[row, ahead])
        progress = ((near - start) / (end - start + 1)).to(now.dtype)
        distance = (error * frame.weights).norm(dim=-1).clamp(max=3.0)
        parts += [frame.values(now), frame.values(there)]
        parts += [progress.unsqueeze(-1), distance.unsqueeze(-1), *goal_corrections]
        return torch.cat(parts, dim=-1).masked_fill(absent, 0.0).reshape(*shape, -1)

    def _suggest(self, action: Tensor, error: Tensor, motion: Tensor) -> list[Tensor]:
        """The parts ``suggested_action``, ``correction`` and ``object_is_moving``."""
        frame = self.frame
        if not frame.anchors:
            return [action]
        size = frame.relation_size
        first, *others = error[:, :size].split(frame.position_dim, dim=-1)
        moves = motion[:, :size].split(frame.position_dim, dim=-1)[1:]
        is_moving = [move.norm(dim=-1, keepdim=True) > _MOVING for move in moves]
        # An object that moves with the effector is no landmark: take the next anchor.
        for other, moved in zip(others, is_moving, strict=True):
            first = first + torch.where(moved, other, 0.0)
        correction = -_GAIN * first
        movement, rest = action.tensor_split([frame.position_dim], dim=-1)
        suggested = torch.cat([movement + correction, rest], dim=-1).clamp(-1.0, 1.0)
        flags = [moved.to(correction.dtype) for moved in is_moving]
        return [suggested, correction.clamp(-1.0, 1.0), *flags]
