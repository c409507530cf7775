"""What a training is in the middle of: the averages of its log, and the source of its batches."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import ReplayBuffer

from llmdpd_torchrl.utils.errors import ConfigError

__all__ = ["BatchSource", "RunningMeans"]


class RunningMeans:
    """Averages of what the trainer averaged over its rounds.

    Examples:
        >>> means = RunningMeans()
        >>> for value in (1.0, 3.0):
        ...     means.add(TensorDict({"loss": torch.tensor(value)}))
        >>> means.take()
        {'loss': 2.0}
    """

    def __init__(self) -> None:
        self._sums: TensorDictBase | None = None
        self._count = 0

    def add(self, means: TensorDictBase) -> None:
        """Take in the means of one round."""
        self._sums = means if self._sums is None else self._sums + means
        self._count += 1

    def take(self) -> dict[str, float]:
        """The averages of all rounds since the last call."""
        assert self._sums is not None
        averages = self._sums / self._count
        self._sums, self._count = None, 0
        return {key: float(value) for key, value in averages.items()}

    def state_dict(self) -> dict[str, Any]:
        """The averages in flight."""
        sums = None if self._sums is None else self._sums.to_dict()
        return {"sums": sums, "count": self._count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        sums = state_dict["sums"]
        self._sums = None if sums is None else TensorDict(sums)
        self._count = state_dict["count"]


class BatchSource:
    """A replay buffer's sampler and its generator: which batches come next, without the data.

    Args:
        replay_buffer: sampled by a trainer.

    Examples:
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(9), batch_size=3)
        >>> _ = buffer.extend(TensorDict({"a": torch.arange(9)}, [9]))
        >>> buffer.set_rng(torch.Generator().manual_seed(0))
        >>> source = BatchSource(buffer)
        >>> state = source.state_dict()
        >>> first = buffer.sample()
        >>> source.load_state_dict(state)
        >>> bool((buffer.sample()["a"] == first["a"]).all())
        True
    """

    def __init__(self, replay_buffer: ReplayBuffer) -> None:
        self.replay_buffer = replay_buffer

    @property
    def are_drawn_ahead(self) -> bool:
        """Whether threads sample before anybody asks, so that the state is ahead of its use."""
        return bool(getattr(self.replay_buffer, "_prefetch", False))

    @property
    def _generator(self) -> torch.Generator | None:
        return getattr(self.replay_buffer, "_rng", None)

    def state_dict(self) -> dict[str, Any]:
        """State of sampler and generator; ``None`` if torch's global one is drawn from."""
        generator = self._generator
        return {
            "sampler": self.replay_buffer.sampler.state_dict(),
            "generator": None if generator is None else generator.get_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            ConfigError: if one of the two has a generator of its own and the other has not.
        """
        generator, state = self._generator, state_dict["generator"]
        if (generator is None) != (state is None):
            raise ConfigError(
                "the replay buffer has a generator of its own in one of the two trainings, and not "
                "in the other: give it the same seed"
            )
        self.replay_buffer.sampler.load_state_dict(state_dict["sampler"])
        if generator is not None:
            generator.set_state(state)
