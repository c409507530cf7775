"""The retrieved context, its augmentation, and the observation gate, as transforms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.data import Composite, TensorSpec, Unbounded
from torchrl.envs.transforms import Transform

from llmdpd_torchrl.prompts.retrieval import PromptRetrieval
from llmdpd_torchrl.transforms.prompts import PromptTransform

_SMALLEST_SCALE = 0.1  # of the actions' other entries under augmentation


class RetrievedContextTransform(Transform):
    """Write the context of each observation: the nearest step of its trajectory prompt.

    Goes after a :class:`~llmdpd_torchrl.transforms.TrajectoryPromptTransform` in mode ``index``
    over the same bank. On an environment it runs at every reset and step; on a replay buffer it
    writes the contexts of s and, under ``"next"``, of s'.

    Args:
        retrieval: computes the context; it moves with the transform.
        in_keys: default ``["observation", ("prompt", "trajectory_index")]``.
        out_keys: default ``["retrieved_context"]`` ([*, C] float32; zeros without a prompt). It is
            not below ``"prompt"``, whose entries belong to the task, while this belongs to a state.

    Examples:
        >>> from tensordict import TensorDict
        >>> from llmdpd_torchrl.prompts import METAWORLD_FRAME, TrajectoryPromptBank
        >>> from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT
        >>> bank = TrajectoryPromptBank.empty(5, 39, 4)
        >>> fields = METAWORLD_OBSERVATION_LAYOUT["fields"]
        >>> retrieval = PromptRetrieval(bank, METAWORLD_FRAME, fields)
        >>> state = TensorDict({"observation": torch.rand(3, 39), "next": {"observation":
        ...     torch.rand(3, 39)}, "prompt": {"trajectory_index": torch.zeros(3, 1).long()}}, [3])
        >>> state = RetrievedContextTransform(retrieval)(state)
        >>> state["retrieved_context"].shape == (3, retrieval.features)
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
            out_keys=out_keys or ["retrieved_context"],
        )
        self.retrieval = retrieval

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the contexts of a sampled batch."""
        row = tensordict.get(self.in_keys[1]).squeeze(-1)
        for prefix in ((), ("next",)):
            observation = tensordict.get(unravel_key((*prefix, self.in_keys[0])))
            key = unravel_key((*prefix, self.out_keys[0]))
            tensordict.set(key, self.retrieval(observation, row))
        return tensordict

    def _reset(
        self, tensordict: TensorDictBase | None, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return self._step(tensordict_reset, tensordict_reset)

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        row = tensordict.get(self.in_keys[1]).squeeze(-1)
        context = self.retrieval(next_tensordict.get(self.in_keys[0]), row)
        return next_tensordict.set(self.out_keys[0], context)

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Declare the context as an observation."""
        shape = (*observation_spec.shape, self.retrieval.features)
        observation_spec[self.out_keys[0]] = Unbounded(
            shape, dtype=torch.float32, device=observation_spec.device
        )
        return observation_spec


class ObservationGateTransform(PromptTransform):
    """Observation gate: masks state and task embedding so that the actor must use the context.

    A policy that always sees the state memorises its training tasks by it and ignores the
    demonstration on a task that it was never trained on. So training closes the gate at random, and
    the policy learns to act with and without the state and the embedding of its task (see
    :class:`~llmdpd_torchrl.modules.GatedConditioner`, which masks them); at evaluation the gate is
    open exactly on the trained tasks.

    Args:
        trained_tasks: ids of the tasks that are trained on, as in
            ``NetworkConfig.trained_task_ids``.
        state_visible_prob: probability in training that the gate is open, per sampled transition.
        in_keys: default ``["task_id", ("prompt", "trajectory_index")]``. The gate is always open
            where the latter is -1: without a demonstration there is nothing to retrieve. It may be
            left out where every transition has a demonstration.
        out_keys: default ``[("prompt", "observation_gate")]`` ([*, 1] float32, 0 or 1).

    Randomness comes from torch's global generator.

    Examples:
        >>> from tensordict import TensorDict
        >>> transform = ObservationGateTransform([1], state_visible_prob=0.0)
        >>> rows = torch.tensor([[4], [-1]])
        >>> batch = {"task_id": torch.tensor([[1], [1]]), "prompt": {"trajectory_index": rows}}
        >>> transform(TensorDict(batch, [2]))["prompt", "observation_gate"].squeeze(-1)
        tensor([0., 1.])
    """

    trained: Tensor

    def __init__(
        self,
        trained_tasks: Sequence[int],
        *,
        state_visible_prob: float = 0.5,
        in_keys: list[NestedKey] | None = None,
        out_keys: list[NestedKey] | None = None,
    ) -> None:
        if not 0.0 <= state_visible_prob <= 1.0:
            raise ValueError(f"state_visible_prob is {state_visible_prob}: it must be in [0, 1]")
        super().__init__(
            in_keys=in_keys or ["task_id", ("prompt", "trajectory_index")],
            out_keys=out_keys or [("prompt", "observation_gate")],
        )
        self.state_visible_prob = state_visible_prob
        trained = torch.tensor(list(trained_tasks), dtype=torch.int64)
        self.register_buffer("trained", trained, persistent=False)

    def _prompt(self, tensordict: TensorDictBase, *, sampling: bool) -> dict[NestedKey, Tensor]:
        task = tensordict.get(self.in_keys[0])
        if sampling:
            is_open = torch.rand(task.shape, device=task.device) < self.state_visible_prob
        else:
            is_open = torch.isin(task, self.trained)
        for key in self.in_keys[1:]:
            is_open = is_open | (tensordict.get(key) < 0)
        return {self.out_keys[0]: is_open.to(torch.float32)}

    def _specs(self, shape: torch.Size) -> dict[NestedKey, TensorSpec]:
        return {self.out_keys[0]: Unbounded((*shape, 1), dtype=torch.float32)}


class ContextAugmentation(Transform):
    """Rotate the context and the action of sampled transitions where the gate is closed.

    All positions in a context are differences. Rotated at random, together with the movement in the
    action, they make a transition of a task that does not exist: the policy cannot memorise the
    directions of its training tasks, it has to follow the prompt's. Half of the transitions rotate
    about their last axis only, the vertical, so that gravity stays as it is. The actions' other
    entries, a gripper's for instance, are scaled together, for half of the transitions uniformly by
    0.1 to 1: the prompt's grip is to be copied, not memorised.

    State and task embedding are not rotated, so nothing changes where the observation gate is open.
    For a replay buffer, after :class:`~llmdpd_torchrl.transforms.RetrievedContextTransform` and
    :class:`~llmdpd_torchrl.transforms.ObservationGateTransform`; environments pass unchanged.

    Args:
        retrieval: source of the context; its layout is read.
        in_keys: default ``[("prompt", "observation_gate"), "retrieved_context", ("next",
            "retrieved_context"), "action", "expert_action"]``; the last may be left out, and is
            skipped where the batch has none.

    Randomness comes from torch's global generator. Movements that leave the range of actions are
    clipped to it.

    Examples:
        >>> rotations = random_rotations(2, 3)
        >>> torch.allclose(rotations @ rotations.mT, torch.eye(3).expand(2, 3, 3), atol=1e-5)
        True
    """

    def __init__(
        self, retrieval: PromptRetrieval, *, in_keys: list[NestedKey] | None = None
    ) -> None:
        keys: list[NestedKey] = [("prompt", "observation_gate"), "retrieved_context"]
        keys += [("next", "retrieved_context"), "action", "expert_action"]
        super().__init__(in_keys=in_keys or keys)
        self.position_dim = retrieval.frame.position_dim
        self._vectors, self._tails = retrieval.equivariant_columns()

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Change a sampled batch."""
        gate, *keys = self.in_keys[:3]
        action_key, *labels = self.in_keys[3:]
        actions = [action_key, *(key for key in labels if tensordict.get(key, None) is not None)]
        is_closed = (tensordict.get(gate) == 0).squeeze(-1)
        count = is_closed.numel()
        rotation = self._rotations(count, is_closed.device)
        scale = torch.rand(count, 1, device=is_closed.device, dtype=torch.float32)
        scale = _SMALLEST_SCALE + (1.0 - _SMALLEST_SCALE) * scale
        scale = torch.where(torch.rand_like(scale) < 0.5, scale, 1.0)
        movement, rest = slice(0, self.position_dim), slice(self.position_dim, None)
        for key, vectors, tails in (
            *((key, self._vectors, self._tails) for key in keys),
            *((key, [movement] if self.position_dim else [], [rest]) for key in actions),
        ):
            value = tensordict.get(key)
            changed, turn = value.reshape(count, -1).clone(), rotation.to(value.dtype)
            for part in vectors:
                changed[:, part] = (turn @ changed[:, part].unsqueeze(-1)).squeeze(-1)
            for part in tails:
                changed[:, part] *= scale
            if key in actions:
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
