"""Random rotation and gripper-scale augmentation of the retrieved context and the action."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.envs.transforms import Transform

from llmdpd_torchrl.prompts.retrieval import PromptRetrieval


class ContextAugmentation(Transform):
    """Rotate the context and the action of sampled transitions where the gate is closed.

    All positions in a context are differences. Rotated at random, together with the movement in the
    action, they make a transition of a task that does not exist: the policy cannot memorise the
    directions of its training tasks, it has to follow the prompt's. Half of the transitions rotate
    about their last axis only, the vertical, so that gravity stays as it is. The actions' other
    entries, a gripper's for instance, are scaled together: the prompt's grip is to be copied, not
    memorised.

    State and task embedding are not rotated, so nothing changes where the observation gate is open.
    For a replay buffer, after :class:`~llmdpd_torchrl.transforms.PromptContextTransform` and
    :class:`~llmdpd_torchrl.transforms.ObservationGateTransform`; environments pass unchanged.

    Args:
        retrieval: source of the context; its layout is read.
        smallest_scale: lower end of the scale of the actions' other entries, which is uniform up to
            1 for half of the transitions and 1 for the others.
        in_keys: default ``[("prompt", "observation_gate"), "prompt_context", ("next",
            "prompt_context"), "action"]``.

    Randomness comes from torch's global generator. Movements that leave the range of actions are
    clipped to it.

    Raises:
        ValueError: if the scale is not in [0, 1].

    Examples:
        >>> rotations = random_rotations(2, 3)
        >>> torch.allclose(rotations @ rotations.mT, torch.eye(3).expand(2, 3, 3), atol=1e-5)
        True
    """

    def __init__(
        self,
        retrieval: PromptRetrieval,
        *,
        smallest_scale: float = 0.1,
        in_keys: list[NestedKey] | None = None,
    ) -> None:
        if not 0.0 <= smallest_scale <= 1.0:
            raise ValueError(f"smallest_scale is {smallest_scale}: it must be in [0, 1]")
        keys: list[NestedKey] = [("prompt", "observation_gate"), "prompt_context"]
        keys += [("next", "prompt_context"), "action"]
        super().__init__(in_keys=in_keys or keys)
        self.position_dim = retrieval.frame.position_dim
        self.smallest_scale = smallest_scale
        self._vectors, self._tails = retrieval.equivariant_columns()

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Change a sampled batch."""
        gate, *keys, action_key = self.in_keys
        is_closed = (tensordict.get(gate) == 0).squeeze(-1)
        count = is_closed.numel()
        rotation = self._rotations(count, is_closed.device)
        scale = torch.rand(count, 1, device=is_closed.device, dtype=torch.float32)
        scale = self.smallest_scale + (1.0 - self.smallest_scale) * scale
        scale = torch.where(torch.rand_like(scale) < 0.5, scale, 1.0)
        movement, rest = slice(0, self.position_dim), slice(self.position_dim, None)
        for key, vectors, tails in (
            *((key, self._vectors, self._tails) for key in keys),
            (action_key, [movement] if self.position_dim else [], [rest]),
        ):
            value = tensordict.get(key)
            changed, turn = value.reshape(count, -1).clone(), rotation.to(value.dtype)
            for part in vectors:
                changed[:, part] = (turn @ changed[:, part].unsqueeze(-1)).squeeze(-1)
            for part in tails:
                changed[:, part] *= scale
            if key == action_key:
                changed = changed.clamp(-1.0, 1.0)
            changed = changed.reshape(value.shape)
            tensordict.set(key, torch.where(is_closed.unsqueeze(-1), changed, value))
        return tensordict

    def _rotations(self, count: int, device: torch.device) -> Tensor:
        rotation = random_rotations(count, self.position_dim, device)
        if self.position_dim > 1:
            upright = torch.zeros_like(rotation)
            upright[:, :-1, :-1] = random_rotations(count, self.position_dim - 1, device)
            upright[:, -1, -1] = 1.0
            stays = torch.rand(count, 1, 1, device=device, dtype=torch.float32) < 0.5
            rotation = torch.where(stays, upright, rotation)
        return rotation

    def _reset(
        self, tensordict: TensorDictBase | None, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return tensordict_reset

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict


def random_rotations(count: int, size: int, device: torch.device | str | None = None) -> Tensor:
    """Orthogonal matrices ``[count, size, size]``, uniformly distributed, reflections included."""
    if not size:
        return torch.zeros(count, 0, 0, device=device, dtype=torch.float32)
    gaussian = torch.randn(count, size, size, device=device, dtype=torch.float32)
    q, r = torch.linalg.qr(gaussian)
    # Without the signs of R the distribution would not be uniform (Mezzadri 2007).
    return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
