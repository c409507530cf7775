"""Files in D4RL's layout: flat HDF5 arrays, one row a transition, episodes end to end."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from llmdpd_torchrl.data.dataset import row_blocks
from llmdpd_torchrl.data.hdf5 import find_array, open_hdf5, read_attributes
from llmdpd_torchrl.data.recording import Recording, as_flags, numbered_tasks
from llmdpd_torchrl.utils.errors import DataError
from llmdpd_torchrl.utils.processes import check_memory

__all__ = [
    "FIELDS_ATTRIBUTE",
    "TASKS_ATTRIBUTE",
    "iter_d4rl_file",
    "read_d4rl_arrays",
    "read_d4rl_file",
]

#: Attributes that our own files have besides D4RL's arrays, and columns that are read for them.
TASKS_ATTRIBUTE = "task_table"
FIELDS_ATTRIBUTE = "observation_fields"
_SUCCESS = "infos/success"
_REQUIRED = ("observations", "actions", "rewards", "terminals")
_OPTIONAL = ("timeouts", "next_observations")


def read_d4rl_file(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    max_episode_steps: int | None = None,
    task_key: str | None = None,
    infos: Sequence[str] = (),
    action_range: tuple[float, float] = (-1.0, 1.0),
) -> Recording:
    """Read one HDF5 file in D4RL's layout.

    ``observations`` [N, O], ``actions`` [N, A], ``rewards`` and ``terminals`` [N] are needed;
    ``timeouts`` [N] and ``next_observations`` [N, O] are used where they are. Other arrays are left
    alone unless ``infos`` names them; text, wherever it is, becomes an attribute or is passed over.

    *Successors.* With ``next_observations`` every row keeps its true successor. Without, it is the
    next row's observation, which exists for all but the last row of an episode: if that row is
    terminal, its successor is never used, and its own observation stands in; if it timed out, or
    the file ends, its successor is unknown. Such a row is dropped, and the row before it, whose
    successor is the dropped row's observation, becomes the truncated end.

    *Ends without* ``timeouts``. Episodes then end at terminals and, with ``max_episode_steps``,
    after so many steps; otherwise, with ``next_observations``, where a row's successor is not the
    next row's observation.

    Args:
        path: of the file.
        name: what its tasks are called; default: the file's name without suffix.
        max_episode_steps: the time limit, for files without ``timeouts``.
        task_key: column of the group ``infos`` that says which task a row belongs to; default:
            ``task_id`` if the file has the attribute ``task_table``, as those that
            :func:`~llmdpd_torchrl.data.export_d4rl` writes; otherwise the file is one task.
        infos: further columns of the group ``infos`` to keep.
        action_range: see :class:`~llmdpd_torchrl.data.recording.Recording`.

    Raises:
        ConfigError: if it does not fit into memory.
        DataError: naming the file, the key and what is wrong with it.
    """
    (recording,) = iter_d4rl_file(
        path,
        name=name,
        max_episode_steps=max_episode_steps,
        task_key=task_key,
        infos=infos,
        action_range=action_range,
    )
    return recording


def iter_d4rl_file(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    block_bytes: int | None = None,
    progress: bool = False,
    **options: Any,
) -> Iterator[Recording]:
    """Read one HDF5 file in D4RL's layout in parts, each of whole episodes.

    Args:
        path: of the file.
        name: as for :func:`read_d4rl_file`.
        block_bytes: how much of the file to read at once; a part is larger where an episode is.
            Default: all of it, as one recording.
        progress: whether to show a bar of its rows.
        options: the others of :func:`read_d4rl_file`.

    Raises:
        DataError: naming the file, the key and what is wrong with it.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        source = _Source(
            name=path.stem if name is None else name,
            source=str(path),
            find=lambda key: find_array(file, key),
            known=sorted(file.keys()),
            attributes=read_attributes(file),
        )
        yield from _recordings(source, block_bytes, progress, **options)


def read_d4rl_arrays(
    arrays: Mapping[str, Any],
    *,
    name: str = "arrays",
    attributes: Mapping[str, Any] | None = None,
    **options: Any,
) -> Recording:
    """Read the arrays of a file in D4RL's layout, as ``env.get_dataset()`` of D4RL's returns them.

    Args:
        arrays: by name; those of groups are called ``infos/...``.
        name: what its tasks are called, and the arrays in messages.
        attributes: what the source says of itself.
        options: the others of :func:`read_d4rl_file`.

    Raises:
        DataError: naming the key and what is wrong with it.

    Examples:
        >>> arrays = {"observations": np.zeros((3, 2)), "actions": np.zeros((3, 1))}
        >>> arrays |= {"rewards": np.ones(3), "terminals": np.array([False, True, True])}
        >>> read_d4rl_arrays(arrays, max_episode_steps=100).lengths.tolist()
        [2, 1]
    """

    def find(key: str) -> NDArray[Any] | None:
        return np.asarray(arrays[key]) if key in arrays else None

    source = _Source(name, name, find, sorted(map(str, arrays)), dict(attributes or {}))
    (recording,) = _recordings(source, None, False, **options)
    return recording


@dataclass
class _Source:
    """Arrays in D4RL's layout, wherever they are."""

    name: str
    source: str
    find: Callable[[str], h5py.Dataset | NDArray[Any] | None]
    known: Sequence[str]
    attributes: dict[str, Any]


def _recordings(
    source: _Source,
    block_bytes: int | None,
    progress: bool,
    *,
    max_episode_steps: int | None = None,
    task_key: str | None = None,
    infos: Sequence[str] = (),
    action_range: tuple[float, float] = (-1.0, 1.0),
) -> Iterator[Recording]:
    """The arrays as recordings of whole episodes; at least one, which refuses to be empty."""
    attributes = source.attributes
    names = tuple(attributes.pop(TASKS_ATTRIBUTE, ()))
    fields = attributes.pop(FIELDS_ATTRIBUTE, None)
    if names and task_key is None:
        task_key = "task_id"
    task_column = None if task_key is None else f"infos/{task_key}"
    success_column = _SUCCESS if source.find(_SUCCESS) is not None else None
    special = [column for column in (task_column, success_column) if column is not None]
    arrays = _find_arrays(source, [*(f"infos/{key}" for key in infos), *special])
    if task_column is not None and not names:
        names = _number_tasks(arrays[task_column], source.name)
    if block_bytes is None:
        _check_fits(arrays, source.source)
    kept = 0
    for block, is_last in _episode_blocks(arrays, source, max_episode_steps, block_bytes, progress):
        keep, transitions = _find_successors(block)
        rows = int(keep.sum())
        if rows == 0 and not (is_last and kept == 0):
            continue  # an episode of one row whose successor nobody knows
        further = {key: block[key] for key in arrays if key.startswith("infos/")}
        if rows < len(keep):
            transitions = {key: column[keep] for key, column in transitions.items()}
            further = {key: column[keep] for key, column in further.items()}
        yield Recording(
            name=source.name,
            source=source.source,
            **transitions,
            success=None if success_column is None else further[success_column],
            task_ids=None if task_column is None else further[task_column],
            task_names=names,
            infos={key: further[f"infos/{key}"] for key in infos},
            fields=fields,
            attributes=attributes,
            action_range=action_range,
            first_row=kept,
        )
        kept += rows


def _find_arrays(source: _Source, columns: Iterable[str]) -> dict[str, h5py.Dataset | NDArray[Any]]:
    """The arrays that are needed, not read yet, after checking their types and lengths."""
    arrays: dict[str, h5py.Dataset | NDArray[Any]] = {}
    for key in (*_REQUIRED, *_OPTIONAL, *columns):
        item = source.find(key)
        if item is None and key in _OPTIONAL:
            continue
        if item is None:
            found = ", ".join(source.known) or "nothing"
            raise DataError(
                f"{source.source}: has no array {key!r}, which this layout needs; found {found}"
            )
        if item.dtype.kind not in "fiub":
            raise DataError(f"{source.source}: {key} is of type {item.dtype}, not a number")
        arrays[key] = item
        observations = arrays["observations"]
        alike = key != "next_observations" or item.shape == observations.shape
        if item.ndim == 0 or len(item) != len(observations) or not alike:
            raise DataError(
                f"{source.source}: {key} has shape {item.shape}, observations "
                f"{observations.shape}: every array needs one row a transition"
            )
    return arrays


def _check_fits(arrays: Mapping[str, h5py.Dataset | NDArray[Any]], source: str) -> None:
    """Whether what is to be read of a file fits into memory, with what is made of it meanwhile."""
    stored = [array for array in arrays.values() if isinstance(array, h5py.Dataset)]
    size = sum(array.nbytes for array in stored)
    if "next_observations" not in arrays and stored:  # a column more, and all once more, cut
        size = 2 * (size + arrays["observations"].nbytes)
    size += sum(4 * array.size for array in stored if array.dtype.itemsize > 4)  # as float32
    check_memory(
        size * 6 // 5,  # masks of what is finite
        source,
        remedy="give load_episodes(root=FOLDER), which maps it, or use a smaller file",
    )


def _number_tasks(ids: h5py.Dataset | NDArray[Any], name: str) -> tuple[str, ...]:
    """Names of all tasks that a column tells apart; what is no id, a recording refuses."""
    if ids.dtype.kind not in "iu" or len(ids) == 0:
        return ()
    most = max(int(ids[block].max()) for block in row_blocks(len(ids)))
    return numbered_tasks(name, most + 1)


def _episode_blocks(
    arrays: Mapping[str, h5py.Dataset | NDArray[Any]],
    source: _Source,
    limit: int | None,
    block_bytes: int | None,
    progress: bool,
) -> Iterator[tuple[dict[str, NDArray[Any]], bool]]:
    """Rows of whole episodes, with ``terminated`` and ``truncated``, and whether they are the last.

    What a block holds of an episode that does not end in it is put before the next block.
    """
    rows = len(arrays["observations"])
    size = rows
    if block_bytes is not None:
        width = sum(array.dtype.itemsize * math.prod(array.shape[1:]) for array in arrays.values())
        size = min(rows, block_bytes // width)
    held: dict[str, NDArray[Any]] = {}
    with tqdm(total=rows, desc=source.name, unit="row", delay=1, disable=not progress) as bar:
        for start in range(0, max(rows, 1), max(size, 1)):
            stop = min(start + max(size, 1), rows)
            block = {key: array[start:stop] for key, array in arrays.items()}
            if held:
                block = {key: np.concatenate([held[key], block[key]]) for key in arrays}
            block |= _find_ends(block, source.source, limit)
            ends = np.flatnonzero(block["terminated"] | block["truncated"])
            is_last = stop == rows
            cut = len(block["terminated"]) if is_last else int(ends.max(initial=-1)) + 1
            if cut or is_last:
                yield {key: column[:cut] for key, column in block.items()}, is_last
            held = {key: block[key][cut:].copy() for key in arrays} if not is_last else {}
            bar.update(stop - start)


def _find_ends(
    arrays: Mapping[str, NDArray[Any]], source: str, limit: int | None
) -> dict[str, NDArray[np.bool_]]:
    """``terminated`` and ``truncated`` as far as the rows show it; the last one may go on."""
    observation, successor = arrays["observations"], arrays.get("next_observations")
    rows = len(observation)
    terminated = as_flags(arrays["terminals"], source, "terminals")
    truncated = np.zeros(rows, dtype=np.bool_)
    if "timeouts" in arrays:
        truncated = as_flags(arrays["timeouts"], source, "timeouts")
    elif limit is not None:
        begins = np.concatenate([[True], terminated[:-1]]) if rows else terminated
        begin = np.maximum.accumulate(np.where(begins, np.arange(rows), 0))
        steps = np.arange(rows) - begin + 1
        truncated = (steps % limit == 0) & ~terminated
    elif successor is not None:
        truncated[:-1] = (successor[:-1] != observation[1:]).any(-1) & ~terminated[:-1]
    else:
        raise DataError(
            f"{source}: has neither 'timeouts' nor 'next_observations', so nothing says where "
            "episodes that do not terminate end; give max_episode_steps (1000 for gym-MuJoCo)"
        )
    return {"terminated": terminated, "truncated": truncated}


def _find_successors(
    arrays: Mapping[str, NDArray[Any]],
) -> tuple[NDArray[np.bool_], dict[str, NDArray[Any]]]:
    """Rows to keep, and all columns under the names that :class:`Recording` has."""
    observation, successor = arrays["observations"], arrays.get("next_observations")
    terminated, truncated = arrays["terminated"], arrays["truncated"].copy()
    rows = len(observation)
    truncated[-1:] |= ~terminated[-1:]  # the file cut it off
    keep = np.ones(rows, dtype=np.bool_)
    if successor is None:
        successor = np.concatenate([observation[1:], observation[-1:]])
        successor[terminated] = observation[terminated]
        keep = terminated | ~truncated
        # The row before a dropped one becomes the end, unless that is the end of an episode itself.
        before = np.concatenate([~keep[1:], [False]]) if rows else keep
        truncated = truncated | (before & ~terminated)
    columns = {
        "observation": observation,
        "next_observation": successor,
        "action": arrays["actions"],
        "reward": arrays["rewards"],
        "terminated": terminated,
        "truncated": truncated,
    }
    return keep, columns
