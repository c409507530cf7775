"""The way out where a policy stands still: the demonstration, played from where it has come to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.data import Binary, TensorSpec, Unbounded

from llmdpd_torchrl.prompts.anchored_replay import START_OVER
from llmdpd_torchrl.transforms.replay import Replay, ReplayTransform

#: Metres that the effector must leave behind, and steps in which it must, or it stands still.
RADIUS, PATIENCE = 0.02, 20
#: Steps before it is asked again whether it stands still.
HOLD = 30


class RecoveryTransform(ReplayTransform):
    """Follow an episode by the demonstration, and say when its replay should take over.

    A policy that retrieves the nearest step has no memory: where its movement comes to rest short
    of the end, it rests for ever. Beside it a replay keeps its place in the demonstration. When the
    effector has stayed within :data:`RADIUS` for :data:`PATIENCE` steps, that replay acts; when it
    stands still as well, :data:`HOLD` steps later at the earliest, the policy acts again; and so
    on. Every second time the replay starts over. :class:`~llmdpd_torchrl.policies.LLMDPDPolicy`
    does as ``is_recovering`` says. It is never true where the observation gate is open.

    For environments only, after an
    :class:`~llmdpd_torchrl.transforms.ObservationGateTransform`.

    Args:
        replay: see :data:`~llmdpd_torchrl.transforms.replay.Replay`.
        effector: index range of its position in observations.
        action_dim: A.
        length: of the prompts; progress is below it.
        in_keys: default ``["observation", ("prompt", "trajectory_index"), ("prompt",
            "observation_gate")]``.
        out_keys: default ``["replayed_action", "replay_progress", "is_recovering",
            "resting_place", "resting_steps", "turns"]``: the first and the third are what a policy
            reads, the others are remembered.
    """

    def __init__(
        self,
        replay: Replay,
        effector: Sequence[int],
        action_dim: int,
        length: int,
        *,
        in_keys: list[NestedKey] | None = None,
        out_keys: list[NestedKey] | None = None,
    ) -> None:
        prompt: list[NestedKey] = [("prompt", "trajectory_index"), ("prompt", "observation_gate")]
        written: list[NestedKey] = ["replayed_action", "replay_progress", "is_recovering"]
        written += ["resting_place", "resting_steps", "turns"]
        super().__init__(
            replay,
            action_dim,
            length,
            in_keys=in_keys or ["observation", *prompt],
            out_keys=out_keys or written,
        )
        self.effector = slice(*effector)

    def _begin(self, tensordict: TensorDictBase) -> dict[NestedKey, Tensor]:
        row = tensordict.get(self.in_keys[1])
        return super()._begin(tensordict) | {
            self.out_keys[2]: torch.zeros_like(row, dtype=torch.bool),
            self.out_keys[3]: tensordict.get(self.in_keys[0])[..., self.effector],
            self.out_keys[4]: torch.zeros_like(row),
            self.out_keys[5]: torch.zeros_like(row),
        }

    def _begin_other(self, tensordict: TensorDictBase) -> dict[NestedKey, Tensor]:
        # The replay leads back to where the other demonstration begins.
        row = tensordict.get(self.in_keys[1])
        return super()._begin_other(tensordict) | {
            self.out_keys[4]: torch.full_like(row, PATIENCE - HOLD),
            self.out_keys[5]: torch.ones_like(row),
        }

    def _play(self, tensordict: TensorDictBase, memory: TensorDictBase) -> dict[NestedKey, Tensor]:
        effector = tensordict.get(self.in_keys[0])[..., self.effector]
        place, steps, turns = (memory.get(key) for key in self.out_keys[3:])
        has_left = (effector - place).norm(dim=-1, keepdim=True) > RADIUS
        # Below zero it is not asked yet, wherever it rests.
        steps = torch.where(has_left, steps.clamp_max(0), steps) + 1
        stands_still = steps >= PATIENCE
        is_closed = tensordict.get(self.in_keys[2]) == 0
        turns = turns + stands_still  # of policy, replay, policy, replay from the beginning, ...
        starts_over = stands_still & (turns % 4 == 2)
        played = super()._play(tensordict, memory)
        return played | {
            self.out_keys[1]: torch.where(starts_over, START_OVER, played[self.out_keys[1]]),
            self.out_keys[2]: (turns % 2 == 1) & is_closed,
            self.out_keys[3]: torch.where(has_left, effector, place),
            self.out_keys[4]: torch.where(stands_still, PATIENCE - HOLD, steps),
            self.out_keys[5]: turns,
        }

    def _specs(self, shape: torch.Size) -> dict[NestedKey, TensorSpec]:
        size = self.effector.stop - self.effector.start
        return super()._specs(shape) | {
            self.out_keys[2]: Binary(1, (*shape, 1), dtype=torch.bool),
            self.out_keys[3]: Unbounded((*shape, size), dtype=torch.float32),
            self.out_keys[4]: Unbounded((*shape, 1), dtype=torch.int64),
            self.out_keys[5]: Unbounded((*shape, 1), dtype=torch.int64),
        }
