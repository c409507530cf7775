"""No prompt, for a policy that has learnt to do without one."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torchrl.data import Bounded, TensorSpec

from llmdpd_torchrl.transforms.base import PromptTransform

__all__ = ["AbsentPromptTransform"]


class AbsentPromptTransform(PromptTransform):
    """Write row -1, which stands for no prompt, in the place of a text or a trajectory.

    Args:
        out_keys: ``[("prompt", "text_index")]`` or ``[("prompt", "trajectory_index")]``.
        in_keys: of what has the shape of the batch, default ``["task_id"]``.

    Examples:
        >>> from tensordict import TensorDict
        >>> transform = AbsentPromptTransform([("prompt", "text_index")])
        >>> transform(TensorDict({"task_id": torch.tensor([[7]])}, [1]))["prompt", "text_index"]
        tensor([[-1]])
    """

    def __init__(
        self, out_keys: list[NestedKey], *, in_keys: list[NestedKey] | None = None
    ) -> None:
        super().__init__(in_keys=in_keys or ["task_id"], out_keys=out_keys)

    def _prompt(
        self, tensordict: TensorDictBase, *, sampling: bool
    ) -> dict[NestedKey, torch.Tensor]:
        task = tensordict.get(self.in_keys[0])
        return {key: torch.full_like(task, -1, dtype=torch.int64) for key in self.out_keys}

    def _specs(self, shape: torch.Size) -> dict[NestedKey, TensorSpec]:
        return {key: Bounded(-1, 0, (*shape, 1), dtype=torch.int64) for key in self.out_keys}
