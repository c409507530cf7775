"""The prompt read as a function of the current observation."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torchrl.data import Composite, Unbounded
from torchrl.envs.transforms import Transform

from llmdpd_torchrl.prompts.retrieval import PromptRetrieval

__all__ = ["PromptContextTransform"]


class PromptContextTransform(Transform):
    """Write what the nearest step of the trajectory prompt says about each observation.

    Stands after a :class:`~llmdpd_torchrl.transforms.TrajectoryPromptTransform` in mode ``index``
    over the same bank. On an environment it runs at every reset and step; on a replay buffer it
    writes the contexts of s and, under ``"next"``, of s'.

    Args:
        retrieval: computes the context.
        in_keys: default ``["observation", ("prompt", "trajectory_index")]``.
        out_keys: default ``["prompt_context"]`` ([*, C] float32). It is not below ``"prompt"``:
            what is there belongs to the task, while this belongs to a state.

    Examples:
        >>> from tensordict import TensorDict
        >>> from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT
        >>> from llmdpd_torchrl.prompts.relative_frame import METAWORLD_FRAME
        >>> from llmdpd_torchrl.prompts.trajectory import TrajectoryPromptBank
        >>> steps = {"observation": torch.rand(1, 5, 39), "action": torch.rand(1, 5, 4),
        ...          "mask": torch.ones(1, 5, dtype=torch.bool)}
        >>> task = trajectory = torch.tensor([0])
        >>> bank = TrajectoryPromptBank(TensorDict(steps, [1, 5]), task, trajectory)
        >>> fields = METAWORLD_OBSERVATION_LAYOUT["fields"]
        >>> retrieval = PromptRetrieval(bank, METAWORLD_FRAME, fields)
        >>> state = TensorDict({"observation": torch.rand(3, 39), "next": {"observation":
        ...     torch.rand(3, 39)}, "prompt": {"trajectory_index": torch.zeros(3, 1).long()}}, [3])
        >>> state = PromptContextTransform(retrieval)(state)
        >>> state["prompt_context"].shape == (3, retrieval.features)
        True
    """

    def __init__(
        self,
        retrieval: PromptRetrieval,
        *,
        in_keys: list[NestedKey] | None = None,
        out_keys: list[NestedKey] | None = None,
    ) -> None:
        super().__init__(
            in_keys=in_keys or ["observation", ("prompt", "trajectory_index")],
            out_keys=out_keys or ["prompt_context"],
        )
        self.retrieval = retrieval

    def _context(self, observation: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return self.retrieval(observation, index.squeeze(-1))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the contexts of a sampled batch."""
        index = tensordict.get(self.in_keys[1])
        for prefix in ((), ("next",)):
            observation = tensordict.get(unravel_key((*prefix, self.in_keys[0])))
            key = unravel_key((*prefix, self.out_keys[0]))
            tensordict.set(key, self._context(observation, index))
        return tensordict

    def _reset(
        self, tensordict: TensorDictBase | None, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return self._step(tensordict_reset, tensordict_reset)

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        index = tensordict.get(self.in_keys[1])
        context = self._context(next_tensordict.get(self.in_keys[0]), index)
        return next_tensordict.set(self.out_keys[0], context)

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Declare the context as an observation."""
        shape = (*observation_spec.shape, self.retrieval.features)
        observation_spec[self.out_keys[0]] = Unbounded(
            shape, dtype=torch.float32, device=observation_spec.device
        )
        return observation_spec
