"""What is looked up in a demonstration, and where it stands in the context made of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from llmdpd_torchrl.prompts.frames import Fields, FrameSpec
from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.settings import (
    Count,
    Many,
    NonEmpty,
    NonNegative,
    Size,
    checked_dataclass,
)


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

    @classmethod
    def of_state(cls, fields: Iterable[str]) -> RetrievalSpec:
        """The nearest standardised state, of all ``fields``, where there are no relative frames."""
        values = tuple(fields)
        return cls(frames=(FrameSpec(values=values, weights=(None,) * len(values)),))

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
