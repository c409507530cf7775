"""Task tables: the one place where a task's name and its integer ``task_id`` meet.

Only ids travel with transitions (a string in a replay buffer is slow, and in a memory-mapped one
silently wrong); names live here and in a dataset's manifest.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llmdpd_torchrl.utils.errors import ConfigError

__all__ = ["METAWORLD_OBSERVATION_LAYOUT", "METAWORLD_TASKS", "TaskTable"]


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

    def __contains__(self, name: object) -> bool:
        return name in self.names

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


_METAWORLD_NAMES = """
    assembly basketball bin-picking box-close button-press button-press-topdown
    button-press-topdown-wall button-press-wall coffee-button coffee-pull coffee-push dial-turn
    disassemble door-close door-lock door-open door-unlock drawer-close drawer-open faucet-close
    faucet-open hammer hand-insert handle-press handle-press-side handle-pull handle-pull-side
    lever-pull peg-insert-side peg-unplug-side pick-out-of-hole pick-place pick-place-wall
    plate-slide plate-slide-back plate-slide-back-side plate-slide-side push push-back push-wall
    reach reach-wall shelf-place soccer stick-pull stick-push sweep sweep-into window-close
    window-open
"""

METAWORLD_TASKS = TaskTable(tuple(f"{name}-v3" for name in _METAWORLD_NAMES.split()))
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
