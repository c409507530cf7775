"""What the prompt transforms share: a value written at reset, carried on, written at sampling."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey, expand_as_right
from torchrl.data import Composite, TensorSpec
from torchrl.envs.transforms import Transform

__all__ = ["MODES", "PromptTransform", "check_mode", "drop_rows"]

MODES = ("index", "tensor")
"""``index``: write the row of a prompt in a frozen table; ``tensor``: write what is in that row."""


class PromptTransform(Transform):
    """Base of transforms whose outputs are constant over an episode.

    On an environment the outputs are computed once per reset and copied by reference at each step;
    on a replay buffer they are computed for every sampled batch. Subclasses implement
    :meth:`_prompt` and :meth:`_specs`.

    Examples:
        >>> from tensordict import TensorDict
        >>> class TaskNumber(PromptTransform):
        ...     def _prompt(self, tensordict, *, sampling):
        ...         return {"number": tensordict["task_id"].float()}
        >>> transform = TaskNumber(in_keys=["task_id"], out_keys=["number"])
        >>> transform(TensorDict({"task_id": torch.tensor([[7]])}, [1]))["number"]
        tensor([[7.]])
    """

    def _prompt(
        self, tensordict: TensorDictBase, *, sampling: bool
    ) -> dict[NestedKey, torch.Tensor]:
        """Outputs for the rows of ``tensordict``, which holds ``in_keys``.

        Args:
            tensordict: a sampled batch of transitions, or what a reset returned.
            sampling: true for the former.
        """
        raise NotImplementedError

    def _specs(self, shape: torch.Size) -> dict[NestedKey, TensorSpec]:
        """Specs of the outputs under an environment of batch size ``shape``."""
        raise NotImplementedError

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the outputs into a sampled batch."""
        for key, value in self._prompt(tensordict, sampling=True).items():
            tensordict.set(key, value)
        return tensordict

    def _reset(
        self, tensordict: TensorDictBase | None, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        if tensordict is None:
            tensordict = tensordict_reset.empty()
        reset = tensordict.get("_reset", None)
        for key, value in self._prompt(tensordict_reset, sampling=False).items():
            previous = None if reset is None else tensordict.get(key, None)
            if previous is not None:
                # A partial reset: the other environments keep the prompt of their episode.
                value = torch.where(expand_as_right(reset.squeeze(-1), value), value, previous)
            tensordict_reset.set(key, value)
        return tensordict_reset

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        for key in self.out_keys:
            next_tensordict.set(key, tensordict.get(key))
        return next_tensordict

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Declare the outputs as observations."""
        for key, spec in self._specs(observation_spec.shape).items():
            observation_spec[key] = spec.to(observation_spec.device)
        return observation_spec

    def __repr__(self) -> str:
        return f"{type(self).__name__}(in_keys={self.in_keys}, out_keys={self.out_keys})"


def check_mode(mode: str, dropout: float = 0.0) -> str:
    """``mode``, if it is one of :data:`MODES` and fits the dropout."""
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}: use one of {', '.join(MODES)}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is {dropout}: it must be at least 0 and below 1")
    if dropout and mode != "index":
        raise ValueError('a prompt can only be left out by its row: use mode="index" with dropout')
    return mode


def drop_rows(row: torch.Tensor, dropout: float) -> torch.Tensor:
    """Rows ``[*]``, each replaced by -1, no prompt, with probability ``dropout``."""
    if not dropout:
        return row
    return row.masked_fill(torch.rand(row.shape, device=row.device) < dropout, -1)
