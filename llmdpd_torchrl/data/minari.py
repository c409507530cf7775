"""Minari datasets, in any of its storage formats, read and written by Minari itself."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from tqdm.auto import tqdm

from llmdpd_torchrl.data.dataset import TrajectoryDataset, row_blocks
from llmdpd_torchrl.data.recording import Recording
from llmdpd_torchrl.utils.errors import ConfigError, DataError, first_line
from llmdpd_torchrl.utils.processes import check_memory

__all__ = ["export_minari", "minari_metadata_file", "read_minari"]

_TASKS = "llmdpd_task_table"
_FIELDS = "llmdpd_observation_fields"


def read_minari(
    dataset_id: str,
    *,
    name: str | None = None,
    download: bool = True,
    task_key: str | None = None,
    infos: Sequence[str] = (),
    action_range: tuple[float, float] | None = None,
) -> Recording:
    """Read a Minari dataset of this machine, or of Minari's server if it is not here yet.

    An episode has one observation more than it has steps, so every row has its true successor; the
    last row of an episode that says of no row that it ends is truncated. An observation that is a
    dictionary of vectors is their concatenation in the order of the space, with the keys as the
    names of the observation's fields.

    Args:
        dataset_id: such as ``"mujoco/hopper/medium-v0"``.
        name: what its tasks are called; default: the id.
        download: whether to ask the server for what is not here.
        task_key: which of the episodes' ``infos`` says what task a step belongs to; default:
            ``task_id`` in datasets that :func:`export_minari` wrote; otherwise it is one task.
        infos: further ``infos`` to keep; their first entry, if they have one more than there are
            steps, belongs to the reset and is left out.
        action_range: default: the bounds of the action space.

    Raises:
        ConfigError: if Minari is not installed, or the dataset does not fit into the memory.
        DataError: if there is no such dataset, it can not be read, or it is not of vectors.
    """
    source = f"Minari dataset {dataset_id}"
    with _minaris_errors(source):
        dataset = _import_minari().load_dataset(dataset_id, download=download)
        _check_memory(dataset, source)
        episodes = list(dataset.iterate_episodes())
        metadata = dataset.storage.metadata
    if not episodes:
        raise DataError(f"{source}: holds no episode; use one with data")
    if not isinstance(dataset.action_space, spaces.Box):
        raise DataError(f"{source}: actions are {dataset.action_space}, they must be vectors (Box)")
    if action_range is None:
        action_range = _bounds(dataset.action_space, source)
    names = metadata.get(_TASKS, ())
    if names and task_key is None:
        task_key = "task_id"
    observations = [_flatten(e.observations, dataset.observation_space, source) for e in episodes]
    for episode, observation in zip(episodes, observations, strict=True):
        if len(observation) != len(episode.rewards) + 1:
            raise DataError(
                f"{source}: episode {episode.id} has {len(observation)} observations and "
                f"{len(episode.rewards)} steps; there must be one more observation than steps"
            )
    steps = sum(len(episode.rewards) for episode in episodes)
    if steps != dataset.total_steps:
        raise DataError(
            f"{source}: its metadata say {dataset.total_steps} steps, its episodes have {steps}; "
            "download it again"
        )
    wanted = {key: key for key in infos}
    if task_key is not None:
        wanted[_TASKS] = task_key
    if all("success" in (episode.infos or {}) for episode in episodes):
        wanted["success"] = "success"
    columns = {key: _info_column(episodes, info, source) for key, info in wanted.items()}
    terminated = np.concatenate([episode.terminations for episode in episodes]).astype(np.bool_)
    last = np.cumsum([len(episode.rewards) for episode in episodes]) - 1
    truncated = np.concatenate([episode.truncations for episode in episodes]).astype(np.bool_)
    truncated[last] |= ~terminated[last]
    environment = getattr(dataset.env_spec, "id", None) or metadata.get("llmdpd_environment")
    return Recording(
        name=dataset_id if name is None else name,
        source=source,
        observation=np.concatenate([observation[:-1] for observation in observations]),
        next_observation=np.concatenate([observation[1:] for observation in observations]),
        action=np.concatenate([episode.actions for episode in episodes]),
        reward=np.concatenate([episode.rewards for episode in episodes]),
        terminated=terminated,
        truncated=truncated,
        success=columns.pop("success", None),
        task_ids=columns.pop(_TASKS, None),
        task_names=tuple(names),
        infos=columns,
        fields=metadata.get(_FIELDS) or _fields(dataset.observation_space),
        attributes={"env_id": environment} if environment else {},
        action_range=action_range,
    )


def minari_metadata_file(dataset_id: str) -> Path:
    """The file that Minari writes last into a dataset, which is downloaded if it is not here yet.

    Args:
        dataset_id: such as ``"mujoco/hopper/medium-v0"``.

    Raises:
        ConfigError: if Minari is not installed.
        DataError: if there is no such dataset.
    """
    with _minaris_errors(f"Minari dataset {dataset_id}"):
        dataset = _import_minari().load_dataset(dataset_id, download=True)
        return Path(dataset.storage.data_path) / "metadata.json"


def _check_memory(dataset: Any, source: str) -> None:
    """Before Minari reads all episodes: what its metadata tell of, and our copy of it."""
    row = sum(
        spaces.flatdim(space) * np.dtype(space.dtype or np.float64).itemsize
        for space in (dataset.observation_space, dataset.action_space)
        if space.is_np_flattenable
    )
    check_memory(2 * int(dataset.total_steps) * row, source)


@contextlib.contextmanager
def _minaris_errors(source: str) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # Minari, its backends and the network raise anything at all
        raise DataError(
            f"{source}: can not be loaded ({type(error).__name__}: {first_line(error)}); compare "
            "`minari list local` and `minari list remote`, or download it by hand"
        ) from None


def export_minari(
    dataset: TrajectoryDataset,
    dataset_id: str,
    *,
    description: str | None = None,
    data_format: str | None = None,
    progress: bool = True,
) -> None:
    """Write a dataset as a local Minari dataset; :func:`read_minari` reads it back exactly.

    Success, task ids and what was loaded as ``"info"`` become ``infos`` of the episodes. Minari
    keeps one observation more than steps, so every row's successor must be the next row's
    observation, as it is in data of whole episodes.

    Args:
        dataset: any dataset of trajectories.
        dataset_id: that does not exist yet, such as ``"metaworld/reach-v0"``; Minari chooses the
            folder (the variable ``MINARI_DATASETS_PATH``).
        description: in words.
        data_format: one of Minari's; default: its default.
        progress: whether to show a bar.

    Raises:
        ConfigError: if Minari is not installed.
        DataError: if an episode has a gap, or Minari refuses the id or format.
    """
    minari = _import_minari()
    size, actions = dataset.manifest.observation_layout["size"], dataset.manifest.action_size
    _check_successors(dataset)
    episodes = tqdm(
        (_episode(minari, dataset, index) for index in range(len(dataset.lengths))),
        total=len(dataset.lengths),
        desc=dataset_id,
        unit="episode",
        delay=1,
        disable=not progress,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about an author, a code link, ...
            written = minari.create_dataset_from_buffers(
                dataset_id,
                buffer=episodes,
                observation_space=spaces.Box(-np.inf, np.inf, (size,), np.float32),
                action_space=spaces.Box(-1.0, 1.0, (actions,), np.float32),
                description=description,
                data_format=data_format,
            )
    except (ValueError, ImportError) as error:
        raise DataError(f"Minari dataset {dataset_id}: {first_line(error)}") from None
    written.storage.update_metadata(
        {
            _TASKS: list(dataset.manifest.task_table),
            _FIELDS: dict(dataset.manifest.observation_layout["fields"]),
            "llmdpd_environment": dataset.manifest.environment,
        }
    )


def _check_successors(dataset: TrajectoryDataset) -> None:
    """Refuse a dataset with gaps before anything is written."""
    observation, owner = dataset.transitions["observation"], dataset.transitions["trajectory_id"]
    successor = dataset.transitions["next", "observation"]
    for block in row_blocks(len(observation) - 1):
        after = slice(block.start + 1, block.stop + 1)
        gaps = (successor[block] != observation[after]).any(-1)
        gaps &= (owner[block] == owner[after]).squeeze(-1)
        if gaps.any():
            row = block.start + int(gaps.nonzero()[0])
            raise DataError(
                f"episode {int(owner[row])}: a successor is not the "
                "next observation, which Minari can not hold; export to D4RL's layout instead"
            )


def _episode(minari: ModuleType, dataset: TrajectoryDataset, index: int) -> Any:
    data = dataset.trajectory(index)
    following = data["next"]
    # With their last axis of 1: Minari's Arrow format writes infos [T] that it can not read.
    columns = {"task_id": data["task_id"]}
    success = following.get("success", default=None)
    if success is not None:
        columns["success"] = success
    info = data.get("info", default=None)
    if info is not None:
        columns |= dict(info.items())
    return minari.data_collector.EpisodeBuffer(
        observations=np.concatenate(
            [data["observation"].numpy(), following["observation"][-1:].numpy()]
        ),
        actions=data["action"].numpy(),
        rewards=following["reward"].squeeze(-1).numpy(),
        terminations=following["terminated"].squeeze(-1).numpy(),
        truncations=following["truncated"].squeeze(-1).numpy(),
        # Minari's own collector records an info at the reset as well.
        infos={key: np.concatenate([v[:1] * 0, v]) for key, v in _numpy(columns).items()},
    )


def _numpy(columns: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    return {key: column.numpy() for key, column in columns.items()}


def _import_minari() -> ModuleType:
    try:
        import minari
        import minari.data_collector
    except ImportError as error:
        raise ConfigError(
            f"Minari datasets need the package minari ({error}): "
            "pip install 'llmdpd_torchrl[minari]'"
        ) from None
    return minari


def _bounds(space: spaces.Box, source: str) -> tuple[float, float]:
    low, high = float(space.low.min()), float(space.high.max())
    if (space.low != low).any() or (space.high != high).any() or not np.isfinite(high - low):
        raise DataError(
            f"{source}: the action space {space} has not one finite range; give action_range"
        )
    return low, high


def _flatten(observations: Any, space: spaces.Space[Any], source: str) -> NDArray[Any]:
    """Observations ``[T + 1, ...]`` of an episode as ``[T + 1, O]``."""
    if isinstance(space, spaces.Dict):
        parts = [_flatten(observations[key], part, source) for key, part in space.items()]
        return np.concatenate(parts, axis=-1)
    if not isinstance(space, spaces.Box):
        raise DataError(
            f"{source}: observations are {type(space).__name__}, they must be vectors (Box), or a "
            "Dict of them"
        )
    return np.asarray(observations).reshape(len(observations), -1)


def _fields(space: spaces.Space[Any]) -> dict[str, tuple[int, int]] | None:
    """Index ranges of the vectors in a dictionary observation."""
    if not isinstance(space, spaces.Dict):
        return None
    fields, start = {}, 0
    for key, part in space.items():
        end = start + spaces.flatdim(part)
        fields[str(key)] = (start, end)
        start = end
    return fields


def _info_column(episodes: Sequence[Any], key: str, source: str) -> NDArray[Any]:
    parts = []
    for episode in episodes:
        column = (episode.infos or {}).get(key)
        if not isinstance(column, np.ndarray) or column.dtype.kind not in "fiub":
            known = ", ".join(sorted(episode.infos or {})) or "none"
            raise DataError(
                f"{source}: episode {episode.id} has no numbers as info {key!r}; it has {known}"
            )
        parts.append(column[len(column) - len(episode.rewards) :])
    return np.concatenate(parts)
