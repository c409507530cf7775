"""Recorded episodes of any source as one dataset, in the layout of everything else."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import MemoryMappedTensor, TensorDict, TensorDictBase
from tqdm.auto import tqdm

from llmdpd_torchrl.data.dataset import (
    TrajectoryDataset,
    as_transitions,
    episode_lengths,
    episode_sums,
    row_blocks,
)
from llmdpd_torchrl.data.manifest import Manifest, TaskRecord
from llmdpd_torchrl.data.recording import Recording
from llmdpd_torchrl.utils.errors import DataError
from llmdpd_torchrl.utils.files import CHECKSUMS, check_kinds, verify_checksums, write_checksums
from llmdpd_torchrl.utils.memory import check_memory

_KINDS = (".json", ".memmap")  # of the files of a mapped dataset, beside their checksums


class OfflineDataset(TrajectoryDataset):
    """Episodes that were recorded elsewhere, in the layout of :class:`TrajectoryDataset`.

    Made by :func:`~llmdpd_torchrl.data.load_episodes` or :meth:`from_recordings`. Other than
    collected data, they have ``("next", "success")`` only where the source says what success is, or
    :meth:`with_success` does; requested columns lie under ``"info"``.

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
        >>> data = OfflineDataset.from_recordings([recording])
        >>> data.tasks, data.lengths.tolist(), data.trajectory_return.tolist()
        (('line',), [1, 2], [1.0, 2.0])
        >>> data.select(data.trajectory_return > 1).transitions["step_count"].squeeze(-1).tolist()
        [0, 1]
        >>> data.replay_buffer(batch_size=4).sample().shape
        torch.Size([4])
    """

    @classmethod
    def from_recordings(
        cls,
        recordings: Iterable[Recording],
        *,
        folder: Path | None = None,
        progress: bool = False,
    ) -> OfflineDataset:
        """Put recordings of one kind of environment together.

        A recording is one task, named like it; one with ``task_ids`` holds those of its
        ``task_names``. Tasks of one name are one task.

        Args:
            recordings: one after another, each read when it is its turn.
            folder: an empty one, to write the transitions to and map them from, recording by
                recording, so that they need not fit into memory; :meth:`load_mapped` maps them
                again. Default: they are put together in memory.
            progress: whether reading them once more, for their hash, shows a bar.

        Raises:
            ConfigError: if they do not fit into memory.
            DataError: if there is no recording, or widths or further columns differ.
        """
        names: dict[str, int] = {}
        settings: dict[str, Any] = {}
        first: Recording | None = None

        def parts() -> Iterator[TensorDictBase]:
            nonlocal first
            episodes = 0
            for recording in recordings:
                first = first or recording
                _check_alike(first, recording)
                settings[recording.source] = dict(recording.attributes)
                for name in recording.task_names:
                    names.setdefault(name, len(names))
                yield _transitions(recording, names, episodes)
                episodes += len(recording.ends)

        transitions = _concatenate(parts()) if folder is None else _write_mapped(parts(), folder)
        if first is None or transitions is None:
            raise DataError("a dataset needs at least one file or recording: give one")
        size = first.observation.shape[1]
        fields = first.fields or {"state": (0, size)}
        manifest = Manifest(
            environment=str(first.attributes.get("env_id", "unknown")),
            settings=settings,
            packages={},
            task_table=list(names),
            observation_layout={
                "size": size,
                "dtype": "float32",
                "fields": {name: list(span) for name, span in fields.items()},
                "units": "the environment's",
            },
            action_size=first.action.shape[1],
            tasks=_task_records(transitions, list(names), progress=progress),
        )
        dataset = cls(manifest, transitions)
        if folder is not None:
            manifest.write(folder)
            write_checksums(folder)
            dataset.folder = folder
        return dataset

    @classmethod
    def load_mapped(
        cls, folder: Path, *, verify: bool = True, progress: bool = False
    ) -> OfflineDataset:
        """Map what :meth:`from_recordings` wrote to ``folder``.

        Args:
            folder: of the dataset.
            verify: read every file once and compare its hash; without it, only their total size.
            progress: whether that shows a bar.

        Raises:
            DataError: if a file is missing, cut short or changed.
        """
        try:
            if verify:
                verify_checksums(folder, _KINDS, progress=progress)
            else:  # files of other kinds might be unpickled
                check_kinds(folder, {*_KINDS, Path(CHECKSUMS).suffix})
            manifest = Manifest.read(folder)
            files = folder.rglob("*.memmap")
            size = TensorDict.load_memmap(folder, device=torch.device("meta")).bytes()
            if sum(path.stat().st_size for path in files) != size:  # mapping would lengthen them
                raise DataError(f"{folder}: damaged or cut short (its files have another size)")
        except (DataError, OSError, ValueError) as error:
            raise DataError(f"{error}; delete {folder} to convert the data again") from None
        dataset = cls(manifest, TensorDict.load_memmap(folder))
        dataset.folder = folder
        return dataset

    @property
    def trajectory_return(self) -> torch.Tensor:
        """Sum of the rewards of each episode: ``[E]`` float64."""
        return episode_sums(self.transitions["next", "reward"], self.lengths)

    def with_success(self, episodes: torch.Tensor) -> OfflineDataset:
        """The same dataset, with ``("next", "success")`` at the last step of ``episodes``.

        Args:
            episodes: ``[E]`` bool: which episodes may be demonstrations.
        """
        success = torch.zeros(len(self.transitions), 1, dtype=torch.bool)
        success[self.starts + self.lengths - 1, 0] = episodes
        transitions = self.transitions.copy()
        transitions["next"] = transitions["next"].copy()
        transitions["next", "success"] = success
        return self._with(transitions)

    def best(self, share: float) -> torch.Tensor:
        """``[E]`` bool: the episodes of highest return of each task, at least two."""
        best = torch.zeros(len(self.lengths), dtype=torch.bool)
        returns = self.trajectory_return
        for task in self.trajectory_task.unique():
            rows = (self.trajectory_task == task).nonzero().squeeze(-1)
            count = min(len(rows), max(2, round(share * len(rows))))
            best[rows[returns[rows].topk(count).indices]] = True
        return best

    def meets(
        self,
        *,
        min_reward: float | None = None,
        min_return: float | None = None,
    ) -> torch.Tensor:
        """``[E]`` bool: the episodes with such a reward, such a return, or else that terminate."""
        following = self.transitions["next"]
        if min_reward is not None:
            return episode_sums(following["reward"] >= min_reward, self.lengths) > 0
        if min_return is not None:
            return self.trajectory_return >= min_return
        return episode_sums(following["terminated"], self.lengths) > 0

    def with_fields(self, fields: Mapping[str, Sequence[int]], source: str) -> OfflineDataset:
        """The same dataset with names for the entries of its observations.

        Raises:
            DataError: with ``source``, if they are no index ranges of the observation.
        """
        size = self.manifest.observation_layout["size"]
        for name, span in fields.items():
            if len(span) != 2 or not 0 <= span[0] < span[1] <= size:
                raise DataError(
                    f"{source}: observation_fields.{name} is {[*span]}: give the first entry and "
                    f"the one behind the last of an observation of {size}"
                )
        layout = self.manifest.observation_layout | {"fields": {k: [*v] for k, v in fields.items()}}
        manifest = dataclasses.replace(self.manifest, observation_layout=layout)
        return type(self)(manifest, self.transitions)

    def _with(self, transitions: TensorDictBase) -> OfflineDataset:
        records = _task_records(transitions, self.manifest.task_table)
        return type(self)(dataclasses.replace(self.manifest, tasks=records), transitions)


def _concatenate(parts: Iterable[TensorDictBase]) -> TensorDictBase | None:
    """All rows in memory, without a copy if there is one part; ``None`` if there is none."""
    given = list(parts)
    if len(given) < 2:
        return given[0] if given else None
    check_memory(sum(part.bytes() for part in given), f"putting {len(given)} recordings together")
    return TensorDict.cat(given)


def _write_mapped(parts: Iterable[TensorDictBase], folder: Path) -> TensorDictBase | None:
    """The same, mapped from the files of ``TensorDict.memmap``, with one part at a time in memory.

    The first part makes the files; rows of the others are written behind its own.
    """
    first, rows = None, 0
    for part in parts:
        if first is None:
            first = part.memmap(folder)
        else:
            for key, column in part.items(include_nested=True, leaves_only=True):
                with open(first[key].filename, "ab") as file:
                    file.write(np.ascontiguousarray(column.numpy()).data)
        rows += len(part)
    if first is None:
        return None
    columns = {
        key: MemoryMappedTensor.from_filename(
            column.filename, column.dtype, torch.Size([rows, *column.shape[1:]])
        )
        for key, column in first.items(include_nested=True, leaves_only=True)
    }
    return TensorDict(columns, batch_size=[rows]).memmap_(folder)  # writes what describes them


def _check_alike(first: Recording, other: Recording) -> None:
    ours, theirs = _layout(first), _layout(other)
    for key in ours | theirs:
        if ours.get(key) != theirs.get(key):
            raise DataError(
                f"{other.source}: {key} is {theirs.get(key, 'absent')}, that of {first.source} "
                f"{ours.get(key, 'absent')}; load data of different kinds one by one"
            )


def _layout(recording: Recording) -> dict[str, str]:
    """Types and shapes of a row of the columns that may differ from recording to recording."""
    columns = {"observation": recording.observation, "action": recording.action}
    columns |= {f"infos/{key}": column for key, column in recording.infos.items()}
    if recording.success is not None:
        columns["success"] = recording.success
    return {key: f"{column.dtype}{[*column.shape[1:]]}" for key, column in columns.items()}


def _transitions(recording: Recording, names: Mapping[str, int], episodes: int) -> TensorDictBase:
    """One recording as transitions, with ``trajectory_id`` counted from ``episodes``."""
    lengths = recording.lengths
    steps = np.arange(len(recording.observation))
    columns = {
        "observation": recording.observation,
        "next_observation": recording.next_observation,
        "action": recording.action,
        "reward": recording.reward,
        "terminated": recording.terminated,
        "truncated": recording.truncated,
        "task_id": np.array([names[name] for name in recording.task_names])[recording.task_ids],
        "trajectory_id": np.repeat(episodes + np.arange(len(lengths)), lengths),
        "step_count": steps - np.repeat(recording.ends - lengths + 1, lengths),
    }
    if recording.success is not None:
        columns["success"] = recording.success
    transitions = as_transitions({key: _column(column) for key, column in columns.items()})
    for key, values in recording.infos.items():
        transitions["info", key] = _column(values)
    return transitions


def _column(array: NDArray[Any]) -> torch.Tensor:
    """An array as a tensor, ``[N]`` as ``[N, 1]``."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.unsqueeze(-1) if tensor.ndim == 1 else tensor


def _task_records(
    transitions: TensorDictBase, names: Sequence[str], *, progress: bool = False
) -> dict[str, TaskRecord]:
    """What a manifest says of each task; success is not a number where nothing says what it is."""
    lengths = episode_lengths(transitions)
    task = transitions["task_id"].squeeze(-1)[lengths.cumsum(0) - lengths]
    returns = episode_sums(transitions["next", "reward"], lengths)
    knows = ("next", "success") in transitions.keys(include_nested=True)
    success = episode_sums(transitions["next", "success"], lengths) > 0 if knows else None
    reached = [math.nan] * len(lengths) if success is None else success.tolist()
    episodes: dict[int, list[dict[str, Any]]] = {task_id: [] for task_id in task.unique().tolist()}
    for owner, length, value, reaches in zip(
        task.tolist(), lengths.tolist(), returns.tolist(), reached, strict=True
    ):
        episode = {"length": length, "return": round(value, 4), "success": reaches}
        episodes[owner].append(episode)
    records = {}
    total = len(transitions) * len(episodes)
    with tqdm(total=total, desc="hashing", unit="row", delay=1, disable=not progress) as bar:
        for task_id, found in episodes.items():
            digest = _digest(transitions, task_id if len(episodes) > 1 else None, bar)
            records[names[task_id]] = TaskRecord.from_episodes("", digest, found)
    return records


def _digest(transitions: TensorDictBase, task_id: int | None, bar: tqdm[Any]) -> str:
    """SHA-256 of the columns of a task's rows, one after another; ``None``: all rows are."""
    digest = hashlib.sha256()
    # Not of trajectory_id, which depends on what else is loaded.
    keys = sorted((k for k in transitions.keys(True, True) if k != "trajectory_id"), key=str)
    columns = {key: transitions[key].numpy() for key in keys}
    owner = transitions["task_id"].squeeze(-1).numpy()
    for key, column in columns.items():
        for block in row_blocks(len(column)):
            part = column[block] if task_id is None else column[block][owner[block] == task_id]
            digest.update(np.ascontiguousarray(part).data)
            if key == keys[-1]:
                bar.update(block.stop - block.start)
    return digest.hexdigest()
