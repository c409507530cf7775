"""Datasets as TorchRL replay buffers, and their batches on a device."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import MemoryMappedTensor, TensorDictBase
from torchrl.data import ImmutableDatasetWriter, ReplayBuffer, TensorStorage
from torchrl.data.datasets.common import BaseDatasetExperienceReplay
from torchrl.data.replay_buffers import RandomSampler, Storage
from torchrl.envs.transforms import Transform

from llmdpd_torchrl.utils.errors import ConfigError, DataError, notice


class EpisodeExperienceReplay(BaseDatasetExperienceReplay):
    """All transitions of a dataset as a read-only replay buffer: it samples transitions.

    Made by :meth:`TrajectoryDataset.replay_buffer
    <llmdpd_torchrl.data.TrajectoryDataset.replay_buffer>`. It holds no copy of the data, which may
    be in memory or mapped from files. There is no prefetching: a batch sampled ahead of its use
    could not be resumed exactly.

    Args:
        transitions: ``[N]``.
        batch_size: rows per sample, uniformly with replacement.
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
        _expect_random_reads(transitions)
        super().__init__(
            storage=TensorStorage(transitions),
            sampler=HostSampler(),
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


def _expect_random_reads(columns: TensorDictBase) -> None:
    """Tell the system that rows of mapped columns will be read in no order.

    Otherwise it reads up to megabytes around each row, which have to make way for others at once
    where the columns are larger than the memory. Does nothing to columns in memory, and where the
    C library has no ``madvise``.
    """
    madvise = getattr(ctypes.CDLL(None), "madvise", None) if hasattr(mmap, "MADV_RANDOM") else None
    if madvise is None:
        return
    for column in columns.values(True, True):
        if isinstance(column, MemoryMappedTensor):
            start = column.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE  # a part may begin anywhere
            size = column.data_ptr() + column.nbytes - start
            # Advice: where it is not taken, reading is slower and nothing else.
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_RANDOM)


class HostSampler(RandomSampler):
    """Uniform sampling with replacement, with rows sampled on the CPU, wherever the data are.

    So one seed gives one order of rows on every device. On the CPU it is TorchRL's sampler.
    """

    def sample(self, storage: Storage, batch_size: int) -> tuple[torch.Tensor, dict]:
        """Rows ``[batch_size]`` int64 of a storage."""
        if not len(storage):
            raise RuntimeError("the replay buffer is empty")
        return torch.randint(len(storage), (batch_size,), generator=self._rng), {}


def place_buffer(replay_buffer: ReplayBuffer, device: torch.device) -> bool:
    """Move a uniformly sampled buffer, with its transforms, to a GPU if there is room.

    Returns:
        Whether batches are now sampled on ``device``. They are not if the sampler is not uniform
        or, which is noticed, the data need more than half of its free memory.
    """
    if device.type == "cpu":
        return True
    is_uniform = type(replay_buffer.sampler) in (RandomSampler, HostSampler)
    if device.type != "cuda" or not is_uniform or replay_buffer.storage.ndim != 1:
        return False
    data = replay_buffer.storage.get(slice(None))
    if data.device != device:
        size, free = data.bytes(), torch.cuda.mem_get_info(device)[0]
        if 2 * size > free:
            notice(
                f"the replay buffer needs {size / 2**30:.1f} GiB, more than half of the "
                f"{free / 2**30:.1f} GiB that are free on {device}: batches are copied there"
            )
            return False
        replay_buffer.set_storage(TensorStorage(data.to(device)))
    replay_buffer.set_sampler(HostSampler())
    replay_buffer.set_rng(getattr(replay_buffer, "_rng", None))
    replay_buffer.transform.to(device)
    return True


class BatchSource:
    """Batches of a replay buffer on a device, and the state of its sampler and generator.

    Batches of a buffer that :func:`place_buffer` leaves on the host are pinned and copied
    asynchronously.
    """

    def __init__(self, replay_buffer: ReplayBuffer, device: torch.device | str) -> None:
        self.replay_buffer = replay_buffer
        self.device = torch.device(device)
        self._is_there = place_buffer(replay_buffer, self.device)

    @property
    def samples_ahead(self) -> bool:
        """Whether threads sample batches ahead of their use, so that the state is ahead too."""
        return bool(getattr(self.replay_buffer, "_prefetch", False))

    def sample(self) -> TensorDictBase:
        """The next batch, on the device."""
        batch = self.replay_buffer.sample()
        if self.device.type == "cpu":
            return batch
        if self.device.type == "cuda" and not self._is_there:
            batch = batch.pin_memory()
        return batch.to(self.device, non_blocking=True)

    def update_priorities(self, batch: TensorDictBase) -> None:
        """Pass the priorities that a loss wrote into a batch to a prioritized sampler."""
        update = getattr(self.replay_buffer, "update_tensordict_priority", None)
        if update is not None:
            update(batch)

    def state_dict(self) -> dict[str, Any]:
        """State of sampler and generator; the latter is ``None`` if it is torch's global one."""
        generator = getattr(self.replay_buffer, "_rng", None)
        return {
            "sampler": self.replay_buffer.sampler.state_dict(),
            "generator": None if generator is None else generator.get_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ConfigError: if only one of the two buffers has a generator of its own.
        """
        generator = getattr(self.replay_buffer, "_rng", None)
        state = state_dict["generator"]
        if (generator is None) != (state is None):
            raise ConfigError(
                "the replay buffer has a generator of its own in only one of the two trainings: "
                "give it the same seed"
            )
        self.replay_buffer.sampler.load_state_dict(state_dict["sampler"])
        if generator is not None:
            generator.set_state(state)
