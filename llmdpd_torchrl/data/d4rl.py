"""HDF5 files in D4RL's layout, read and written: flat arrays, one row per transition."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from llmdpd_torchrl.data.dataset import TrajectoryDataset, row_blocks
from llmdpd_torchrl.data.recording import ActionRange, Recording, as_flags, numbered_tasks
from llmdpd_torchrl.utils.errors import DataError, first_line, notice
from llmdpd_torchrl.utils.files import write_atomic
from llmdpd_torchrl.utils.memory import check_memory

_TASKS = "task_table"  # attributes of files that export_d4rl wrote
_FIELDS = "observation_fields"
_SUCCESS = "infos/success"
_REQUIRED = ("observations", "actions", "rewards", "terminals")
_OPTIONAL = ("timeouts", "next_observations", _SUCCESS)
#: Rows of a compressed chunk.
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
        action_range (pair of float, or of lists): see :class:`~llmdpd_torchrl.data.Recording`.

    Raises:
        ConfigError: if it does not fit into memory.
        DataError: naming the file, the key and the problem.
    """
    (recording,) = iter_d4rl_file(path, **options)
    return recording


def iter_d4rl_file(
    path: str | os.PathLike[str], *, name: str | None = None, **options: Any
) -> Iterator[Recording]:
    """The same in parts, see :func:`iter_d4rl_arrays`."""
    path = Path(path)
    with _open_hdf5(path) as file:
        attributes = {key: _json_value(value) for key, value in file.attrs.items()}
        yield from iter_d4rl_arrays(
            file, name=name or path.stem, source=str(path), attributes=attributes, **options
        )


def iter_d4rl_arrays(
    data: h5py.File | Mapping[str, Any],
    *,
    name: str,
    source: str,
    attributes: Mapping[str, Any],
    block_bytes: int | None = None,
    progress: bool = False,
    max_episode_steps: int | None = None,
    task_key: str | None = None,
    infos: Sequence[str] = (),
    action_range: ActionRange | None = None,
    keys: Mapping[str, str] | None = None,
) -> Iterator[Recording]:
    """Arrays in D4RL's layout as recordings of complete episodes, ``block_bytes`` at once.

    There is at least one recording, which refuses to be empty. It is larger than a block where an
    episode is. By default all is one; ``source`` is its name in messages, and ``keys`` are other
    names of arrays, by those of the layout.
    """
    attributes = dict(attributes)
    names = tuple(attributes.pop(_TASKS, ()))
    fields = attributes.pop(_FIELDS, None)
    if names and task_key is None:
        task_key = "task_id"
    task_column = f"infos/{task_key}" if task_key else ""
    further = [*(f"infos/{key}" for key in infos), task_column]
    arrays = _find_arrays(data, source, further, keys or {})
    if task_column and not names:
        ids = arrays[task_column]
        if ids.dtype.kind in "iu" and len(ids):  # a recording refuses other types
            most = max(int(ids[block].max()) for block in row_blocks(len(ids)))
            names = numbered_tasks(name, most + 1)
    if block_bytes is None:
        _check_fits(arrays, source)
    recorded = 0
    for block, is_last in _episode_blocks(arrays, source, max_episode_steps, block_bytes, progress):
        is_used, columns = _find_successors(block)
        rows = int(is_used.sum())
        if rows == 0 and not (is_last and recorded == 0):
            continue  # an episode of one row with an unknown successor
        columns |= {key: block[key] for key in arrays if key.startswith("infos/")}
        if rows < len(is_used):
            columns = {key: column[is_used] for key, column in columns.items()}
        yield Recording(
            name=name,
            source=source,
            **{key: column for key, column in columns.items() if not key.startswith("infos/")},
            success=columns.get(_SUCCESS),
            task_ids=columns.get(task_column),
            task_names=names,
            infos={key: columns[f"infos/{key}"] for key in infos},
            fields=fields,
            attributes=attributes,
            action_range=action_range or (-1.0, 1.0),
            first_row=recorded,
        )
        recorded += rows


def export_d4rl(
    dataset: TrajectoryDataset, path: str | os.PathLike[str], *, progress: bool = True
) -> None:
    """Write a dataset as one file in D4RL's layout; :func:`read_d4rl_file` reads it back exactly.

    Success, task ids and the columns under ``"info"`` become columns of the group ``infos``; the
    names of tasks and observation fields become attributes, in JSON.

    Args:
        dataset: any dataset of trajectories.
        path: of the file; its folder must exist.
        progress: whether to display a progress bar.

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
    if ("next", "success") in data.keys(include_nested=True):
        columns[_SUCCESS] = following["success"].squeeze(-1)
    columns |= {f"infos/{key}": value for key, value in data.get("info", default={}).items()}
    bar = tqdm(columns.items(), desc=str(path), unit="array", delay=1, disable=not progress)

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            for key, column in bar:
                array = column.numpy()
                chunks = (min(len(array), _CHUNK_ROWS), *array.shape[1:])
                options = {"chunks": chunks, "compression": "gzip", "shuffle": True}
                file.create_dataset(key, data=array, **options)
            file.attrs["env_id"] = dataset.manifest.environment
            file.attrs[_TASKS] = json.dumps(dataset.manifest.task_table)
            file.attrs[_FIELDS] = json.dumps(dataset.manifest.observation_layout["fields"])

    write_atomic(path, write)


def _find_arrays(
    data: h5py.File | Mapping[str, Any],
    source: str,
    columns: Iterable[str],
    keys: Mapping[str, str],
) -> dict[str, h5py.Dataset | NDArray[Any]]:
    """The needed arrays, not read yet, after checking their types and lengths."""
    arrays: dict[str, h5py.Dataset | NDArray[Any]] = {}
    for key in (*_REQUIRED, *_OPTIONAL, *filter(None, columns)):
        item = _find_array(data, keys.get(key, key))
        if item is None and key in _OPTIONAL and key not in keys:
            continue
        if item is None:
            found = ", ".join(sorted(map(str, data))) or "nothing"
            which = f"{keys[key]!r}, named by keys" if key in keys else f"{key!r}"
            raise DataError(
                f"{source}: has no array {which}, which this layout needs; found {found}"
            )
        if item.dtype.kind not in "fiub":
            raise DataError(f"{source}: {key} is of type {item.dtype}, not a number")
        arrays[key] = item
        observations = arrays["observations"]
        is_alike = key != "next_observations" or item.shape == observations.shape
        if item.ndim == 0 or len(item) != len(observations) or not is_alike:
            raise DataError(
                f"{source}: {key} has shape {item.shape}, observations "
                f"{observations.shape}: every array needs one row a transition"
            )
    return arrays


def _find_array(
    data: h5py.File | Mapping[str, Any], key: str
) -> h5py.Dataset | NDArray[Any] | None:
    """The array ``key``, or ``None`` if there is none.

    Links, virtual arrays and external storage of a file are refused: they can make HDF5 open any
    other file.
    """
    if not isinstance(data, h5py.File):
        return np.asarray(data[key]) if key in data else None
    parts = key.split("/")
    for count in range(1, len(parts) + 1):
        name = "/".join(parts[:count])
        link = data.get(name, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise DataError(
                f"{data.filename}: {name} is a link ({type(link).__name__}), which is not "
                "followed, for it may lead to other files; store the array itself"
            )
    item = data[key]
    if not isinstance(item, h5py.Dataset):
        return None
    if item.is_virtual or item.external is not None:
        raise DataError(
            f"{data.filename}: {key} is stored in other files, which are not opened; store the "
            "array itself"
        )
    return item


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
    source: str,
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
    is_noted = False  # one line a file
    with tqdm(total=rows, desc=source, unit="row", delay=1, disable=not progress) as bar:
        for start in range(0, max(rows, 1), max(size, 1)):
            stop = min(start + max(size, 1), rows)
            block = {key: array[start:stop] for key, array in arrays.items()}
            if rest:
                block = {key: np.concatenate([rest[key], block[key]]) for key in arrays}
            block |= _find_ends(block, source, limit)
            # Without either, jumps are what ends were found by.
            if not is_noted and ("timeouts" in block or limit is not None):
                is_noted = _note_jump(block, source, stop)
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
        truncated[:-1] = _jumps(observation, successor) & ~terminated[:-1]
    else:
        raise DataError(
            f"{source}: has neither 'timeouts' nor 'next_observations', so nothing says where "
            "episodes that do not terminate end; give max_episode_steps (1000 for gym-MuJoCo), "
            "or --max-steps where it is a demonstration"
        )
    return {"terminated": terminated, "truncated": truncated}


def _jumps(observation: NDArray[Any], successor: NDArray[Any]) -> NDArray[np.bool_]:
    """``[N - 1]``: where the next row's observation is not the one that this row says follows."""
    coarser = min(observation.dtype, successor.dtype, key=lambda dtype: dtype.itemsize)
    with np.errstate(over="ignore"):
        after, before = observation[1:].astype(coarser), successor[:-1].astype(coarser)
    return (before != after).any(-1)


def _note_jump(block: Mapping[str, NDArray[Any]], source: str, stop: int) -> bool:
    """Report the first jump where no episode ends, if the block before row ``stop`` has one."""
    observation, successor = block["observations"], block.get("next_observations")
    if successor is None or successor.shape != observation.shape:
        return False
    jumps = _jumps(observation, successor) & ~(block["terminated"] | block["truncated"])[:-1]
    if not jumps.any():
        return False
    row = stop - len(observation) + int(jumps.argmax())
    notice(
        f"{source}: row {row} says that another observation follows than row {row + 1} has, and "
        "not that an episode ends: look at its timeouts"
    )
    return True


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


def check_file(path: Path) -> None:
    """Raise a :class:`DataError` if ``path`` is not a file."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give the .hdf5 file in it")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; correct the path")


@contextlib.contextmanager
def _open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading; errors of HDF5 in the block become a :class:`DataError`."""
    check_file(path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:  # as h5py raises them for damaged files
        raise DataError(
            f"{path}: cannot be read as HDF5 ({first_line(error)}); it is damaged, cut short or "
            "of another kind: get it again"
        ) from None


def _json_value(value: Any) -> Any:
    """An attribute as JSON has it: JSON in text is parsed, other types become text."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, list):
        return [_json_value(entry) for entry in value]
    if isinstance(value, str) and value[:1] in ("[", "{"):
        with contextlib.suppress(ValueError):  # text that begins with a bracket is text
            return json.loads(value, parse_constant=str)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float) else str(value)
