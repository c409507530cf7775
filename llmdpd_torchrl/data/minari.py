"""Minari datasets in any of its storage formats, read by Minari itself."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from llmdpd_torchrl.data.dataset import TrajectoryDataset
from llmdpd_torchrl.data.recording import ActionRange, Recording
from llmdpd_torchrl.utils.errors import (
    ConfigError,
    DataError,
    first_line,
    import_optional,
    quiet_hub,
)
from llmdpd_torchrl.utils.memory import check_memory
from llmdpd_torchrl.utils.spaces import check_vectors, flatten, named_fields


def read_minari(
    dataset_id: str,
    *,
    task_key: str | None = None,
    infos: Sequence[str] = (),
    action_range: ActionRange | None = None,
) -> Recording:
    """Read a local Minari dataset, after downloading it if necessary.

    Of a dataset of :func:`export_minari`, the tasks are those that it names.

    An episode has one observation more than it has steps, so every row has its true successor; an
    episode without an end is truncated in its last row. A dictionary of vectors as observation is
    concatenated in the order of the space, with the keys as the names of the observation's fields.
    Values must be finite and actions within their range, as in every
    :class:`~llmdpd_torchrl.data.Recording`.

    Args:
        dataset_id: such as ``"mujoco/hopper/medium-v0"``.
        task_key: the entry of the episodes' ``infos`` with the task id of each step; default: the
            dataset is one task.
        infos: further ``infos`` to load; the first entry of those with one entry more than steps
            belongs to the reset and is left out.
        action_range: default: the bounds of the action space.

    Raises:
        ConfigError: if Minari is not installed, or the dataset does not fit into the memory.
        DataError: if there is no such dataset, it cannot be read, or it does not consist of
            vectors.
    """
    source = f"Minari dataset {dataset_id}"
    with _opened(dataset_id) as dataset:
        row = sum(
            spaces.flatdim(space) * np.dtype(space.dtype or np.float64).itemsize
            for space in (dataset.observation_space, dataset.action_space)
            if space.is_np_flattenable
        )
        check_memory(2 * int(dataset.total_steps) * row, source)  # the episodes and a copy
        episodes = list(dataset.iterate_episodes())
        words = dataset.storage.metadata.get("task_texts")
    names = tuple(json.loads(words)) if words and task_key is None else ()
    task_key = "task_id" if names else task_key
    if not episodes:
        raise DataError(f"{source}: has no episode; use one with data")
    if not isinstance(dataset.action_space, spaces.Box):
        raise DataError(f"{source}: actions are {dataset.action_space}, they must be vectors (Box)")
    if action_range is None:
        action_range = _bounds(dataset.action_space, source)
    check_vectors(space := dataset.observation_space, source)
    observations = [flatten(e.observations, space, batch=True) for e in episodes]
    lengths = [len(episode.rewards) for episode in episodes]
    for episode, observation, length in zip(episodes, observations, lengths, strict=True):
        if len(observation) != length + 1:
            raise DataError(
                f"{source}: episode {episode.id} has {len(observation)} observations and "
                f"{length} steps; there must be one more observation than steps"
            )
    if sum(lengths) != dataset.total_steps:
        raise DataError(
            f"{source}: its metadata say {dataset.total_steps} steps, its episodes have "
            f"{sum(lengths)}; download it again"
        )
    has_success = all("success" in (episode.infos or {}) for episode in episodes)
    terminated = np.concatenate([episode.terminations for episode in episodes]).astype(np.bool_)
    truncated = np.concatenate([episode.truncations for episode in episodes]).astype(np.bool_)
    last = np.cumsum(lengths) - 1
    truncated[last] |= ~terminated[last]
    environment = getattr(dataset.env_spec, "id", None)
    return Recording(
        name=dataset_id,
        source=source,
        observation=np.concatenate([observation[:-1] for observation in observations]),
        next_observation=np.concatenate([observation[1:] for observation in observations]),
        action=np.concatenate([episode.actions for episode in episodes]),
        reward=np.concatenate([episode.rewards for episode in episodes]),
        terminated=terminated,
        truncated=truncated,
        success=_info_column(episodes, "success", source) if has_success else None,
        task_ids=None if task_key is None else _info_column(episodes, task_key, source),
        task_names=names,
        infos={key: _info_column(episodes, key, source) for key in infos},
        fields=named_fields(space),
        attributes={"env_id": environment} if environment else {},
        action_range=action_range,
    )


def export_minari(
    dataset: TrajectoryDataset,
    dataset_id: str,
    *,
    texts: Mapping[str, str] | None = None,
    environment: str | None = None,
) -> None:
    """Write a dataset as a local one of Minari's, which :func:`read_minari` reads back.

    Task ids and success are columns of the episodes' infos; the texts of the tasks are in the
    metadata, under ``task_texts``, in the order of the ids.

    Args:
        dataset: any dataset of trajectories.
        dataset_id: a new one, such as ``"corners/left-v0"``.
        texts: by task, its words; default: the tasks' names.
        environment: id of the Gymnasium environment; default: the dataset's own, if it has one.

    Raises:
        ConfigError: if Minari is not installed, or has such a dataset.
        DataError: if Minari refuses it.
    """
    minari = import_optional("minari", "an export to Minari", "minari")
    if dataset_id in minari.list_local_datasets():
        raise ConfigError(f"Minari has a local dataset {dataset_id} already: choose another id")
    buffers = []
    for number in range(len(dataset.lengths)):
        steps = dataset.trajectory(number)
        following = steps["next"]
        last = following["observation"][-1:]
        success = following.get("success", None)
        infos = {"task_id": _with_reset(steps["task_id"])}
        if success is not None:
            infos["success"] = _with_reset(success)
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                observations=torch.cat([steps["observation"], last]).numpy(),
                actions=steps["action"].numpy(),
                rewards=following["reward"].squeeze(-1).numpy(),
                terminations=following["terminated"].squeeze(-1).numpy(),
                truncations=following["truncated"].squeeze(-1).numpy(),
                infos=infos,
            )
        )
    manifest = dataset.manifest
    wide = manifest.observation_layout["size"], manifest.action_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for authors, algorithms and code that are not named
        try:
            found = minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                env=environment,
                observation_space=spaces.Box(-np.inf, np.inf, (wide[0],), np.float32),
                action_space=spaces.Box(-1.0, 1.0, (wide[1],), np.float32),
            )
            words = [(texts or {}).get(name, name) for name in manifest.task_table]
            found.storage.update_metadata({"task_texts": json.dumps(words)})
        except Exception as error:  # of Minari and its backends
            raise DataError(
                f"Minari dataset {dataset_id}: cannot be written ({type(error).__name__}: "
                f"{first_line(error)})"
            ) from error


def _with_reset(column: torch.Tensor) -> NDArray[Any]:
    """A column ``[T, 1]`` as ``[T + 1]``: Minari's infos begin with those of the reset."""
    flat = column.squeeze(-1)
    return torch.cat([flat[:1] & False if flat.dtype == torch.bool else flat[:1], flat]).numpy()


def minari_metadata_file(dataset_id: str) -> Path:
    """The metadata file of a dataset, which Minari writes last; downloaded if necessary."""
    with _opened(dataset_id) as dataset:
        return Path(dataset.storage.data_path) / "metadata.json"


@contextlib.contextmanager
def _opened(dataset_id: str) -> Iterator[Any]:
    """The dataset, downloaded if it is not local; errors of Minari in the block become one line."""
    minari = import_optional("minari", "a Minari dataset", "minari")
    try:
        with quiet_hub():
            found = minari.load_dataset(dataset_id, download=True)
        yield found
    except ConfigError:
        raise
    except Exception as error:  # of Minari, its backends or the network
        raise DataError(
            f"Minari dataset {dataset_id}: cannot be loaded ({type(error).__name__}: "
            f"{first_line(error)}); compare `minari list local` and `minari list remote`, or "
            "download it by hand"
        ) from None


def _bounds(space: spaces.Box, source: str) -> ActionRange:
    if not np.isfinite([space.low, space.high]).all():
        raise DataError(
            f"{source}: the action space {space} has no finite range; give action_range"
        )
    return space.low.tolist(), space.high.tolist()


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
