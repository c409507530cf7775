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


class RetrievedContextTransform(Transform):
    """Write the context of each observation: the nearest step of its trajectory prompt.

    Goes after a :class:`~llmdpd_torchrl.transforms.TrajectoryPromptTransform` in mode ``index``
    over the same bank. On an environment it runs at every reset and step; on a replay buffer it
    writes the contexts of s and, under ``"next"``, of s'.

    Args:
        retrieval: computes the context; it moves with the transform.
        successors: whether sampled batches get the contexts of s' too, which critics read.
        in_keys: default ``["observation", ("prompt", "trajectory_index")]``.
        out_keys: default ``["retrieved_context"]`` ([*, C] float32; zeros without a prompt). It is
            not below ``"prompt"``, whose entries belong to the task, while this belongs to a state.

    Examples:
        >>> from tensordict import TensorDict
        >>> from llmdpd_torchrl.prompts import METAWORLD_RETRIEVAL, TrajectoryPromptBank
        >>> from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT
        >>> bank = TrajectoryPromptBank.empty(5, 39, 4)
        >>> fields = METAWORLD_OBSERVATION_LAYOUT["fields"]
        >>> retrieval = PromptRetrieval(bank, METAWORLD_RETRIEVAL, fields)
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
        successors: bool = True,
        in_keys: list[NestedKey] | None = None,
        out_keys: list[NestedKey] | None = None,
    ) -> None:
        super().__init__(
            in_keys=in_keys or ["observation", ("prompt", "trajectory_index")],
            out_keys=out_keys or ["retrieved_context"],
        )
        self.retrieval = retrieval
        self.successors = successors

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the contexts of a sampled batch."""
        row = tensordict.get(self.in_keys[1]).squeeze(-1)
        for prefix in ((), ("next",))[: 1 + self.successors]:
            observation = tensordict.get(unravel_key((*prefix, self.in_keys[0])))
            key = unravel_key((*prefix, self.out_keys[0]))
            tensordict.set(key, self.retrieval(observation, row))
        return tensordict

    def _reset(
        self, tensordict: TensorDictBase | None, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return self._step(tensordict_reset, tensordict_reset)

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        row = next_tensordict.get(self.in_keys[1]).squeeze(-1)
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
    """Turn the context and the action of sampled transitions where the gate is closed.

    All positions in a context are differences. Turned about the vertical at random, and mirrored
    half of the time, together with the movement in the action, they make a transition of a task
    that does not exist: the policy cannot memorise the directions of its training tasks, it has to
    follow the prompt's. Gravity stays as it is.

    State and task embedding are not turned, so nothing changes where the observation gate is open.
    For a replay buffer, after :class:`~llmdpd_torchrl.transforms.RetrievedContextTransform` and
    :class:`~llmdpd_torchrl.transforms.ObservationGateTransform`; environments pass unchanged.

    Args:
        retrieval: source of the context; its layout is read.
        unchanged: fraction of the transitions that stay as they are.
        in_keys: default ``[("prompt", "observation_gate"), "retrieved_context", ("next",
            "retrieved_context"), "action", "expert_action"]``. The next context and the last are
            skipped where the batch has none.

    Randomness comes from torch's global generator.

    Examples:
        >>> turns = random_turns(2, 3)
        >>> torch.allclose(turns @ turns.mT, torch.eye(3).expand(2, 3, 3), atol=1e-5)
        True
    """

    _columns: Tensor

    def __init__(
        self,
        retrieval: PromptRetrieval,
        *,
        unchanged: float = 0.3,
        in_keys: list[NestedKey] | None = None,
    ) -> None:
        keys: list[NestedKey] = [("prompt", "observation_gate"), "retrieved_context"]
        keys += [("next", "retrieved_context"), "action", "expert_action"]
        super().__init__(in_keys=in_keys or keys)
        self.unchanged = unchanged
        vectors = [[*range(part.start, part.stop)] for part in retrieval.layout.vectors]
        self.register_buffer("_columns", torch.tensor(vectors).long(), persistent=False)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Change a sampled batch."""
        if not self._columns.numel():  # no positions, as in locomotion
            return tensordict
        gate = self.in_keys[0]
        there = [key for key in self.in_keys[1:] if tensordict.get(key, None) is not None]
        contexts = [key for key in there if key in self.in_keys[1:3]]
        actions = [key for key in there if key not in contexts]
        is_closed = (tensordict.get(gate) == 0).squeeze(-1)
        size = self._columns.shape[1]
        turn = random_turns(is_closed.numel(), size, is_closed.device)
        stays = torch.rand(is_closed.shape, device=is_closed.device) < self.unchanged
        stays = (stays | ~is_closed).reshape(-1, 1, 1)
        turn = torch.where(stays, torch.eye(size, device=turn.device, dtype=turn.dtype), turn)
        movement = torch.arange(size, device=turn.device).unsqueeze(0)
        pairs = [(key, self._columns) for key in contexts] + [(key, movement) for key in actions]
        for key, columns in pairs:
            value = tensordict.get(key)
            changed = value.reshape(len(turn), -1).clone()
            changed[:, columns] = changed[:, columns] @ turn.mT.to(value.dtype)
            tensordict.set(key, changed.reshape(value.shape))
        return tensordict

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict


def random_turns(count: int, size: int, device: torch.device | str | None = None) -> Tensor:
    """Orthogonal matrices ``[count, size, size]`` that leave the last axis as it is.

    They are uniformly distributed among those, reflections included.
    """
    turn = torch.zeros(count, size, size, device=device, dtype=torch.float32)
    turn[:, -1, -1] = 1.0
    gaussian = torch.randn(count, size - 1, size - 1, device=device, dtype=torch.float32)
    q, r = torch.linalg.qr(gaussian)
    # Without the signs of R the distribution would not be uniform (Mezzadri 2007).
    turn[:, :-1, :-1] = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return turn
