"""Files in D4RL's layout: flat HDF5 arrays, one row a transition, episodes end to end."""

from __future__ import annotations

import json
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

from llmdpd_torchrl.data.dataset import TrajectoryDataset, row_blocks
from llmdpd_torchrl.data.hdf5 import find_array, open_hdf5, read_attributes
from llmdpd_torchrl.data.recording import Recording, as_flags, numbered_tasks
from llmdpd_torchrl.errors import DataError
from llmdpd_torchrl.files import write_atomic

__all__ = ["export_d4rl", "iter_d4rl_file", "read_d4rl_arrays", "read_d4rl_file"]

#: Attributes that our own files have besides D4RL's arrays, and columns that are read for them.
_TASKS = "task_table"
_FIELDS = "observation_fields"
_SUCCESS = "success"
_REQUIRED = ("observations", "actions", "rewards", "terminals")
#: Rows of a chunk that is compressed as one; a divisor of what is written at once.
_CHUNK_ROWS = 1 << 12
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
            :func:`export_d4rl` writes; otherwise the file is one task.
        infos: further columns of the group ``infos`` to keep.
        action_range: see :class:`~llmdpd_torchrl.data.recording.Recording`.

    Raises:
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


def export_d4rl(
    dataset: TrajectoryDataset, path: str | os.PathLike[str], *, progress: bool = True
) -> None:
    """Write a dataset as one file in D4RL's layout; :func:`read_d4rl_file` reads it back exactly.

    Success, task ids and what was loaded as ``"info"`` become columns of the group ``infos``; the
    names of tasks and observation fields become attributes, in JSON.

    Args:
        dataset: any dataset of trajectories.
        path: of the file; its folder must exist.
        progress: whether to show a bar of the rows.

    Examples:
        >>> import tempfile
        >>> from llmdpd_torchrl.data import OfflineDataset, load_episodes
        >>> recording = Recording(
        ...     name="line",
        ...     source="memory",
        ...     observation=np.zeros((2, 2)),
        ...     next_observation=np.ones((2, 2)),
        ...     action=np.zeros((2, 1)),
        ...     reward=np.ones(2),
        ...     terminated=[True, False],
        ...     truncated=[False, True],
        ... )
        >>> dataset = OfflineDataset.from_recordings([recording])
        >>> path = Path(tempfile.mkdtemp()) / "line.hdf5"
        >>> export_d4rl(dataset, path)
        >>> bool((load_episodes(path).transitions == dataset.transitions).all())
        True
    """
    data, following = dataset.transitions, dataset.transitions["next"]
    columns = {
        "observations": data["observation"],
        "actions": data["action"],
        "rewards": following["reward"].squeeze(-1),
        "terminals": following["terminated"].squeeze(-1),
        "timeouts": following["truncated"].squeeze(-1),
        "next_observations": following["observation"],
        "infos/task_id": data["task_id"].squeeze(-1),
    }
    success = following.get("success", default=None)
    if success is not None:
        columns["infos/success"] = success.squeeze(-1)
    info = data.get("info", default=None)
    if info is not None:
        columns |= {f"infos/{key}": value for key, value in info.items()}

    rows = len(data)

    def write(temporary: Path) -> None:
        with (
            h5py.File(temporary, "w") as file,
            tqdm(total=rows, desc=str(path), unit="row", delay=1, disable=not progress) as bar,
        ):
            for key, column in columns.items():
                array = column.numpy()
                file.create_dataset(
                    key,
                    array.shape,
                    array.dtype,
                    chunks=(min(rows, _CHUNK_ROWS), *array.shape[1:]),
                    compression="gzip",
                    shuffle=True,
                )
            for block in row_blocks(rows):  # of whole chunks, each of which is compressed once
                for key, column in columns.items():
                    file[key][block] = column[block].numpy()
                bar.update(block.stop - block.start)
            file.attrs["env_id"] = dataset.manifest.environment
            file.attrs[_TASKS] = json.dumps(dataset.manifest.task_table)
            file.attrs[_FIELDS] = json.dumps(dataset.manifest.observation_layout["fields"])

    write_atomic(path, write)


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
    names = tuple(attributes.pop(_TASKS, ()))
    fields = attributes.pop(_FIELDS, None)
    if names and task_key is None:
        task_key = "task_id"
    columns = {key: f"infos/{key}" for key in infos}
    if task_key is not None:
        columns[_TASKS] = f"infos/{task_key}"
    if source.find("infos/success") is not None:
        columns[_SUCCESS] = "infos/success"
    arrays = _find_arrays(source, columns.values())
    if task_key is not None and not names:
        names = _number_tasks(arrays[columns[_TASKS]], source.name)
    kept = 0
    for block, is_last in _episode_blocks(arrays, source, max_episode_steps, block_bytes, progress):
        keep, transitions = _find_successors(block)
        rows = int(keep.sum())
        if rows == 0 and not (is_last and kept == 0):
            continue  # an episode of one row whose successor nobody knows
        further = {key: block[column] for key, column in columns.items()}
        if rows < len(keep):
            transitions = {key: column[keep] for key, column in transitions.items()}
            further = {key: column[keep] for key, column in further.items()}
        yield Recording(
            name=source.name,
            source=source.source,
            **transitions,
            success=further.pop(_SUCCESS, None),
            task_ids=further.pop(_TASKS, None),
            task_names=names,
            infos=further,
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
