"""Datasets as files in D4RL's layout."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
from tqdm.auto import tqdm

from llmdpd_torchrl.data.d4rl import FIELDS_ATTRIBUTE, TASKS_ATTRIBUTE
from llmdpd_torchrl.data.dataset import TrajectoryDataset, row_blocks
from llmdpd_torchrl.utils.files import write_atomic

__all__ = ["export_d4rl"]

#: Rows of a chunk that is compressed as one; a divisor of what is written at once.
_CHUNK_ROWS = 1 << 12


def export_d4rl(
    dataset: TrajectoryDataset, path: str | os.PathLike[str], *, progress: bool = True
) -> None:
    """Write a dataset as one file in D4RL's layout; :func:`read_d4rl_file
    <llmdpd_torchrl.data.read_d4rl_file>` reads it back exactly.

    Success, task ids and what was loaded as ``"info"`` become columns of the group ``infos``; the
    names of tasks and observation fields become attributes, in JSON.

    Args:
        dataset: any dataset of trajectories.
        path: of the file; its folder must exist.
        progress: whether to show a bar of the rows.

    Examples:
        >>> import tempfile
        >>> import numpy as np
        >>> from llmdpd_torchrl.data import OfflineDataset, Recording, load_episodes
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
            file.attrs[TASKS_ATTRIBUTE] = json.dumps(dataset.manifest.task_table)
            file.attrs[FIELDS_ATTRIBUTE] = json.dumps(dataset.manifest.observation_layout["fields"])

    write_atomic(path, write)
