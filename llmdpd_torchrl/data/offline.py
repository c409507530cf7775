"""Recorded episodes of any source as one dataset, in the layout of everything else."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torchrl.data import ImmutableDatasetWriter, TensorDictReplayBuffer, TensorStorage
from torchrl.data.replay_buffers import RandomSampler
from torchrl.envs.transforms import Transform

from llmdpd_torchrl.data.dataset import TrajectoryDataset
from llmdpd_torchrl.data.manifest import Manifest, TaskRecord
from llmdpd_torchrl.data.recording import Recording
from llmdpd_torchrl.data.tasks import TaskTable
from llmdpd_torchrl.errors import DataError

__all__ = ["OfflineDataset"]


class OfflineDataset(TrajectoryDataset):
    """Episodes that were recorded elsewhere, in the layout of :class:`TrajectoryDataset`.

    Made by :func:`~llmdpd_torchrl.data.load_episodes` or :meth:`from_recordings`. Other than
    collected data, they have ``("next", "success")`` only where the source says what success is, or
    :meth:`with_success` does; further columns that were asked for lie under ``"info"``.

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
    def from_recordings(cls, recordings: Sequence[Recording]) -> OfflineDataset:
        """Put recordings of one kind of environment together.

        A recording is one task, named like it; one with ``task_ids`` holds those of its
        ``task_names``. Tasks of one name are one task.

        Raises:
            DataError: if there is no recording, or widths or further columns differ.
        """
        if not recordings:
            raise DataError("a dataset needs at least one file or recording: give one")
        first = recordings[0]
        for other in recordings[1:]:
            for key in ("observation", "action"):
                ours, theirs = getattr(first, key).shape[1], getattr(other, key).shape[1]
                if ours != theirs:
                    raise DataError(
                        f"{other.source}: {key} is {theirs} wide, that of {first.source} {ours}; "
                        "load data of different environments one by one"
                    )
            if set(other.infos) != set(first.infos):
                raise DataError(
                    f"{other.source}: has infos {sorted(other.infos)}, {first.source} "
                    f"{sorted(first.infos)}; ask for columns that all have"
                )
        names = [name for recording in recordings for name in recording.task_names]
        table = TaskTable(tuple(dict.fromkeys(names)))
        parts, episodes = [], 0
        for recording in recordings:
            part = _transitions(recording, table)
            part["trajectory_id"] += episodes
            episodes += len(recording.ends)
            parts.append(part)
        transitions = TensorDict.cat(parts)
        size = first.observation.shape[1]
        fields = first.fields or {"state": (0, size)}
        manifest = Manifest(
            environment=str(first.attributes.get("env_id", "unknown")),
            settings={recording.source: dict(recording.attributes) for recording in recordings},
            packages={},
            task_table=list(table.names),
            observation_layout={
                "size": size,
                "dtype": "float32",
                "fields": {name: list(span) for name, span in fields.items()},
                "units": "the environment's",
            },
            action_size=first.action.shape[1],
            tasks=_task_records(transitions, table.names),
        )
        return cls(manifest, transitions)

    @property
    def trajectory_success(self) -> torch.Tensor:
        """Whether each episode reaches success at any step: ``[E]`` bool.

        Raises:
            DataError: if nothing says what success is.
        """
        if ("next", "success") not in self.transitions.keys(include_nested=True):
            raise DataError(
                f"{self.manifest.environment}: the episodes carry no success flag; say which ones "
                "count with with_success(), e.g. those above some return"
            )
        return super().trajectory_success

    @property
    def trajectory_return(self) -> torch.Tensor:
        """Sum of the rewards of each episode: ``[E]`` float64."""
        reward = self.transitions["next", "reward"].squeeze(-1).double()
        owner = torch.arange(len(self.lengths)).repeat_interleave(self.lengths)
        return torch.zeros(len(self.lengths), dtype=torch.float64).index_add(0, owner, reward)

    def select(self, episodes: torch.Tensor) -> OfflineDataset:
        """A dataset of some of the episodes, with the same task table.

        Args:
            episodes: ``[E]`` bool, or indices ``[n]`` int64, for instance those of training tasks.
        """
        chosen = torch.zeros(len(self.lengths), dtype=torch.bool)
        chosen[episodes] = True
        if not chosen.any():
            raise DataError("no episode is selected: a dataset needs at least one")
        lengths = self.lengths[chosen]
        rows = chosen.repeat_interleave(self.lengths)
        transitions = self.transitions[rows]
        owner = torch.arange(len(lengths)).repeat_interleave(lengths)
        transitions["trajectory_id"] = owner.unsqueeze(-1)
        return self._with(transitions)

    def with_success(self, episodes: torch.Tensor) -> OfflineDataset:
        """The same dataset, with ``("next", "success")`` at the last step of ``episodes``.

        Args:
            episodes: ``[E]`` bool: which episodes may be shown as demonstrations.
        """
        success = torch.zeros(len(self.transitions), 1, dtype=torch.bool)
        success[self.starts + self.lengths - 1, 0] = episodes
        transitions = self.transitions.copy()
        transitions["next"] = transitions["next"].copy()
        transitions["next", "success"] = success
        return self._with(transitions)

    def _with(self, transitions: TensorDictBase) -> OfflineDataset:
        records = _task_records(transitions, self.manifest.task_table)
        return type(self)(dataclasses.replace(self.manifest, tasks=records), transitions)

    def replay_buffer(
        self,
        batch_size: int,
        *,
        transforms: Sequence[Transform] = (),
        seed: int | None = None,
        device: torch.device | str | None = None,
    ) -> TensorDictReplayBuffer:
        """A replay buffer that refuses writing and, on the data's device, holds no copy of them.

        Args:
            batch_size: rows a sample, drawn uniformly with replacement.
            transforms: appended in order; they see what is sampled.
            seed: of the sampler; ``None`` uses torch's global generator.
            device: to hold the data on; default: where they are.
        """
        stored = self.transitions if device is None else self.transitions.to(device)
        buffer = TensorDictReplayBuffer(
            storage=TensorStorage(stored),
            sampler=RandomSampler(),
            writer=ImmutableDatasetWriter(),
            batch_size=batch_size,
            prefetch=None,
        )
        for transform in transforms:
            buffer.append_transform(transform)
        if seed is not None:
            buffer.set_rng(torch.Generator().manual_seed(seed))
        return buffer


def _transitions(recording: Recording, table: TaskTable) -> TensorDictBase:
    """One recording as transitions, with ``trajectory_id`` counted from 0."""
    rows, lengths = len(recording.observation), recording.lengths
    starts = np.repeat(recording.ends - lengths + 1, lengths)
    ids = np.array([table.index(name) for name in recording.task_names])
    terminated, truncated = _column(recording.terminated), _column(recording.truncated)
    transitions = TensorDict(
        {
            "observation": torch.from_numpy(recording.observation),
            "action": torch.from_numpy(recording.action),
            "task_id": _column(ids[recording.task_ids]),
            "trajectory_id": _column(np.repeat(np.arange(len(lengths)), lengths)),
            "step_count": _column(np.arange(rows) - starts),
            "next": {
                "observation": torch.from_numpy(recording.next_observation),
                "reward": _column(recording.reward),
                "terminated": terminated,
                "truncated": truncated,
                "done": terminated | truncated,
            },
        },
        batch_size=[rows],
    )
    if recording.success is not None:
        transitions["next", "success"] = _column(recording.success)
    for key, values in recording.infos.items():
        transitions["info", key] = _column(values) if values.ndim == 1 else torch.as_tensor(values)
    return transitions


def _column(array: NDArray[Any]) -> torch.Tensor:
    """``[N]`` as a tensor ``[N, 1]``."""
    return torch.from_numpy(np.ascontiguousarray(array)).unsqueeze(-1)


def _task_records(transitions: TensorDictBase, names: Sequence[str]) -> dict[str, TaskRecord]:
    """What a manifest says of each task; success is not a number where nothing says what it is."""
    knows = ("next", "success") in transitions.keys(include_nested=True)
    records = {}
    for task_id in transitions["task_id"].unique().tolist():
        part = transitions[transitions["task_id"].squeeze(-1) == task_id]
        digest = hashlib.sha256()
        for key in sorted(part.keys(True, True), key=str):
            if key != "trajectory_id":  # which depends on what else is loaded
                digest.update(part[key].contiguous().numpy().tobytes())
        _, lengths = part["trajectory_id"].squeeze(-1).unique_consecutive(return_counts=True)
        episodes = [
            {
                "length": len(episode),
                "return": round(float(episode["next", "reward"].double().sum()), 4),
                "success": bool(episode["next", "success"].any()) if knows else math.nan,
            }
            for episode in part.split(lengths.tolist())
        ]
        records[names[task_id]] = TaskRecord(
            file="",
            sha256=digest.hexdigest(),
            transitions=len(part),
            success_rate=sum(episode["success"] for episode in episodes) / len(episodes),
            mean_return=sum(episode["return"] for episode in episodes) / len(episodes),
            episodes=episodes,
        )
    return records
