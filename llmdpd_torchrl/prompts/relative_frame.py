"""Frames: what of an observation means the same in every task of a family of environments."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from llmdpd_torchrl.utils.errors import ConfigError

__all__ = ["METAWORLD_FRAME", "Frame", "FrameSpec"]


@dataclass(frozen=True)
class FrameSpec:
    """Which fields of an observation are effector, objects and goal: declared once per family.

    The frame is made of the positions of the effector from the first anchor, of each anchor from
    the next one, and of ``values`` as they are. Where a task's things stand is not in it, only how
    they stand to one another, so that a step of one episode can be recognised in another.

    Args:
        effector: the field of the position that actions move; ``None`` where there is none, as in
            locomotion.
        anchors: fields of positions it is seen from, the nearest thing first, the goal last.
        values: other fields that are compared.
        weights: how much a difference counts in distances, a number per relation and value, in this
            order; per metre for positions. ``None`` standardises a value over the prompts: the
            plain, normalised state.
        unit: what difference of positions counts as one in the context, in metres.

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
    anchors: Sequence[str] = ()
    values: Sequence[str] = ()
    weights: Sequence[float | None] = ()
    unit: float = 0.1

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
        positions = self.weights[: len(self.anchors)]
        if None in positions:
            raise ConfigError("only values may be weighed by their spread: give positions a number")
        if self.unit <= 0:
            raise ConfigError(f"the frame's unit is {self.unit}: it must be above 0")

    @property
    def relations(self) -> tuple[tuple[str, str], ...]:
        """Pairs of fields whose difference is in the frame."""
        if self.effector is None:
            return ()
        chain = (self.effector, *self.anchors)
        return tuple(itertools.pairwise(chain))

    def sizes(self, fields: Mapping[str, Sequence[int]]) -> tuple[int, int]:
        """How many entries of the frame are differences of positions, and how many values.

        Args:
            fields: half-open index ranges by name, as in a manifest's ``observation_layout``.

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


#: Hand, object and goal of Meta-World; the hand's place by the object counts most.
METAWORLD_FRAME = FrameSpec(
    effector="hand_position",
    anchors=("object_1_position", "goal_position"),
    values=("gripper_opening",),
    weights=(10.0, 5.0, 1.0),
)


class Frame:
    """A :class:`FrameSpec` on an observation layout: from observations to frames.

    Args:
        spec: what is compared.
        fields: index ranges of the observation's fields.
        observations: ``[N, O]``, of the prompts; read where values are weighed by their spread.

    Attributes:
        size: F.
        weights: ``[F]``, of differences in distances.
        scale: ``[F]``, of differences in contexts.
        steps: how many entries a position has.

    Raises:
        ConfigError: as :meth:`FrameSpec.sizes` does, or without ``observations`` that are needed.

    Examples:
        >>> from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT
        >>> frame = Frame(METAWORLD_FRAME, METAWORLD_OBSERVATION_LAYOUT["fields"])
        >>> frame(torch.zeros(2, 39)).shape, frame.size
        (torch.Size([2, 7]), 7)
    """

    def __init__(
        self,
        spec: FrameSpec,
        fields: Mapping[str, Sequence[int]],
        observations: torch.Tensor | None = None,
    ) -> None:
        self.spec = spec
        relations, values = spec.sizes(fields)
        self.size = relations + values
        self.relation_size = relations
        self.anchors = len(spec.anchors)
        self.steps = relations // self.anchors if self.anchors else 0
        self._pairs = [(slice(*fields[a]), slice(*fields[b])) for a, b in spec.relations]
        self._values = [slice(*fields[name]) for name in spec.values]
        position, plain = float(1 / spec.unit), []
        weights = [
            torch.full((self.steps,), float(weight or 0.0))
            for weight in spec.weights[: self.anchors]
        ]
        scales = [torch.full((relations,), position)]
        for weight, part in zip(spec.weights[self.anchors :], self._values, strict=True):
            width = part.stop - part.start
            if weight is None:
                plain.append(_standardiser(observations, part))
            else:
                plain.append((torch.zeros(width), torch.ones(width)))
            weights.append(torch.full((width,), 1.0 if weight is None else weight))
            scales.append(torch.full((width,), 1.0 if weight is None else position))
        self.weights = torch.cat(weights).float()
        self.scale = torch.cat(scales)
        self._plain = plain

    def __call__(self, observation: torch.Tensor) -> torch.Tensor:
        """The frame of observations ``[*, O]``: ``[*, F]``."""
        parts = [observation[..., a] - observation[..., b] for a, b in self._pairs]
        for part, (mean, factor) in zip(self._values, self._plain, strict=True):
            parts.append((observation[..., part] - mean) * factor)
        return torch.cat(parts, dim=-1)

    def from_anchors(self, frame: torch.Tensor) -> list[torch.Tensor]:
        """The effector's position from each anchor, ``[*, steps]``, of frames ``[*, F]``."""
        parts = frame[..., : self.relation_size].split(self.steps, dim=-1) if self.anchors else ()
        # (effector - first) + (first - second) = effector - second
        positions: list[torch.Tensor] = []
        for part in parts:
            positions.append(positions[-1] + part if positions else part)
        return positions

    def values(self, frame: torch.Tensor) -> torch.Tensor:
        """All but the differences of positions, of frames ``[*, F]``."""
        return frame[..., self.relation_size :]


def _standardiser(
    observations: torch.Tensor | None, part: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and one over the spread of some entries."""
    if observations is None:
        raise ConfigError("a frame with values weighed by their spread needs observations")
    entries = observations[..., part].reshape(-1, part.stop - part.start)
    mean, spread = entries.mean(0), entries.std(0)
    # What never changes tells nothing, and the rounding of its mean is no spread.
    changes = spread > 1e-5 * entries.abs().amax(0)
    return mean, torch.where(changes, 1.0 / spread, 0.0)
