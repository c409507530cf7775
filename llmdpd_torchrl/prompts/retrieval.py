"""What a trajectory prompt says about the present: its nearest step, read relative to the objects.

A pooled embedding of a trajectory says which task is meant. It can not say how a task that was
never trained on is done. The step of the demonstration at which things stood as they stand now can:
its action, where the hand was relative to object and goal then, and a few steps later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from llmdpd_torchrl.prompts.trajectory import TrajectoryPromptBank

__all__ = ["PromptRetrieval"]


class PromptRetrieval:
    """Retrieve the nearest step of a prompt in a task-agnostic frame and describe it.

    The frame is (hand - object, object - goal, gripper opening): it means the same in every task.
    Distances weigh its parts 10 : 5 : 1. With r the frame now, r_i that of the nearest step i and
    r_j that of the step ``lookahead`` further on, the context is made of

    - the action of step i;
    - the errors r - r_i and the prompt's own motion r_j - r_i;
    - the pull clip(gain · (r_j - r), -1, 1) of the hand towards where the prompt's hand was
      relative to the object: a proportional controller's output;
    - the gripper opening now, at i and at j; the progress i / length; the distance to step i;
    - last, the pull towards where the prompt's hand was relative to the *goal*. Which of the two
      pulls counts depends on the task, so that a policy can only know it on tasks it was trained
      on: the last :attr:`goal_features` columns are for those.

    Nothing of it is trained, so that transforms compute it and no gradient is lost.

    Args:
        bank: the prompts, with Meta-World-like observations.
        fields: index ranges of ``hand_position``, ``object_1_position``, ``goal_position`` and
            ``gripper_opening``, as in a manifest's ``observation_layout``.
        lookahead: steps of the cut prompt.
        gain: of the pull, per metre.

    Raises:
        ValueError: if a field is missing.

    Examples:
        >>> from tensordict import TensorDict
        >>> from llmdpd_torchrl.data import METAWORLD_OBSERVATION_LAYOUT
        >>> entries = {"observation": torch.rand(2, 5, 39), "action": torch.rand(2, 5, 4),
        ...            "mask": torch.ones(2, 5, dtype=torch.bool)}
        >>> prompts = TensorDict(entries, [2, 5])
        >>> bank = TrajectoryPromptBank(prompts, torch.tensor([0, 1]), torch.tensor([0, 1]))
        >>> retrieval = PromptRetrieval(bank, METAWORLD_OBSERVATION_LAYOUT["fields"])
        >>> context = retrieval(torch.rand(3, 39), torch.tensor([0, 1, 1]))
        >>> context.shape == (3, retrieval.features)
        True
    """

    #: Columns at the end of the context that tell the pull towards the goal.
    goal_features = 3

    def __init__(
        self,
        bank: TrajectoryPromptBank,
        fields: Mapping[str, Sequence[int]],
        *,
        lookahead: int = 3,
        gain: float = 10.0,
    ) -> None:
        names = ("hand_position", "object_1_position", "goal_position", "gripper_opening")
        missing = [name for name in names if name not in fields]
        if missing:
            raise ValueError(f"retrieval needs the observation field {missing[0]!r}")
        self._slices = [slice(*fields[name]) for name in names]
        self.lookahead = lookahead
        self.gain = gain
        self._frames = self.frame(bank.prompts["observation"])
        self._weights = self._frames.new_tensor([10.0] * 3 + [5.0] * 3 + [1.0])
        self._actions = bank.prompts["action"]
        # |w (a - b)|² is expanded, and what depends on the prompt alone is computed here: a query
        # is one matrix-vector product.
        self._scaled = self._frames * self._weights
        squared = self._scaled.square().sum(-1)
        self._squared = squared.masked_fill(~bank.prompts["mask"], torch.inf)
        self._lengths = bank.prompts["mask"].sum(-1)
        self.features = self.count(self._actions.shape[-1])

    @classmethod
    def count(cls, action_dim: int = 4) -> int:
        """Width of the context."""
        return action_dim + 2 * 7 + 3 + 3 + 2 + cls.goal_features

    def frame(self, observation: torch.Tensor) -> torch.Tensor:
        """The task-agnostic frame of observations ``[*, O]``: ``[*, 7]``."""
        hand, thing, goal, gripper = (observation[..., part] for part in self._slices)
        return torch.cat([hand - thing, thing - goal, gripper], dim=-1)

    def __call__(self, observation: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """Contexts of observations ``[*, O]`` under the prompts in rows ``[*]`` of the bank.

        Returns:
            ``[*, features]``.
        """
        shape = row.shape
        now = self.frame(observation).reshape(-1, 7)
        row = row.reshape(-1)
        products = torch.einsum("blf,bf->bl", self._scaled[row], now * self._weights)
        near = (self._squared[row] - 2 * products).argmin(-1)
        ahead = torch.minimum(near + self.lookahead, self._lengths[row] - 1)
        there, later = self._frames[row, near], self._frames[row, ahead]
        error, motion = now - there, later - there
        way = later - now
        pull = (self.gain * way[:, :3]).clamp(-1.0, 1.0)
        # (hand - object) + (object - goal) = hand - goal
        goal_pull = (self.gain * (way[:, :3] + way[:, 3:6])).clamp(-1.0, 1.0)
        progress = near / self._lengths[row]
        distance = (error * self._weights).norm(dim=-1).clamp(max=3.0)
        context = torch.cat(
            [
                self._actions[row, near],
                10 * error,
                10 * motion,
                pull,
                now[:, 6:],
                there[:, 6:],
                later[:, 6:],
                progress.unsqueeze(-1).to(now.dtype),
                distance.unsqueeze(-1),
                goal_pull,
            ],
            dim=-1,
        )
        return context.reshape(*shape, -1)
