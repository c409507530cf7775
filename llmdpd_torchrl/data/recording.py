"""Checked arrays of recorded episodes, the result of every reader."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdpd_torchrl.utils.errors import DataError

#: Tolerance of actions outside of their range, relative to its half width, for rounding.
_ROUNDING = 1e-4

ActionRange = tuple[float | Sequence[float], float | Sequence[float]]
"""The lowest and the highest value of all components of an action, or of each."""


@dataclass
class Recording:
    """Complete episodes, one after another, from one file or one dataset.

    The arrays are checked and cast when the recording is made, so that neither a loss nor the
    trainer has to: observations, actions and rewards become float32 and must be finite, actions
    must be within ``action_range``, flags of any numeric type become bool and must be 0 or 1.
    Arrays of the right type are not copied. An episode ends at every row that is terminated or
    truncated; the last row is truncated if it is neither. Data larger than the memory are a
    sequence of recordings.

    Args:
        name: name of the tasks of this recording.
        source: origin of the data, for messages.
        observation: ``[N, O]``.
        next_observation: ``[N, O]``, the true successors; that of a terminated row is never used
            and may have any finite value.
        action: ``[N, A]``.
        reward: ``[N]``.
        terminated: ``[N]``.
        truncated: ``[N]``.
        success: ``[N]``, whether each step meets the task's criterion, if the source has one.
        task_ids: ``[N]``, index of each row's task in ``task_names``; default: 0.
        task_names: default: ``name`` alone, or, with ``task_ids``, ``name/0``, ``name/1``, ...
        infos: further columns ``[N, ...]`` by name.
        attributes: metadata of the source, as JSON values.
        fields: half-open index ranges of the observation by name; default: one called ``state``.
        action_range: bounds of the source's actions, which are mapped to [-1, 1]: numbers, or one
            number for each component of an action.
        first_row: number of preceding rows of the same source, for messages.

    Raises:
        DataError: if there is no row, a shape or dtype is wrong, a value is not finite, or an
            action is outside of ``action_range``.

    Examples:
        >>> recording = Recording(
        ...     name="line",
        ...     source="memory",
        ...     observation=np.zeros((3, 2)),
        ...     next_observation=np.zeros((3, 2)),
        ...     action=np.zeros((3, 1)),
        ...     reward=np.ones(3),
        ...     terminated=[True, False, False],
        ...     truncated=[False, False, False],
        ... )
        >>> recording.ends.tolist(), recording.truncated.tolist()
        ([0, 2], [False, False, True])
    """

    name: str
    source: str
    observation: NDArray[Any]
    next_observation: NDArray[Any]
    action: NDArray[Any]
    reward: NDArray[Any]
    terminated: NDArray[Any]
    truncated: NDArray[Any]
    success: NDArray[Any] | None = None
    task_ids: NDArray[Any] | None = None
    task_names: Sequence[str] = ()
    infos: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, tuple[int, int]] | None = None
    action_range: ActionRange = (-1.0, 1.0)
    first_row: int = 0

    def __post_init__(self) -> None:
        for key in ("observation", "next_observation", "action", "reward"):
            rank = 1 if key == "reward" else 2
            column = as_numbers(getattr(self, key), self.source, key, rank, self.first_row)
            setattr(self, key, column)
        for key in ("terminated", "truncated", "success"):
            if (flags := getattr(self, key)) is not None:
                setattr(self, key, as_flags(flags, self.source, key))
        rows = len(self.observation)
        if rows == 0:
            raise DataError(f"{self.source}: has no transition; use a file with data")
        if self.task_ids is None:
            self.task_names = self.task_names or (self.name,)
            self.task_ids = np.zeros(rows, dtype=np.int64)
        self.task_ids = np.asarray(self.task_ids)
        self.infos = {key: _native(np.asarray(column)) for key, column in self.infos.items()}
        keys = ("action", "reward", "terminated", "truncated", "success", "task_ids")
        columns = {key: getattr(self, key) for key in keys}
        for key, column in (columns | {f"infos/{k}": v for k, v in self.infos.items()}).items():
            if column is not None and column.shape[:1] != (rows,):
                raise DataError(
                    f"{self.source}: {key} has shape {column.shape}, observation has {rows} rows; "
                    "every array needs one row a transition"
                )
        if self.next_observation.shape != self.observation.shape:
            raise DataError(
                f"{self.source}: next_observation has shape {self.next_observation.shape}, "
                f"observation {self.observation.shape}; they must be equal"
            )
        self._scale_actions()
        if not (self.terminated[-1] or self.truncated[-1]):
            self.truncated = self.truncated.copy()
            self.truncated[-1] = True
        self._name_tasks()

    @property
    def ends(self) -> NDArray[np.int64]:
        """Row of the last transition of each episode, ``[E]``."""
        return np.flatnonzero(self.terminated | self.truncated)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Transitions of each episode, ``[E]``."""
        return np.diff(self.ends, prepend=-1)

    def rename(self, name: str) -> None:
        """Give the only task another name.

        Raises:
            DataError: if there are several tasks.
        """
        if len(self.task_names) > 1:
            raise DataError(
                f"{self.source}: has the tasks {', '.join(self.task_names)}, all named {name!r}: "
                f"name one of them, as {self.source}::TASK"
            )
        self.task_names = (name,)

    def of_task(self, name: str) -> Recording | None:
        """The episodes of one task, ``None`` if there is none.

        Raises:
            DataError: if there is no such task.
        """
        if name not in self.task_names:
            known = ", ".join(self.task_names)
            raise DataError(f"{self.source}: has no task {name!r}; it has {known}")
        assert self.task_ids is not None
        rows = self.task_ids == list(self.task_names).index(name)
        if not rows.any():
            return None
        part = copy.copy(self)
        columns = ("observation", "next_observation", "action", "reward", "terminated",
                   "truncated", "success")  # fmt: skip
        for key in columns:
            if getattr(self, key) is not None:
                setattr(part, key, getattr(self, key)[rows])
        part.infos = {key: column[rows] for key, column in self.infos.items()}
        part.task_names, part.task_ids = (name,), np.zeros(int(rows.sum()), np.int64)
        return part

    def _name_tasks(self) -> None:
        """Check the task ids, and set the default of their names."""
        assert self.task_ids is not None
        ids = self.task_ids.reshape(len(self.observation), -1)
        if ids.dtype.kind not in "iu" or ids.shape[1] != 1 or ids.min() < 0:
            raise DataError(
                f"{self.source}: task ids must be integers from 0, [rows], found {ids.dtype}"
            )
        self.task_ids = ids[:, 0].astype(np.int64)
        count = int(self.task_ids.max()) + 1
        self.task_names = self.task_names or numbered_tasks(self.name, count)
        if len(self.task_names) < count:
            raise DataError(
                f"{self.source}: has task id {count - 1}, but {len(self.task_names)} task names"
            )
        if (np.diff(self.task_ids) != 0)[~(self.terminated | self.truncated)[:-1]].any():
            raise DataError(f"{self.source}: the task id changes within an episode")

    def _scale_actions(self) -> None:
        size = self.action.shape[1]
        try:
            ends = (np.asarray(end, np.float64) for end in self.action_range)
            low, high = (np.broadcast_to(end, (size,)) for end in ends)
        except (TypeError, ValueError):
            raise DataError(
                f"{self.source}: actions have {size} entries, and action_range is "
                f"{self.action_range}: give the lowest and the highest value, each one number or "
                f"a list of {size}"
            ) from None
        if not (low < high).all() or not np.isfinite(high - low).all():
            raise DataError(
                f"{self.source}: action_range is {self.action_range}: low must be less than high, "
                "and both finite"
            )
        least, most = self.action.min(0), self.action.max(0)
        middle, half = (low + high) / 2, (high - low) / 2
        outside = np.maximum(most - middle, middle - least) > half * (1 + _ROUNDING)
        if outside.any():
            worst = int(np.argmax(outside))
            where = f" in component {worst}" if size > 1 else ""
            raise DataError(
                f"{self.source}: action reaches from {least[worst]:.4g} to {most[worst]:.4g}"
                f"{where}, outside of [{low[worst]:g}, {high[worst]:g}]; give the environment's "
                "own range as action_range"
            )
        if (low != -1.0).any() or (high != 1.0).any():
            self.action = (self.action - middle.astype(np.float32)) / half.astype(np.float32)
        if self.action.min() < -1.0 or self.action.max() > 1.0:
            self.action = self.action.clip(-1.0, 1.0)


def numbered_tasks(name: str, count: int) -> tuple[str, ...]:
    """Default names of tasks: ``name/0``, ``name/1``, ..."""
    return tuple(f"{name}/{index}" for index in range(count))


def as_numbers(
    array: Any, source: str, key: str, rank: int, first_row: int = 0
) -> NDArray[np.float32]:
    """Check a column, [N] (rank 1) or [N, size] (rank 2), and cast it to float32 without a copy.

    A last axis of 1 may be added to either. ``first_row`` is the number of its first row.

    Raises:
        DataError: if it is not numeric, has another shape, or a value is not finite in float32.
    """
    array = np.asarray(array)
    if array.dtype.kind not in "fiu":
        raise DataError(f"{source}: {key} is of type {array.dtype}, it must hold numbers")
    if array.ndim == rank + 1 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != rank or (rank == 2 and array.shape[1] == 0):
        wanted = "[rows, size]" if rank == 2 else "[rows]"
        raise DataError(f"{source}: {key} has shape {array.shape}, it must be {wanted}")
    with np.errstate(over="ignore"):  # values too large for float32 are not finite, see below
        array = np.require(array, np.float32, ("C", "W"))
    finite = np.isfinite(array).all(tuple(range(1, rank)))
    if not finite.all():
        raise DataError(
            f"{source}: {key} is not finite in {(~finite).sum()} of {len(array)} rows, first in "
            f"row {first_row + int(np.argmin(finite))}; take these episodes out"
        )
    return array


def as_flags(array: Any, source: str, key: str) -> NDArray[np.bool_]:
    """Check a column of flags, [N] or [N, 1] of any numeric type, and cast it to bool."""
    array = np.asarray(array)
    if array.ndim == 2 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 1:
        raise DataError(f"{source}: {key} has shape {array.shape}, it must be [rows]")
    kind = array.dtype.kind
    if kind not in "biuf" or (kind != "b" and not np.isin(array, (0, 1)).all()):
        raise DataError(f"{source}: {key} must hold flags, 0 or 1, of type bool ({array.dtype})")
    return np.require(array, np.bool_, ("C", "W"))


def _native(array: NDArray[Any]) -> NDArray[Any]:
    """The array in this machine's byte order and writeable, as tensors must be."""
    return np.require(array, array.dtype.newbyteorder("="), ("C", "W"))
