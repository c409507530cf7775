"""Whether the actor may go by what it learnt by heart, or has to go by its demonstration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torchrl.data import TensorSpec, Unbounded

from llmdpd_torchrl.transforms.base import PromptTransform

__all__ = ["ObservationGateTransform"]


class ObservationGateTransform(PromptTransform):
    """Write the gate of the observation: open on trained tasks, shut on others, random in training.

    A policy that always sees the state memorises its training tasks by it and ignores the
    demonstration on a task it was never trained on. So in training the gate is shut at random, and
    the policy learns to act with and without the state and the embedding of its task (see
    :class:`~llmdpd_torchrl.modules.conditioning.GatedConditioner`); at evaluation it is open
    exactly on the trained tasks.

    Args:
        trained_tasks: ids of the tasks that are trained on.
        open_probability: of the gate, per sampled transition.
        in_keys: default ``["task_id", ("prompt", "trajectory_index")]``. The gate is always open
            where the latter is -1: without a demonstration there is nothing else to go by. It may
            be left out where every transition has a demonstration.
        out_keys: default ``[("prompt", "observation_gate")]`` ([*, 1] float32, 0 or 1).

    Randomness comes from torch's global generator.

    Examples:
        >>> from tensordict import TensorDict
        >>> transform = ObservationGateTransform([1], open_probability=0.0)
        >>> rows = torch.tensor([[4], [-1]])
        >>> batch = {"task_id": torch.tensor([[1], [1]]), "prompt": {"trajectory_index": rows}}
        >>> transform(TensorDict(batch, [2]))["prompt", "observation_gate"].squeeze(-1)
        tensor([0., 1.])
    """

    trained: torch.Tensor

    def __init__(
        self,
        trained_tasks: Sequence[int],
        *,
        open_probability: float = 0.5,
        in_keys: list[NestedKey] | None = None,
        out_keys: list[NestedKey] | None = None,
    ) -> None:
        if not 0.0 <= open_probability <= 1.0:
            raise ValueError(f"open_probability is {open_probability}: it must be in [0, 1]")
        super().__init__(
            in_keys=in_keys or ["task_id", ("prompt", "trajectory_index")],
            out_keys=out_keys or [("prompt", "observation_gate")],
        )
        self.open_probability = open_probability
        self.register_buffer("trained", torch.tensor(list(trained_tasks)), persistent=False)

    def _prompt(
        self, tensordict: TensorDictBase, *, sampling: bool
    ) -> dict[NestedKey, torch.Tensor]:
        task = tensordict.get(self.in_keys[0])
        if sampling:
            is_open = torch.rand(task.shape, device=task.device) < self.open_probability
        else:
            is_open = torch.isin(task, self.trained)
        for key in self.in_keys[1:]:
            is_open = is_open | (tensordict.get(key) < 0)
        return {self.out_keys[0]: is_open.to(torch.float32)}

    def _specs(self, shape: torch.Size) -> dict[NestedKey, TensorSpec]:
        return {self.out_keys[0]: Unbounded((*shape, 1), dtype=torch.float32)}
