"""Which tasks are trained on (seen) and which are held out (unseen)."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmdpd_torchrl.tasks.table import METAWORLD_TASKS, TaskTable
from llmdpd_torchrl.utils.errors import ConfigError

ML10_TRAIN = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "sweep-v3",
    "basketball-v3",
)
ML10_HELD_OUT = (
    "drawer-open-v3",
    "door-close-v3",
    "shelf-place-v3",
    "sweep-into-v3",
    "lever-pull-v3",
)
ML45_HELD_OUT = (
    "bin-picking-v3",
    "box-close-v3",
    "hand-insert-v3",
    "door-lock-v3",
    "door-unlock-v3",
)


@dataclass(frozen=True)
class TaskSplit:
    """Seen and unseen tasks, checked not to overlap.

    Args:
        name: what the split is called in results.
        train: the seen tasks: the only ones whose transitions, statistics and goals may be used in
            training.
        held_out: the unseen tasks: evaluated by text and a support trajectory alone.
        table: the task table that both come from.

    Raises:
        ConfigError: if a task is unknown, repeated, or both trained on and held out.

    Examples:
        >>> split = make_split("custom", train=["reach-v3", "push-v3"], held_out=["sweep-v3"])
        >>> split.tasks
        ('reach-v3', 'push-v3', 'sweep-v3')
    """

    name: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    table: TaskTable = METAWORLD_TASKS

    def __post_init__(self) -> None:
        self.table.check(self.train)
        self.table.check(self.held_out)
        self.check_trainable(self.train)
        if not self.train:
            raise ConfigError(f"split {self.name!r} has no training task: list at least one")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Seen tasks, then unseen ones."""
        return self.train + self.held_out

    def check_trainable(self, names: Iterable[str]) -> None:
        """Raise :class:`ConfigError` if one of ``names`` is held out."""
        both = [name for name in names if name in self.held_out]
        if both:
            raise ConfigError(
                f"held-out task {both[0]!r} is in the training data of split {self.name!r}: "
                "take it out of one of the two lists"
            )


ML45_VALIDATION = (
    "shelf-place-v3",
    "pick-out-of-hole-v3",
    "peg-unplug-side-v3",
    "lever-pull-v3",
    "dial-turn-v3",
    "push-back-v3",
)
"""Validation tasks: training tasks of ML45 that are held out while design choices are made, so that
the five held-out tasks are used for the final result only."""

_ML45_TRAIN = tuple(name for name in METAWORLD_TASKS.names if name not in ML45_HELD_OUT)

SPLITS = {
    "ml10": TaskSplit("ml10", ML10_TRAIN, ML10_HELD_OUT),
    "ml45": TaskSplit("ml45", _ML45_TRAIN, ML45_HELD_OUT),
    "ml45_validation": TaskSplit(
        "ml45_validation",
        tuple(name for name in _ML45_TRAIN if name not in ML45_VALIDATION),
        ML45_VALIDATION,
    ),
}
"""The named splits; ML10's and ML45's task lists are Meta-World's own."""


def make_split(
    name: str,
    *,
    train: Sequence[str] | None = None,
    held_out: Sequence[str] | None = None,
    count: int | None = None,
    seed: int = 0,
) -> TaskSplit:
    """A named split, with either list replaced when it is given.

    Args:
        name: a key of :data:`SPLITS`, or any other name when ``train`` is given.
        train: replaces the seen tasks.
        held_out: replaces the unseen tasks.
        count: train on a random sample of this many seen tasks; the sample of a smaller count is a
            subset of that of a larger one.
        seed: of this sample.

    Raises:
        ConfigError: if the name is unknown and no training list is given, the lists are wrong, or
            there are fewer tasks than ``count``.

    Examples:
        >>> make_split("ml10", count=2).train
        ('peg-insert-side-v3', 'basketball-v3')
    """
    if name not in SPLITS and train is None:
        raise ConfigError(
            f"unknown task split {name!r}: use one of {', '.join(SPLITS)}, or give a training list"
        )
    base = SPLITS.get(name)
    seen = tuple(train) if train is not None else base.train if base else ()
    if count is not None:
        if not 1 <= count <= len(seen):
            raise ConfigError(
                f"tasks.count is {count}: split {name!r} has 1 to {len(seen)} tasks to train on"
            )
        sampled = random.Random(seed).sample(seen, len(seen))[:count]
        seen = tuple(task for task in seen if task in sampled)
    return TaskSplit(
        name,
        seen,
        tuple(held_out) if held_out is not None else base.held_out if base else (),
    )
