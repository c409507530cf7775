"""HDF5 files in D4RL's layout, read and written: flat arrays, one row per transition."""

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
from llmdpd_torchrl.utils.errors import DataError
from llmdpd_torchrl.utils.files import write_atomic
from llmdpd_torchrl.utils.processes import check_memory

_TASKS = "task_table"  # attributes of files that export_d4rl wrote
_FIELDS = "observation_fields"
_SUCCESS = "infos/success"
_REQUIRED = ("observations", "actions", "rewards", "terminals")
_OPTIONAL = ("timeouts", "next_observations")
#: Rows of a compressed chunk; a divisor of the rows that are written at once.
_CHUNK_ROWS = 1 << 12


def read_d4rl_file(path: str | os.PathLike[str], **options: Any) -> Recording:
    """Read one HDF5 file in D4RL's layout into memory.

    ``observations`` [N, O], ``actions`` [N, A], ``rewards`` and ``terminals`` [N] are required;
    ``timeouts`` [N] and ``next_observations`` [N, O] are used if present, and arrays of the group
    ``infos`` if they are named. Text becomes an attribute or is ignored. Flags of any numeric type
    become bool; values must be finite and actions within ``action_range``.

    *Successors.* With ``next_observations`` every row has its true successor. Without, it is the
    next row's observation, which exists for all but the last row of an episode: if that row is
    terminal, its successor is never used, and its own observation is the placeholder; if it timed
    out, or the file ends, its successor is unknown. Such a row is dropped, and the row before it,
    whose successor is the dropped row's observation, becomes the truncated end.

    *Ends without* ``timeouts``. Episodes then end at terminals and, with ``max_episode_steps``,
    after that many steps; otherwise, with ``next_observations``, where a row's successor differs
    from the next row's observation (compared in the coarser of the two float types).

    Args:
        path: of the file.
        name (str): name of its tasks; default: the file's name without suffix.
        max_episode_steps (int): the time limit, for files without ``timeouts``.
        task_key (str): column of the group ``infos`` with the task ids; default: ``task_id`` if the
            file has the attribute ``task_table``, as those of :func:`export_d4rl`; otherwise the
            file is one task.
        infos (sequence of str): further columns of the group ``infos`` to load.
        action_range (pair of float): see :class:`~llmdpd_torchrl.data.Recording`.

    Raises:
        ConfigError: if it does not fit into memory.
        DataError: naming the file, the key and the problem.
    """
    (recording,) = iter_d4rl_file(path, **options)
    return recording


def iter_d4rl_file(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    block_bytes: int | None = None,
    progress: bool = False,
    **options: Any,
) -> Iterator[Recording]:
    """Read one HDF5 file in D4RL's layout in parts of complete episodes.

    Args:
        path: of the file.
        name: name of its tasks; default: the file's name without suffix.
        block_bytes: how much of the file to read at once; a part is larger where an episode is.
            Default: all of it, as one recording.
        progress: whether to display a progress bar of its rows.
        options: the others of :func:`read_d4rl_file`.

    Raises:
        DataError: naming the file, the key and the problem.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        source = _Source(
            path.stem if name is None else name,
            str(path),
            lambda key: find_array(file, key),
            sorted(file.keys()),
            read_attributes(file),
        )
        yield from _recordings(source, block_bytes, progress, **options)


def read_d4rl_arrays(
    arrays: Mapping[str, Any],
    *,
    name: str = "arrays",
    attributes: Mapping[str, Any] | None = None,
    **options: Any,
) -> Recording:
    """Read arrays in D4RL's layout, as ``env.get_dataset()`` of the package d4rl returns them.

    Args:
        arrays: by name; those of groups are called ``infos/...``.
        name: name of the tasks, and of the arrays in messages.
        attributes: metadata of the source.
        options: the others of :func:`read_d4rl_file`.

    Raises:
        DataError: naming the key and the problem.

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

    Success, task ids and the columns under ``"info"`` become columns of the group ``infos``; the
    names of tasks and observation fields become attributes, in JSON.

    Args:
        dataset: any dataset of trajectories.
        path: of the file; its folder must exist.
        progress: whether to display a progress bar of the rows.

    Examples:
        >>> import tempfile
        >>> from llmdpd_torchrl.data import load_episodes
        >>> arrays = {"observations": np.zeros((3, 2)), "actions": np.zeros((3, 1))}
        >>> arrays |= {"rewards": np.ones(3), "terminals": np.array([False, True, True])}
        >>> dataset = load_episodes(arrays, max_episode_steps=100)
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
    if "success" in following.keys():  # noqa: SIM118 (a TensorDict iterates over its rows)
        columns[_SUCCESS] = following["success"].squeeze(-1)
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
                chunks = (min(rows, _CHUNK_ROWS), *array.shape[1:])
                options = {"chunks": chunks, "compression": "gzip", "shuffle": True}
                file.create_dataset(key, array.shape, array.dtype, **options)
            for block in row_blocks(rows):  # of complete chunks, each of which is compressed once
                for key, column in columns.items():
                    file[key][block] = column[block].numpy()
                bar.update(block.stop - block.start)
            file.attrs["env_id"] = dataset.manifest.environment
            file.attrs[_TASKS] = json.dumps(dataset.manifest.task_table)
            file.attrs[_FIELDS] = json.dumps(dataset.manifest.observation_layout["fields"])

    write_atomic(path, write)


@dataclass
class _Source:
    """Arrays in D4RL's layout, in a file or in memory."""

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
    """The arrays as recordings of complete episodes; at least one, which refuses to be empty."""
    attributes = source.attributes
    names = tuple(attributes.pop(_TASKS, ()))
    fields = attributes.pop(_FIELDS, None)
    if names and task_key is None:
        task_key = "task_id"
    task_column = None if task_key is None else f"infos/{task_key}"
    success_column = _SUCCESS if source.find(_SUCCESS) is not None else None
    special = [column for column in (task_column, success_column) if column is not None]
    arrays = _find_arrays(source, [*(f"infos/{key}" for key in infos), *special])
    if task_column is not None and not names:
        ids = arrays[task_column]
        if ids.dtype.kind in "iu" and len(ids):  # a recording refuses other types
            most = max(int(ids[block].max()) for block in row_blocks(len(ids)))
            names = numbered_tasks(source.name, most + 1)
    if block_bytes is None:
        _check_fits(arrays, source.source)
    recorded = 0
    for block, is_last in _episode_blocks(arrays, source, max_episode_steps, block_bytes, progress):
        is_used, columns = _find_successors(block)
        rows = int(is_used.sum())
        if rows == 0 and not (is_last and recorded == 0):
            continue  # an episode of one row with an unknown successor
        columns |= {key: block[key] for key in arrays if key.startswith("infos/")}
        if rows < len(is_used):
            columns = {key: column[is_used] for key, column in columns.items()}
        success = None if success_column is None else columns[success_column]
        ids = None if task_column is None else columns[task_column]
        further = {key: columns[f"infos/{key}"] for key in infos}
        yield Recording(
            name=source.name,
            source=source.source,
            **{key: column for key, column in columns.items() if not key.startswith("infos/")},
            success=success,
            task_ids=ids,
            task_names=names,
            infos=further,
            fields=fields,
            attributes=attributes,
            action_range=action_range,
            first_row=recorded,
        )
        recorded += rows


def _find_arrays(source: _Source, columns: Iterable[str]) -> dict[str, h5py.Dataset | NDArray[Any]]:
    """The needed arrays, not read yet, after checking their types and lengths."""
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
        is_alike = key != "next_observations" or item.shape == observations.shape
        if item.ndim == 0 or len(item) != len(observations) or not is_alike:
            raise DataError(
                f"{source.source}: {key} has shape {item.shape}, observations "
                f"{observations.shape}: every array needs one row a transition"
            )
    return arrays


def _check_fits(arrays: Mapping[str, h5py.Dataset | NDArray[Any]], source: str) -> None:
    """Check that the arrays of a file, with temporary copies, fit into memory."""
    stored = [array for array in arrays.values() if isinstance(array, h5py.Dataset)]
    size = sum(array.nbytes for array in stored)
    if "next_observations" not in arrays and stored:  # one more column, and a copy of all
        size = 2 * (size + arrays["observations"].nbytes)
    size += sum(4 * array.size for array in stored if array.dtype.itemsize > 4)  # as float32
    check_memory(
        size * 6 // 5,  # masks of finite values
        source,
        remedy="give load_episodes(root=FOLDER), which maps it, or use a smaller file",
    )


def _episode_blocks(
    arrays: Mapping[str, h5py.Dataset | NDArray[Any]],
    source: _Source,
    limit: int | None,
    block_bytes: int | None,
    progress: bool,
) -> Iterator[tuple[dict[str, NDArray[Any]], bool]]:
    """Blocks of complete episodes, with ``terminated`` and ``truncated``; true for the last block.

    Rows of an episode that does not end in a block are put before the next block.
    """
    rows = len(arrays["observations"])
    size = rows
    if block_bytes is not None:
        width = sum(array.dtype.itemsize * math.prod(array.shape[1:]) for array in arrays.values())
        size = min(rows, block_bytes // width)
    rest: dict[str, NDArray[Any]] = {}
    with tqdm(total=rows, desc=source.name, unit="row", delay=1, disable=not progress) as bar:
        for start in range(0, max(rows, 1), max(size, 1)):
            stop = min(start + max(size, 1), rows)
            block = {key: array[start:stop] for key, array in arrays.items()}
            if rest:
                block = {key: np.concatenate([rest[key], block[key]]) for key in arrays}
            block |= _find_ends(block, source.source, limit)
            ends = np.flatnonzero(block["terminated"] | block["truncated"])
            is_last = stop == rows
            cut = len(block["terminated"]) if is_last else int(ends.max(initial=-1)) + 1
            if cut or is_last:
                yield {key: column[:cut] for key, column in block.items()}, is_last
            rest = {} if is_last else {key: block[key][cut:].copy() for key in arrays}
            bar.update(stop - start)


def _find_ends(
    arrays: Mapping[str, NDArray[Any]], source: str, limit: int | None
) -> dict[str, NDArray[np.bool_]]:
    """``terminated`` and ``truncated`` as far as the rows determine them; the last may continue."""
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
        coarser = min(observation.dtype, successor.dtype, key=lambda dtype: dtype.itemsize)
        with np.errstate(over="ignore"):
            after, before = observation[1:].astype(coarser), successor[:-1].astype(coarser)
        truncated[:-1] = (before != after).any(-1) & ~terminated[:-1]
    else:
        raise DataError(
            f"{source}: has neither 'timeouts' nor 'next_observations', so nothing says where "
            "episodes that do not terminate end; give max_episode_steps (1000 for gym-MuJoCo)"
        )
    return {"terminated": terminated, "truncated": truncated}


def _find_successors(
    arrays: Mapping[str, NDArray[Any]],
) -> tuple[NDArray[np.bool_], dict[str, NDArray[Any]]]:
    """A mask of the rows with known successors, and all columns by :class:`Recording`'s names."""
    observation, successor = arrays["observations"], arrays.get("next_observations")
    terminated, truncated = arrays["terminated"], arrays["truncated"].copy()
    rows = len(observation)
    truncated[-1:] |= ~terminated[-1:]  # cut off by the end of the file
    is_used = np.ones(rows, dtype=np.bool_)
    if successor is None:
        successor = np.concatenate([observation[1:], observation[-1:]])
        successor[terminated] = observation[terminated]
        is_used = terminated | ~truncated
        # The row before a dropped one becomes the end, unless it ends another episode itself.
        before = np.concatenate([~is_used[1:], [False]]) if rows else is_used
        truncated = truncated | (before & ~terminated)
    columns = {
        "observation": observation,
        "next_observation": successor,
        "action": arrays["actions"],
        "reward": arrays["rewards"],
        "terminated": terminated,
        "truncated": truncated,
    }
    return is_used, columns
