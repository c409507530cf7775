"""Whole datasets as one of TorchRL's dataset buffers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tensordict import TensorDictBase
from torchrl.data import ImmutableDatasetWriter, TensorStorage
from torchrl.data.datasets.common import BaseDatasetExperienceReplay
from torchrl.data.replay_buffers import RandomSampler
from torchrl.envs.transforms import Transform

from llmdpd_torchrl.data.memmap import expect_random_reads
from llmdpd_torchrl.utils.errors import DataError

__all__ = ["EpisodeExperienceReplay"]


class EpisodeExperienceReplay(BaseDatasetExperienceReplay):
    """A replay buffer of all transitions of a dataset, which refuses writing.

    Made by :meth:`TrajectoryDataset.replay_buffer
    <llmdpd_torchrl.data.TrajectoryDataset.replay_buffer>`. It holds no copy of the data, which may
    be in memory or mapped from files. There is no prefetching: a batch drawn ahead of time could
    not be resumed exactly.

    Args:
        transitions: ``[N]``.
        batch_size: rows a sample, drawn uniformly with replacement.
        folder: of the files that ``transitions`` are mapped from, if they are.
        transforms: appended in order; they see what is sampled.
        seed: of the sampler; ``None`` uses torch's global generator.

    Examples:
        >>> from tensordict import TensorDict
        >>> data = TensorDict({"observation": torch.arange(6.0).view(3, 2)}, [3])
        >>> buffer = EpisodeExperienceReplay(data, batch_size=5, seed=0)
        >>> len(buffer), buffer.sample()["observation"].shape
        (3, torch.Size([5, 2]))
    """

    def __init__(
        self,
        transitions: TensorDictBase,
        batch_size: int,
        *,
        folder: Path | None = None,
        transforms: Sequence[Transform] = (),
        seed: int | None = None,
    ) -> None:
        self.root = None if folder is None else folder.parent
        self._folder = folder
        expect_random_reads(transitions)
        super().__init__(
            storage=TensorStorage(transitions),
            sampler=RandomSampler(),
            writer=ImmutableDatasetWriter(),
            batch_size=batch_size,
            prefetch=None,
        )
        for transform in transforms:
            self.append_transform(transform)
        if seed is not None:
            self.set_rng(torch.Generator().manual_seed(seed))

    @property
    def data_path(self) -> Path:
        """The folder that the data are mapped from, which ``delete()`` removes.

        Raises:
            DataError: if they are in memory.
        """
        if self._folder is None:
            raise DataError("these data are in memory, not in a folder: load them with root=FOLDER")
        return self._folder

    @property
    def data_path_root(self) -> Path:
        """The folder of all converted data, that was given as ``root``."""
        return self.data_path.parent

    def _is_downloaded(self) -> bool:
        return self._folder is None or self._folder.is_dir()
