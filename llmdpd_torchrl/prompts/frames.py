"""Relative frames: observations as seen from objects and goal, in which steps are compared."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from llmdpd_torchrl.utils.errors import ConfigError, DataError
from llmdpd_torchrl.utils.settings import Many, Number, Positive, checked_dataclass

Fields = Mapping[str, Sequence[int]]  # half-open index ranges by name


@checked_dataclass("network.retrieval.frames", frozen=True)
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
            order; per metre for positions. ``None`` standardises a value over the steps of
            the prompt: the plain, normalised state.
        unit: difference of positions that counts as one in the context, in metres.

    Raises:
        ConfigError: if the numbers of fields and weights disagree, if there is nothing to compare,
            or if anchors are given without an effector, or the reverse.

    Examples:
        >>> FrameSpec(values=("state",), weights=(None,)).relations
        ()
        >>> FrameSpec("hand", ("cup", "goal"), weights=(10.0, 5.0)).relations
        (('hand', 'cup'), ('cup', 'goal'))
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


class RelativeFrame(nn.Module):
    """A :class:`FrameSpec` on an observation layout: ``[*, O]`` to relative frames ``[*, F]``.

    Values that are to be standardised are as they are here: by what, their user knows. The
    constants are buffers that follow ``.to()`` and are not part of a ``state_dict``.

    Attributes:
        relation_size: number of the first entries that are differences of positions.
        anchors: number of anchors.
        position_dim: number of entries of a position.
        weights: ``[F]``, weights of differences in distances.
        scale: ``[F]``, factors of differences in contexts.
        standardised: ``[F]`` bool, the entries without a weight of their own.
    """

    def __init__(self, spec: FrameSpec, fields: Fields) -> None:
        super().__init__()
        self.relation_size, _ = spec.sizes(fields)
        self.anchors = len(spec.anchors)
        self.position_dim = self.relation_size // self.anchors if self.anchors else 0
        self.width = max(end for _, end in fields.values())
        unit = 1 / spec.unit
        rows: list[tuple[float, float, bool]] = []  # of each entry: weight, scale, standardised
        for weight, name in zip(spec.weights, (*spec.anchors, *spec.values), strict=True):
            start, stop = fields[name]
            row = (1.0, 1.0, True) if weight is None else (weight, unit, False)
            rows += [row] * (stop - start)

        def constants(numbers: Iterable[float]) -> nn.Buffer:
            return nn.Buffer(torch.tensor(list(numbers), dtype=torch.float32), persistent=False)

        def columns(names: Iterable[str]) -> nn.Buffer:
            indices = [i for name in names for i in range(*fields[name])]
            return nn.Buffer(torch.tensor(indices, dtype=torch.int64), persistent=False)

        self.weights = constants(row[0] for row in rows)
        self.scale = constants(row[1] for row in rows)
        standardised = torch.tensor([row[2] for row in rows], dtype=torch.bool)
        self.standardised = nn.Buffer(standardised, persistent=False)
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
        return torch.cat([positions, observation[..., self._others]], dim=-1)

    def values(self, frame: Tensor) -> Tensor:
        """All but the differences of positions, of relative frames ``[*, F]``."""
        return frame[..., self.relation_size :]
