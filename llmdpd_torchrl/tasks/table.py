"""Task tables: task names, their integer ``task_id``, and the returns that scores refer to.

Transitions store ids only (a string in a replay buffer is slow, and in a memory-mapped one silently
wrong); names are here and in a dataset's manifest.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

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
    infos = _d4rl_infos()
    if infos is not None and name in infos.REF_MIN_SCORE:
        return float(infos.REF_MIN_SCORE[name]), float(infos.REF_MAX_SCORE[name])
    raise ConfigError(
        f"no reference returns for {name!r}: built in are those of {', '.join(REFERENCE_RETURNS)}, "
        "and the optional package d4rl knows those of all its datasets"
    )


def _d4rl_infos() -> Any:
    """Dataset information of the optional package d4rl, or ``None`` with a warning."""
    try:
        import d4rl.infos
    except Exception as error:  # it imports mujoco-py, which raises bare exceptions
        warnings.warn(
            f"the optional package d4rl is not usable ({type(error).__name__}: "
            f"{first_line(error)})",
            stacklevel=3,
        )
        return None
    return d4rl.infos
