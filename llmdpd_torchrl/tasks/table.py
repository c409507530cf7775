"""Tasks: names, their integer ``task_id``, splits, and the returns that scores refer to.

Transitions store ids only (a string in a replay buffer is slow, and in a memory-mapped one silently
wrong); names are here and in a dataset's manifest.
"""

from __future__ import annotations

import difflib
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from llmdpd_torchrl.utils.errors import ConfigError, first_line


@dataclass(frozen=True)
class TaskTable:
    """An ordered set of task names; a task's id is its position.

    Args:
        names: distinct task names.

    Raises:
        ConfigError: if a name occurs twice.

    Examples:
        >>> table = TaskTable(("reach-v3", "push-v3"))
        >>> table.index("push-v3"), table.names[0], len(table)
        (1, 'reach-v3', 2)
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise ConfigError(f"task table: {repeated[0]!r} occurs twice; list every task once")

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """The id of ``name``; an unknown name raises :class:`ConfigError` with the nearest ones."""
        try:
            return self.names.index(name)
        except ValueError:
            near = difflib.get_close_matches(str(name), self.names, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {self.names[0]}, ..."
            raise ConfigError(f"unknown task {name!r}: {hint}") from None

    def check(self, names: Iterable[str]) -> tuple[str, ...]:
        """``names`` as a tuple, after checking that each is known and occurs once."""
        checked = TaskTable(tuple(names)).names
        for name in checked:
            self.index(name)
        return checked


def _metaworld(names: str) -> tuple[str, ...]:
    return tuple(f"{name}-v3" for name in names.split())


METAWORLD_TASKS = TaskTable(
    _metaworld(
        """
        assembly basketball bin-picking box-close button-press button-press-topdown
        button-press-topdown-wall button-press-wall coffee-button coffee-pull coffee-push dial-turn
        disassemble door-close door-lock door-open door-unlock drawer-close drawer-open faucet-close
        faucet-open hammer hand-insert handle-press handle-press-side handle-pull handle-pull-side
        lever-pull peg-insert-side peg-unplug-side pick-out-of-hole pick-place pick-place-wall
        plate-slide plate-slide-back plate-slide-back-side plate-slide-side push push-back push-wall
        reach reach-wall shelf-place soccer stick-pull stick-push sweep sweep-into window-close
        window-open
        """
    )
)
"""All 50 Meta-World tasks, in a fixed order: the id of a task is the same in every dataset."""

METAWORLD_OBSERVATION_LAYOUT: dict[str, Any] = {
    "size": 39,
    "dtype": "float32",
    "fields": {
        "hand_position": [0, 3],
        "gripper_opening": [3, 4],
        "object_1_position": [4, 7],
        "object_1_quaternion": [7, 11],
        "object_2_position": [11, 14],
        "object_2_quaternion": [14, 18],
        "previous_frame": [18, 36],
        "goal_position": [36, 39],
    },
    "units": "metres",
}
"""Half-open index ranges of Meta-World's state observation (two stacked frames and the goal)."""


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
        if not self.train:
            raise ConfigError(f"split {self.name!r} has no training task: list at least one")
        both = [name for name in self.train if name in self.held_out]
        if both:
            raise ConfigError(
                f"held-out task {both[0]!r} is in the training data of split {self.name!r}: "
                "take it out of one of the two lists"
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Seen tasks, then unseen ones."""
        return self.train + self.held_out


_ML45_HELD_OUT = _metaworld("bin-picking box-close hand-insert door-lock door-unlock")
_ML45_TRAIN = tuple(name for name in METAWORLD_TASKS.names if name not in _ML45_HELD_OUT)
_VALIDATION = _metaworld(
    "shelf-place pick-out-of-hole peg-unplug-side lever-pull dial-turn push-back"
)


def _folds() -> dict[str, dict[str, TaskSplit]]:
    """By group, the splits of ``folds.yaml``; each trains on all tasks but its own five."""
    text = (resources.files(__package__) / "folds.yaml").read_text(encoding="utf-8")
    return {
        group: {
            f"fold_{name}": TaskSplit(
                f"fold_{name}",
                tuple(task for task in METAWORLD_TASKS.names if task not in held_out),
                tuple(held_out),
            )
            for name, held_out in folds.items()
        }
        for group, folds in yaml.safe_load(text).items()
    }


_FOLDS = _folds()
FOLDS: Mapping[str, tuple[str, ...]] = {group: tuple(folds) for group, folds in _FOLDS.items()}
"""By group, ``development``, ``report`` and ``hard``, the names of splits that hold every task out
once: 20 tasks for choices of design, 30 for the final result; and all 50 again with siblings held
out together."""

SCENES: Mapping[str, tuple[str, ...]] = {
    "reach-push-pick": _metaworld("reach push pick-place"),
    "coffee": _metaworld("coffee-button coffee-pull coffee-push"),
    "stick": _metaworld("stick-pull stick-push"),
    "plate-slide": _metaworld(
        "plate-slide plate-slide-back plate-slide-side plate-slide-back-side"
    ),
    "drawer": _metaworld("drawer-open drawer-close"),
    "window": _metaworld("window-open window-close"),
}
"""Tasks with the same objects in the same places, or nearly: what is to be done there, the state
hardly tells."""

SPLITS = {
    "ml10": TaskSplit(
        "ml10",
        _metaworld(
            "reach push pick-place door-open drawer-close button-press-topdown peg-insert-side "
            "window-open sweep basketball"
        ),
        _metaworld("drawer-open door-close shelf-place sweep-into lever-pull"),
    ),
    "ml45": TaskSplit("ml45", _ML45_TRAIN, _ML45_HELD_OUT),
    "ml45_validation": TaskSplit(
        "ml45_validation",
        tuple(name for name in _ML45_TRAIN if name not in _VALIDATION),
        _VALIDATION,
    ),
    "scenes": TaskSplit("scenes", tuple(t for tasks in SCENES.values() for t in tasks), ()),
    **{name: split for folds in _FOLDS.values() for name, split in folds.items()},
}
"""The named splits; ML10's and ML45's task lists are Meta-World's own. The validation split holds
out training tasks of ML45 while design choices are made, so that the five held-out tasks are used
for the final result only. The others are :data:`FOLDS`."""


def scene_of(task: str) -> tuple[str, ...]:
    """The tasks of a task's scene, itself among them.

    Raises:
        ConfigError: if it is in none of :data:`SCENES`.

    Examples:
        >>> scene_of("drawer-open-v3")
        ('drawer-open-v3', 'drawer-close-v3')
    """
    for tasks in SCENES.values():
        if task in tasks:
            return tasks
    raise ConfigError(f"{task} shares its scene with no other task: use {', '.join(SCENES)}")


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


#: Returns of a random policy and of an expert by environment, from D4RL (Fu et al. 2020).
REFERENCE_RETURNS: Mapping[str, tuple[float, float]] = {
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
}


def normalized_score(name: str, episode_return: float) -> float:
    """D4RL's normalised score: 100 (return - random) / (expert - random).

    Args:
        name: of an environment or dataset, such as ``"Hopper-v4"`` or ``"hopper-medium-v2"``.
        episode_return: undiscounted sum of an episode's rewards, or a mean of such sums.

    Raises:
        ConfigError: if there are no reference returns for ``name``.

    Examples:
        >>> normalized_score("Hopper-v4", 3234.3), normalized_score("hopper_random", -20.272305)
        (100.0, 0.0)
    """
    low, high = reference_returns(name)
    return 100.0 * (episode_return - low) / (high - low)


def reference_returns(name: str) -> tuple[float, float]:
    """Returns of a random policy and of an expert: built in, or the package d4rl's.

    Args:
        name: as for :func:`normalized_score`. The package knows its datasets' names only.

    Raises:
        ConfigError: if there are none.

    Examples:
        >>> reference_returns("Hopper-v4")
        (-20.272305, 3234.3)
    """
    key = name.lower().replace("_", "-").partition("-")[0]
    if key in REFERENCE_RETURNS:
        return REFERENCE_RETURNS[key]
    try:
        from d4rl.infos import REF_MAX_SCORE, REF_MIN_SCORE
    except Exception as error:  # it imports mujoco-py, which raises bare exceptions
        warnings.warn(
            f"the optional package d4rl is not usable ({type(error).__name__}: "
            f"{first_line(error)})",
            stacklevel=2,
        )
    else:
        if name in REF_MIN_SCORE:
            return float(REF_MIN_SCORE[name]), float(REF_MAX_SCORE[name])
    raise ConfigError(
        f"no reference returns for {name!r}: built in are those of {', '.join(REFERENCE_RETURNS)}, "
        "and the optional package d4rl knows those of all its datasets"
    )
