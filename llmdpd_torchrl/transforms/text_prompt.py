"""The text prompt of a transition's task, gathered from one frozen table."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torchrl.data import Categorical, TensorSpec, Unbounded

from llmdpd_torchrl.transforms.base import PromptTransform, check_mode, drop_rows


class TextPromptTransform(PromptTransform):
    """Write a task's text prompt: its embedding, or its row in the table of embeddings.

    The language model has run before: the table is data, and gathering from it is all that happens
    in a training step or an environment.

    Args:
        table: ``[T, D]`` frozen embeddings, row = ``task_id``.
        mode: ``"tensor"`` writes the embedding, ``"index"`` its row. Use the latter on a replay
            buffer, with a prompt network that owns the table and encodes each prompt once a batch.
        dropout: probability that a sampled transition has no text (row -1; mode ``index`` only).
        in_keys: the task key, default ``["task_id"]`` ([*, 1] int64).
        out_keys: default ``[("prompt", "text")]`` ([*, D] float32), or
            ``[("prompt", "text_index")]`` ([*, 1] int64).

    Raises:
        ValueError: on an unknown mode, or a dropout that does not fit it.
        IndexError: at run time, if a task id has no row.

    Examples:
        >>> from tensordict import TensorDict
        >>> transform = TextPromptTransform(torch.eye(3))
        >>> data = TensorDict({"task_id": torch.tensor([[2], [0]])}, batch_size=[2])
        >>> transform(data)["prompt", "text"]
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """

    table: torch.Tensor

    def __init__(
        self,
        table: torch.Tensor,
        *,
        mode: str = "tensor",
        dropout: float = 0.0,
        in_keys: list[NestedKey] | None = None,
        out_keys: list[NestedKey] | None = None,
    ) -> None:
        self.mode = check_mode(mode, dropout)
        self.dropout = dropout
        default: NestedKey = ("prompt", "text" if mode == "tensor" else "text_index")
        super().__init__(in_keys=in_keys or ["task_id"], out_keys=out_keys or [default])
        if table.ndim != 2:
            raise ValueError(f"the text table must have shape [T, D], found {list(table.shape)}")
        # Not persistent: the table is data with a cache of its own, not state to be saved.
        self.register_buffer("table", table.detach().clone(), persistent=False)

    def _prompt(
        self, tensordict: TensorDictBase, *, sampling: bool
    ) -> dict[NestedKey, torch.Tensor]:
        task = tensordict.get(self.in_keys[0])
        if self.mode == "index":
            return {self.out_keys[0]: drop_rows(task, self.dropout if sampling else 0.0).clone()}
        # Not by indexing, for which -1 is the last row.
        return {self.out_keys[0]: torch.nn.functional.embedding(task.squeeze(-1), self.table)}

    def _specs(self, shape: torch.Size) -> dict[NestedKey, TensorSpec]:
        if self.mode == "index":
            index = Categorical(len(self.table), (*shape, 1), dtype=torch.int64)
            return {self.out_keys[0]: index}
        width = self.table.shape[-1]
        return {self.out_keys[0]: Unbounded((*shape, width), dtype=self.table.dtype)}
