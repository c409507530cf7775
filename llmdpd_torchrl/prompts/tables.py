"""The prompts of a set of tasks: one table of texts and one bank of trajectories."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from llmdpd_torchrl.prompts.trajectory import TrajectoryPromptBank
from llmdpd_torchrl.utils.errors import PromptError


class PromptTables(nn.Module):
    """All prompts that a policy may be given, indexed by rows.

    Both tables are frozen data: no language model runs after they are made. They are non-persistent
    buffers, so they follow ``.to()`` and stay out of a ``state_dict``. What is not given is
    ``None``: a policy that was trained with prompt dropout acts without it, others raise a
    ``ConfigError``.

    Args:
        text: ``[T, D]`` float32 text embeddings, row = task id.
        trajectories: trajectory prompts of the tasks.

    Raises:
        PromptError: if the text table is no matrix, or the trajectories are no bank.

    Examples:
        >>> tables = PromptTables(text=torch.zeros(50, 576))
        >>> tables.text.shape, tables.trajectories
        (torch.Size([50, 576]), None)
    """

    text: torch.Tensor | None
    trajectories: TrajectoryPromptBank | None

    def __init__(
        self,
        text: torch.Tensor | None = None,
        trajectories: TrajectoryPromptBank | None = None,
    ) -> None:
        super().__init__()
        if text is not None and (not isinstance(text, torch.Tensor) or text.ndim != 2):
            found = list(text.shape) if isinstance(text, torch.Tensor) else type(text).__name__
            raise PromptError(f"the text table is {found}: give embeddings [T, D], row = task id")
        if trajectories is not None and not isinstance(trajectories, TrajectoryPromptBank):
            raise PromptError(
                f"the trajectories are a {type(trajectories).__name__}: give a TrajectoryPromptBank"
            )
        self.register_buffer("text", text, persistent=False)
        self.trajectories = trajectories

    @property
    def task_ids(self) -> set[int]:
        """Tasks that have a trajectory prompt."""
        return set() if self.trajectories is None else set(self.trajectories.task_id.tolist())

    def filled(
        self, text_dim: int, trajectory_length: int, observation_dim: int, action_dim: int
    ) -> PromptTables:
        """The same tables, with an empty one of these sizes in place of each that is missing.

        Examples:
            >>> PromptTables().filled(576, 16, 39, 4).trajectories.task_id.tolist()
            [-1]
        """
        text, bank = self.text, self.trajectories
        if text is None:
            text = torch.zeros(1, text_dim)
        if bank is None:
            bank = TrajectoryPromptBank.empty(trajectory_length, observation_dim, action_dim)
        return PromptTables(text, bank)

    def shallow_copy(self) -> PromptTables:
        """Tables of their own over the same tensors: moving one does not move the other."""
        return self._changed(lambda bank: bank.shallow_copy())

    def follow(self, reference: torch.Tensor) -> PromptTables:
        """Move to the device and floating-point type of ``reference``, unless already there."""
        wanted = (reference.device, reference.dtype)
        if any((b.device, b.dtype) != wanted for b in self.buffers() if b.is_floating_point()):
            self.to(device=reference.device, dtype=reference.dtype)
        return self

    def first(self, count: int) -> PromptTables:
        """At most ``count`` trajectories of each task, see :meth:`TrajectoryPromptBank.first`."""
        return self._changed(lambda bank: bank.first(count))

    def truncate(self, fraction: float) -> PromptTables:
        """Only the start of each trajectory, see :meth:`TrajectoryPromptBank.truncate`."""
        return self._changed(lambda bank: bank.truncate(fraction))

    def concatenated(self) -> PromptTables:
        """All trajectories of a task as one, see :meth:`TrajectoryPromptBank.concatenated`."""
        return self._changed(lambda bank: bank.concatenated())

    def _changed(
        self, change: Callable[[TrajectoryPromptBank], TrajectoryPromptBank]
    ) -> PromptTables:
        bank = self.trajectories
        return PromptTables(self.text, None if bank is None else change(bank))
