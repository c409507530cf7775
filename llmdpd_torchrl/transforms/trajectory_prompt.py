"""The trajectory prompt of a transition: one other trajectory of its task."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torchrl.data import Categorical, TensorSpec, Unbounded

from llmdpd_torchrl.prompts.trajectory import TrajectoryPromptBank
from llmdpd_torchrl.transforms.base import PromptTransform, check_mode, drop_rows
from llmdpd_torchrl.utils.errors import PromptError

CHOICES = ("random", "first")
"""Which of a task's prompts an environment uses in an episode."""

_ONLY_ITS_OWN = (
    "a task's only trajectory prompt is the trajectory that is trained on; collect at least two "
    "successful episodes per task"
)


def check_training_prompts(bank: TrajectoryPromptBank, tasks: torch.Tensor) -> None:
    """Check once what sampling would otherwise have to ask of every batch.

    Args:
        bank: prompts that the training samples from.
        tasks: ids of the tasks that are trained on.

    Raises:
        PromptError: if a task has no prompt, or only one that is its own training trajectory.
    """
    for task in tasks.unique().tolist():
        rows = bank.rows_of(task)
        if not len(rows):
            known = sorted(set(bank.task_id.tolist()))
            raise PromptError(f"no trajectory prompt for task {task}; known ids {known}")
        if len(rows) == 1 and int(bank.trajectory_id[rows[0]]) >= 0:
            raise PromptError(_ONLY_ITS_OWN)


class TrajectoryPromptTransform(PromptTransform):
    """Write a trajectory prompt of the transition's task: its steps, or its row in the bank.

    On a replay buffer, ``prompts_per_task`` prompts of each task are sampled per batch and shared
    by the batch's transitions of that task, so that a batch costs that many encodings per task and
    not one per transition; a transition is never prompted with the trajectory that it comes from.
    On an environment there is one prompt per episode.

    Args:
        bank: the prompts.
        mode: ``"tensor"`` writes ``("prompt", "trajectory")`` with entries of shape [*, L, ...],
            ``"index"`` writes ``("prompt", "trajectory_index")`` [*, 1] int64.
        prompts_per_task: candidates sampled per task and batch; at least 2.
        choice: the prompt of an environment: ``"first"``, the task's first prompt, or ``"random"``.
        dropout: probability that a sampled transition has no prompt (row -1; mode ``"index"``
            only), so that the policy learns to do without. An environment always has one.
        task_key: ``"task_id"``.
        trajectory_key: ``"trajectory_id"``, read on a replay buffer only.

    Raises:
        PromptError: at run time, if a task has no prompt, or on a replay buffer only one that is
            the transition's own trajectory.

    Randomness comes from torch's global generator.

    Examples:
        >>> from tensordict import TensorDict
        >>> prompts = TensorDict({"mask": torch.ones(2, 4, dtype=torch.bool)}, batch_size=[2, 4])
        >>> bank = TrajectoryPromptBank(prompts, torch.tensor([1, 1]), torch.tensor([0, 1]))
        >>> transform = TrajectoryPromptTransform(bank, mode="index")
        >>> batch = TensorDict(
        ...     {"task_id": torch.tensor([[1]]), "trajectory_id": torch.tensor([[0]])}, [1]
        ... )
        >>> transform(batch)["prompt", "trajectory_index"]
        tensor([[1]])
    """

    _rows: torch.Tensor
    _counts: torch.Tensor

    def __init__(
        self,
        bank: TrajectoryPromptBank,
        *,
        mode: str = "tensor",
        prompts_per_task: int = 2,
        choice: str = "random",
        dropout: float = 0.0,
        task_key: NestedKey = "task_id",
        trajectory_key: NestedKey = "trajectory_id",
    ) -> None:
        self.mode = check_mode(mode, dropout)
        self.dropout = dropout
        if choice not in CHOICES:
            raise ValueError(f"unknown choice {choice!r}: use one of {', '.join(CHOICES)}")
        if prompts_per_task < 2:
            raise ValueError(f"prompts_per_task is {prompts_per_task}: it must be at least 2")
        out_keys: list[NestedKey]
        if mode == "index":
            out_keys = [("prompt", "trajectory_index")]
        else:
            out_keys = [("prompt", "trajectory", key) for key in bank.prompts.keys()]  # noqa: SIM118
        super().__init__(in_keys=[task_key], out_keys=out_keys)
        self.bank = bank.shallow_copy()  # moved with the transform, and the caller's is not
        self.choice = choice
        self.prompts_per_task = prompts_per_task
        self.trajectory_key = trajectory_key
        # Rows of each task, padded to the largest number: [max task id + 1, n].
        tasks = int(bank.task_id.max()) + 1
        rows = [bank.rows_of(task) for task in range(tasks)]
        self.register_buffer("_counts", torch.tensor([len(row) for row in rows]), persistent=False)
        self.register_buffer(
            "_rows", torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), persistent=False
        )

    def _prompt(
        self, tensordict: TensorDictBase, *, sampling: bool
    ) -> dict[NestedKey, torch.Tensor]:
        task = tensordict.get(self.in_keys[0]).squeeze(-1)
        self._check_tasks(task)
        if sampling:
            own = tensordict.get(self.trajectory_key).squeeze(-1)
            row = drop_rows(self._sample_other(task, own), self.dropout)
        elif self.choice == "first":
            row = self._rows[task, 0]
        else:
            number = torch.rand(task.shape, device=task.device) * self._counts[task]
            row = self._rows[task, number.long()]
        if self.mode == "index":
            return {self.out_keys[0]: row.unsqueeze(-1)}
        prompts = self.bank.prompts[row]
        return {key: prompts.get(key[-1]) for key in self.out_keys}

    def _check_tasks(self, task: torch.Tensor) -> None:
        # On a GPU it would wait for the device in every batch: see check_training_prompts().
        if task.device.type != "cpu" or not task.numel():
            return
        if int(task.max()) >= len(self._counts) or not self._counts[task].all():
            known = sorted(set(self.bank.task_id.tolist()))
            raise PromptError(f"no trajectory prompt for some task of the batch; known ids {known}")

    def _sample_other(self, task: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Rows of the bank for transitions of ``task`` [B] in the trajectories ``own`` [B]."""
        # A random order of each task's prompts, of which the first few are this batch's candidates.
        order = torch.rand(self._rows.shape, device=self._rows.device)
        padding = torch.arange(self._rows.shape[1], device=order.device) >= self._counts[:, None]
        order = order.masked_fill(padding, 2.0)
        candidates = min(self.prompts_per_task, self._rows.shape[1])
        columns = order.topk(candidates, largest=False).indices
        offered = self._counts.clamp(max=candidates)[task]
        first = (torch.rand(task.shape, device=task.device) * offered).long()
        row = self._rows[task, columns[task, first]]
        clash = self.bank.trajectory_id[row] == own
        other = self._rows[task, columns[task, (first + 1) % offered]]
        row = torch.where(clash, other, row)
        if row.device.type == "cpu" and (self.bank.trajectory_id[row] == own).any():
            raise PromptError(_ONLY_ITS_OWN)
        return row

    def _specs(self, shape: torch.Size) -> dict[NestedKey, TensorSpec]:
        if self.mode == "index":
            return {self.out_keys[0]: Categorical(len(self.bank), (*shape, 1), dtype=torch.int64)}
        specs: dict[NestedKey, TensorSpec] = {}
        for key in self.out_keys:
            value = self.bank.prompts.get(key[-1])
            size = (*shape, *value.shape[1:])
            specs[key] = (
                Categorical(2, size, dtype=torch.bool)
                if value.dtype == torch.bool
                else Unbounded(size, dtype=value.dtype)
            )
        return specs
