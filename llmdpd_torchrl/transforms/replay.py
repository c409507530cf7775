"""A replay with memory: what it plays, and how far it has come, as a transform."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.data import Bounded, TensorSpec, Unbounded

from llmdpd_torchrl.prompts.anchored_replay import START_OVER
from llmdpd_torchrl.transforms.prompts import PromptTransform

#: From observations [*, O], rows of prompts [*] and progress [*], which is -1 where an episode
#: begins, to actions [*, A] and the new progress.
Replay = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class ReplayTransform(PromptTransform):
    """Write the action that a replay plays, and its progress, which begins with each episode.

    For environments only, after a :class:`~llmdpd_torchrl.transforms.TrajectoryPromptTransform` in
    mode ``index``.

    Args:
        replay: see :data:`Replay`.
        action_dim: A.
        length: of the prompts; progress is below it.
        in_keys: default ``["observation", ("prompt", "trajectory_index")]``.
        out_keys: default ``["replayed_action", "replay_progress"]``.
    """

    def __init__(
        self,
        replay: Replay,
        action_dim: int,
        length: int,
        *,
        in_keys: list[NestedKey] | None = None,
        out_keys: list[NestedKey] | None = None,
    ) -> None:
        super().__init__(
            in_keys=in_keys or ["observation", ("prompt", "trajectory_index")],
            out_keys=out_keys or ["replayed_action", "replay_progress"],
        )
        self.replay, self.action_dim, self.length = replay, action_dim, length

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Refuse to run on a replay buffer, whose transitions have no episode before them."""
        raise RuntimeError("ReplayTransform is for environments: it remembers the episode")

    def _prompt(self, tensordict: TensorDictBase, *, sampling: bool) -> dict[NestedKey, Tensor]:
        return self._play(tensordict, TensorDict(self._begin(tensordict), tensordict.batch_size))

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        row = self.in_keys[1]
        is_other = next_tensordict.get(row) != tensordict.get(row)
        memory = tensordict
        if is_other.any():
            others = self._begin_other(next_tensordict)
            changed = {k: torch.where(is_other, v, tensordict.get(k)) for k, v in others.items()}
            memory = tensordict.copy().update(changed)
        return next_tensordict.update(self._play(next_tensordict, memory))

    def _begin(self, tensordict: TensorDictBase) -> dict[NestedKey, Tensor]:
        """What is remembered of the steps before the first."""
        return {self.out_keys[1]: torch.full_like(tensordict.get(self.in_keys[1]), -1)}

    def _begin_other(self, tensordict: TensorDictBase) -> dict[NestedKey, Tensor]:
        """What is remembered where another prompt takes the place of the last one."""
        return {self.out_keys[1]: torch.full_like(tensordict.get(self.in_keys[1]), START_OVER)}

    def _play(self, tensordict: TensorDictBase, memory: TensorDictBase) -> dict[NestedKey, Tensor]:
        """The outputs for a step, of what the step before it remembered."""
        observation, row = (tensordict.get(key) for key in self.in_keys[:2])
        progress = memory.get(self.out_keys[1])
        action, progress = self.replay(observation, row.squeeze(-1), progress.squeeze(-1))
        return {self.out_keys[0]: action, self.out_keys[1]: progress.unsqueeze(-1)}

    def _specs(self, shape: torch.Size) -> dict[NestedKey, TensorSpec]:
        return {
            self.out_keys[0]: Unbounded((*shape, self.action_dim), dtype=torch.float32),
            self.out_keys[1]: Bounded(START_OVER, self.length, (*shape, 1), dtype=torch.int64),
        }
