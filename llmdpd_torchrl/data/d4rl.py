"""Files in D4RL's layout: flat HDF5 arrays, one row a transition, episodes end to end."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from llmdpd_torchrl.data.dataset import TrajectoryDataset
from llmdpd_torchrl.data.recording import Recording, as_flags
from llmdpd_torchrl.errors import DataError
from llmdpd_torchrl.files import write_atomic

__all__ = ["export_d4rl", "read_d4rl_file"]

#: Attributes that our own files have besides D4RL's arrays, and columns that are read for them.
_TASKS = "task_table"
_FIELDS = "observation_fields"
_SUCCESS = "success"
_REQUIRED = ("observations", "actions", "rewards", "terminals")


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
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give the .hdf5 file in it")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; correct the path")
    try:
        with h5py.File(path, "r") as file:
            attributes = _read_attributes(file)
            names = attributes.pop(_TASKS, ())
            if names and task_key is None:
                task_key = "task_id"
            columns = {key: f"infos/{key}" for key in infos}
            if task_key is not None:
                columns[_TASKS] = f"infos/{task_key}"
            if "infos/success" in file:
                columns[_SUCCESS] = "infos/success"
            arrays = _read_arrays(file, path, columns)
    except OSError as error:
        raise DataError(
            f"{path}: can not be read as HDF5 ({error}); it is damaged, cut short or of another "
            "kind: get it again"
        ) from None
    keep, transitions = _find_successors(arrays, path, max_episode_steps)
    further = {key: arrays[column][keep] for key, column in columns.items()}
    return Recording(
        name=path.stem if name is None else name,
        source=str(path),
        observation=transitions["observation"][keep],
        next_observation=transitions["next_observation"][keep],
        action=transitions["action"][keep],
        reward=transitions["reward"][keep],
        terminated=transitions["terminated"][keep],
        truncated=transitions["truncated"][keep],
        success=further.pop(_SUCCESS, None),
        task_ids=further.pop(_TASKS, None),
        task_names=tuple(names),
        infos=further,
        fields=attributes.pop(_FIELDS, None),
        attributes=attributes,
        action_range=action_range,
    )


def export_d4rl(dataset: TrajectoryDataset, path: str | os.PathLike[str]) -> None:
    """Write a dataset as one file in D4RL's layout; :func:`read_d4rl_file` reads it back exactly.

    Success, task ids and what was loaded as ``"info"`` become columns of the group ``infos``; the
    names of tasks and observation fields become attributes, in JSON.

    Args:
        dataset: any dataset of trajectories.
        path: of the file; its folder must exist.

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

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            for key, column in columns.items():
                file.create_dataset(key, data=column.numpy(), compression="gzip", shuffle=True)
            file.attrs["env_id"] = dataset.manifest.environment
            file.attrs[_TASKS] = json.dumps(dataset.manifest.task_table)
            file.attrs[_FIELDS] = json.dumps(dataset.manifest.observation_layout["fields"])

    write_atomic(path, write)


def _read_arrays(
    file: h5py.File, path: Path, columns: Mapping[str, str]
) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for key in (*_REQUIRED, "timeouts", "next_observations", *columns.values()):
        item = file.get(key)
        if item is None and key in ("timeouts", "next_observations"):
            continue
        if not isinstance(item, h5py.Dataset):
            found = ", ".join(sorted(file.keys())) or "nothing"
            raise DataError(f"{path}: has no array {key!r}, which this layout needs; found {found}")
        if item.dtype.kind not in "fiub":
            raise DataError(f"{path}: {key} is of type {item.dtype}, not a number")
        if item.ndim == 0 or len(item) != len(file["observations"]):
            raise DataError(
                f"{path}: {key} has shape {item.shape}, observations "
                f"{file['observations'].shape}: every array needs one row a transition"
            )
        arrays[key] = item[()]
    return arrays


def _read_attributes(file: h5py.File) -> dict[str, Any]:
    """The file's attributes: JSON in text is parsed, what JSON can not hold becomes text."""
    attributes: dict[str, Any] = {}
    for key, value in file.attrs.items():
        if isinstance(value, bytes):
            value = value.decode("utf-8", errors="replace")
        if isinstance(value, str) and value[:1] in "[{":
            with contextlib.suppress(ValueError):  # text that begins with a bracket is text
                value = json.loads(value)
        elif isinstance(value, np.generic):
            value = value.item()
        elif isinstance(value, np.ndarray):
            value = value.tolist()
        attributes[key] = value
    return attributes


def _find_successors(
    arrays: dict[str, NDArray[Any]], path: Path, max_episode_steps: int | None
) -> tuple[NDArray[np.bool_], dict[str, NDArray[Any]]]:
    """Rows to keep, and all columns under the names that :class:`Recording` has."""
    observation = arrays["observations"]
    rows = len(observation)
    terminated = as_flags(arrays["terminals"], str(path), "terminals")
    successor = arrays.get("next_observations")
    truncated = np.zeros(rows, dtype=np.bool_)
    if "timeouts" in arrays:
        truncated = as_flags(arrays["timeouts"], str(path), "timeouts")
    elif max_episode_steps is not None:
        begins = np.concatenate([[True], terminated[:-1]]) if rows else terminated
        begin = np.maximum.accumulate(np.where(begins, np.arange(rows), 0))
        steps = np.arange(rows) - begin + 1
        truncated = (steps % max_episode_steps == 0) & ~terminated
    elif successor is not None:
        truncated[:-1] = (successor[:-1] != observation[1:]).any(-1) & ~terminated[:-1]
    else:
        raise DataError(
            f"{path}: has neither 'timeouts' nor 'next_observations', so nothing says where "
            "episodes that do not terminate end; give max_episode_steps (1000 for gym-MuJoCo)"
        )
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
