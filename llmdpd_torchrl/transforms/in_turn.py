"""Several demonstrations of a task, followed one after another, as a transform."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.data import Bounded, TensorSpec, Unbounded

from llmdpd_torchrl.prompts.tables import TrajectoryPromptBank
from llmdpd_torchrl.transforms.prompts import PromptTransform
from llmdpd_torchrl.utils.errors import ConfigError


class DemonstrationsInTurn(PromptTransform):
    """Replace the demonstration by the task's next one, after so many steps without an end.

    Where none is known to be of the task, one of several may still do: an episode that the first
    has not ended goes on with the second, and after the last with the first again.

    For environments only, after a :class:`~llmdpd_torchrl.transforms.TrajectoryPromptTransform` in
    mode ``index`` over the same bank.

    Args:
        bank: the prompts, of each task in their order.
        steps: after which the next one is followed.
        in_keys: default ``[("prompt", "trajectory_index")]``.
        out_keys: default ``[("prompt", "trajectory_index"), ("prompt", "turn_steps")]``, [*, 1]
            int64.

    Raises:
        ConfigError: if ``steps`` is below 1.

    Examples:
        >>> from tensordict import TensorDict
        >>> prompts = TensorDict({"mask": torch.ones(2, 4, dtype=torch.bool)}, batch_size=[2, 4])
        >>> bank = TrajectoryPromptBank(prompts, torch.tensor([7, 7]), torch.tensor([-1, -1]))
        >>> transform = DemonstrationsInTurn(bank, steps=2)
        >>> state = TensorDict({"prompt": {"trajectory_index": torch.tensor([[0]])}}, [1])
        >>> rows = []
        >>> state = transform._reset(None, state)
        >>> for _ in range(4):
        ...     rows.append(state["prompt", "trajectory_index"].item())
        ...     state = transform._step(state, state.clone())
        >>> rows
        [0, 0, 1, 1]
    """

    _following: Tensor

    def __init__(
        self,
        bank: TrajectoryPromptBank,
        steps: int,
        *,
        in_keys: list[NestedKey] | None = None,
        out_keys: list[NestedKey] | None = None,
    ) -> None:
        if steps < 1:
            raise ConfigError(f"a demonstration's turn is {steps} steps: it must be at least 1")
        row: list[NestedKey] = [("prompt", "trajectory_index")]
        super().__init__(
            in_keys=in_keys or row, out_keys=out_keys or [*row, ("prompt", "turn_steps")]
        )
        self.steps = steps
        following = torch.zeros(len(bank), dtype=torch.int64)
        for task in bank.task_id.unique().tolist():
            rows = bank.rows_of(task)
            following[rows] = rows.roll(-1)
        self.register_buffer("_following", following, persistent=False)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Refuse to run on a replay buffer, whose transitions have no episode before them."""
        raise RuntimeError("DemonstrationsInTurn is for environments: it counts an episode's steps")

    def _prompt(self, tensordict: TensorDictBase, *, sampling: bool) -> dict[NestedKey, Tensor]:
        row = tensordict.get(self.in_keys[0])
        return {self.out_keys[0]: row, self.out_keys[1]: torch.zeros_like(row)}

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        row, steps = (tensordict.get(key) for key in self.out_keys)
        steps = steps + 1
        is_over = (steps >= self.steps) & (row >= 0)
        next_tensordict.set(self.out_keys[0], torch.where(is_over, self._following[row], row))
        return next_tensordict.set(self.out_keys[1], steps.masked_fill(is_over, 0))

    def _specs(self, shape: torch.Size) -> dict[NestedKey, TensorSpec]:
        rows = Bounded(-1, len(self._following), (*shape, 1), dtype=torch.int64)
        return {
            self.out_keys[0]: rows,
            self.out_keys[1]: Unbounded((*shape, 1), dtype=torch.int64),
        }
