"""Prompts as transforms: their rows in frozen tables, one trajectory's steps, and z on an env."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey, expand_as_right
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, TensorSpec, Unbounded
from torchrl.envs.transforms import Transform

from llmdpd_torchrl.prompts.tables import TrajectoryPromptBank
from llmdpd_torchrl.utils.errors import PromptError

_MODES = ("index", "tensor")
_CHOICES = ("random", "first")
_ONLY_ITS_OWN = (
    "a task's only trajectory prompt is the trajectory that is trained on; collect at least two "
    "successful episodes per task"
)


class PromptTransform(Transform):
    """Base of transforms whose outputs belong to an episode.

    On an environment the outputs are computed once per reset and copied by reference at each step;
    on a replay buffer they are computed for every sampled batch. Subclasses implement
    :meth:`_prompt` and :meth:`_specs`.
    """

    def _prompt(self, tensordict: TensorDictBase, *, sampling: bool) -> dict[NestedKey, Tensor]:
        """Outputs for a sampled batch of transitions, or for what a reset returned."""
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


class TextPromptTransform(PromptTransform):
    """Write the row of a task's text prompt in the table of embeddings, which is its task id.

    The prompt network owns the table and encodes each distinct prompt of a batch once.

    Args:
        table: ``[T, D]`` frozen embeddings, row = ``task_id``.
        dropout: probability that a sampled transition has no text (row -1).
        in_keys: the task key, default ``["task_id"]`` ([*, 1] int64).
        out_keys: default ``[("prompt", "text_index")]`` ([*, 1] int64).

    Raises:
        ValueError: on another table, or a dropout out of range.

    Examples:
        >>> from tensordict import TensorDict
        >>> transform = TextPromptTransform(torch.eye(3))
        >>> data = TensorDict({"task_id": torch.tensor([[2], [0]])}, batch_size=[2])
        >>> transform(data)["prompt", "text_index"].tolist()
        [[2], [0]]
    """

    def __init__(
        self,
        table: Tensor,
        *,
        dropout: float = 0.0,
        in_keys: list[NestedKey] | None = None,
        out_keys: list[NestedKey] | None = None,
    ) -> None:
        super().__init__(
            in_keys=in_keys or ["task_id"], out_keys=out_keys or [("prompt", "text_index")]
        )
        if table.ndim != 2:
            raise ValueError(f"the text table must have shape [T, D], found {list(table.shape)}")
        self.rows = len(table)
        self.dropout = _check_dropout(dropout)

    def _prompt(self, tensordict: TensorDictBase, *, sampling: bool) -> dict[NestedKey, Tensor]:
        task = tensordict.get(self.in_keys[0])
        return {self.out_keys[0]: _drop_rows(task, self.dropout if sampling else 0.0).clone()}

    def _specs(self, shape: torch.Size) -> dict[NestedKey, TensorSpec]:
        return {self.out_keys[0]: Categorical(self.rows, (*shape, 1), dtype=torch.int64)}


class TrajectoryPromptTransform(PromptTransform):
    """Write a trajectory prompt of the transition's task: its row in the bank, or its steps.

    On a replay buffer, ``prompts_per_task`` prompts of each task are sampled per batch and shared
    by the batch's transitions of that task, so that a batch costs that many encodings per task and
    not one per transition; a transition is never prompted with the trajectory that it comes from.
    They are of different trajectories: of several rows of one, each batch takes a random one.
    On an environment there is one prompt per episode.

    Args:
        bank: the prompts.
        mode: ``"index"`` writes ``("prompt", "trajectory_index")`` [*, 1] int64, ``"tensor"``
            writes ``("prompt", "trajectory")`` with entries of shape [*, L, ...].
        prompts_per_task: candidates sampled per task and batch; at least 2.
        choice: the prompt of an environment: ``"first"``, the task's first prompt, or ``"random"``.
        dropout: probability that a sampled transition has no prompt (row -1; mode ``"index"``
            only), so that the policy learns to do without. An environment always has one.
        in_keys: default ``["task_id", "trajectory_id"]``; the latter is read on a replay buffer
            only.

    Raises:
        ValueError: on an unknown mode or choice, or a number out of range.
        PromptError: at run time, if a task has no prompt, or on a replay buffer only one that is
            the transition's own trajectory.

    Randomness comes from torch's global generator.

    Examples:
        >>> from tensordict import TensorDict
        >>> prompts = TensorDict({"mask": torch.ones(2, 4, dtype=torch.bool)}, batch_size=[2, 4])
        >>> bank = TrajectoryPromptBank(prompts, torch.tensor([1, 1]), torch.tensor([0, 1]))
        >>> transform = TrajectoryPromptTransform(bank)
        >>> batch = TensorDict(
        ...     {"task_id": torch.tensor([[1]]), "trajectory_id": torch.tensor([[0]])}, [1]
        ... )
        >>> transform(batch)["prompt", "trajectory_index"]
        tensor([[1]])
    """

    _rows: Tensor
    _counts: Tensor
    _copies: Tensor

    def __init__(
        self,
        bank: TrajectoryPromptBank,
        *,
        mode: str = "index",
        prompts_per_task: int = 2,
        choice: str = "random",
        dropout: float = 0.0,
        in_keys: list[NestedKey] | None = None,
    ) -> None:
        for name, value, known in (("mode", mode, _MODES), ("choice", choice, _CHOICES)):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}: use one of {', '.join(known)}")
        if dropout and mode != "index":
            raise ValueError(
                'a prompt can only be left out by its row: use mode="index" with dropout'
            )
        if prompts_per_task < 2:
            raise ValueError(f"prompts_per_task is {prompts_per_task}: it must be at least 2")
        out_keys: list[NestedKey]
        if mode == "index":
            out_keys = [("prompt", "trajectory_index")]
        else:
            out_keys = [("prompt", "trajectory", key) for key in bank.prompts.keys()]  # noqa: SIM118
        super().__init__(in_keys=in_keys or ["task_id", "trajectory_id"], out_keys=out_keys)
        self.mode = mode
        self.dropout = _check_dropout(dropout)
        self.bank = bank.shallow_copy()  # moved with the transform, and the caller's is not
        self.choice = choice
        self.prompts_per_task = prompts_per_task
        # The rows of each trajectory of each task, padded: [max task id + 1, n, copies].
        groups = [_by_trajectory(bank, task) for task in range(int(bank.task_id.max()) + 1)]
        counts = torch.tensor([len(group) for group in groups])
        copies = torch.ones(len(groups), int(counts.max()), dtype=torch.int64)
        for task, group in enumerate(groups):
            copies[task, : len(group)] = torch.tensor([len(rows) for rows in group])
        rows = torch.zeros(*copies.shape, int(copies.max()), dtype=torch.int64)
        for task, group in enumerate(groups):
            for number, of_one in enumerate(group):
                rows[task, number, : len(of_one)] = torch.tensor(of_one)
        self.register_buffer("_rows", rows, persistent=False)
        self.register_buffer("_counts", counts, persistent=False)
        self.register_buffer("_copies", copies, persistent=False)

    def _prompt(self, tensordict: TensorDictBase, *, sampling: bool) -> dict[NestedKey, Tensor]:
        task = tensordict.get(self.in_keys[0]).squeeze(-1)
        self._check_tasks(task)
        if sampling:
            own = tensordict.get(self.in_keys[1]).squeeze(-1)
            row = _drop_rows(self._sample_other(task, own), self.dropout)
        elif self.choice == "first":
            row = self._rows[task, 0, 0]
        else:
            number = torch.rand(task.shape, device=task.device) * self._counts[task]
            row = self._choose_copies()[task, number.long()]
        if self.mode == "index":
            return {self.out_keys[0]: row.unsqueeze(-1)}
        prompts = self.bank.prompts[row]
        return {key: prompts.get(key[-1]) for key in self.out_keys}

    def check_training(self, tasks: Tensor) -> None:
        """Refuse once what sampling cannot ask of every batch without waiting for a GPU.

        Raises:
            PromptError: if one of ``tasks`` has no prompt, or only one that is trained on.
        """
        tasks = tasks.unique()
        self._check_tasks(tasks)
        only = self._rows[tasks[self._counts[tasks] == 1], 0, 0]
        if (self.bank.trajectory_id[only] >= 0).any():
            raise PromptError(_ONLY_ITS_OWN)

    def _check_tasks(self, task: Tensor) -> None:
        if task.device.type != "cpu" or not task.numel():
            return
        if int(task.max()) >= len(self._counts) or not self._counts[task].all():
            known = set(self.bank.task_id.tolist())
            missing = set(task.flatten().tolist()) - known
            raise PromptError(
                f"no trajectory prompt for task {min(missing)}; known ids {sorted(known)}"
            )

    def _sample_other(self, task: Tensor, own: Tensor) -> Tensor:
        """Rows of the bank for transitions of ``task`` [B] in the trajectories ``own`` [B]."""
        # A random order of each task's trajectories, of which the first few are this batch's
        # candidates, so that beside a transition's own there is always another.
        rows = self._choose_copies()
        order = torch.rand(rows.shape, device=rows.device)
        padding = torch.arange(rows.shape[1], device=order.device) >= self._counts[:, None]
        order = order.masked_fill(padding, 2.0)
        candidates = min(self.prompts_per_task, rows.shape[1])
        columns = order.topk(candidates, largest=False).indices
        offered = self._counts.clamp(max=candidates)[task]
        first = (torch.rand(task.shape, device=task.device) * offered).long()
        row = rows[task, columns[task, first]]
        clash = self.bank.trajectory_id[row] == own
        other = rows[task, columns[task, (first + 1) % offered]]
        row = torch.where(clash, other, row)
        if row.device.type == "cpu" and (self.bank.trajectory_id[row] == own).any():
            raise PromptError(_ONLY_ITS_OWN)
        return row

    def _choose_copies(self) -> Tensor:
        """A row of each trajectory of each task, at random: [max task id + 1, n]."""
        if self._rows.shape[-1] == 1:
            return self._rows.squeeze(-1)
        number = torch.rand(self._copies.shape, device=self._copies.device) * self._copies
        return self._rows.gather(-1, number.long().unsqueeze(-1)).squeeze(-1)

    def _specs(self, shape: torch.Size) -> dict[NestedKey, TensorSpec]:
        if self.mode == "index":
            return {self.out_keys[0]: Categorical(len(self.bank), (*shape, 1), dtype=torch.int64)}
        specs: dict[NestedKey, TensorSpec] = {}
        for key in self.out_keys:
            value = self.bank.prompts.get(key[-1])
            size = (*shape, *value.shape[1:])
            specs[key] = (
                Categorical(2, size, dtype=torch.bool)
                if value.dtype == torch.bool
                else Unbounded(size, dtype=value.dtype)
            )
        return specs


class AbsentPromptTransform(PromptTransform):
    """Write row -1, which means no prompt, for a policy that was trained with prompt dropout.

    Args:
        out_keys: ``[("prompt", "text_index")]`` or ``[("prompt", "trajectory_index")]``.
        in_keys: an entry of the shape of the batch, default ``["task_id"]``.

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

    def _prompt(self, tensordict: TensorDictBase, *, sampling: bool) -> dict[NestedKey, Tensor]:
        task = tensordict.get(self.in_keys[0])
        return {key: torch.full_like(task, -1, dtype=torch.int64) for key in self.out_keys}

    def _specs(self, shape: torch.Size) -> dict[NestedKey, TensorSpec]:
        return {key: Bounded(-1, 0, (*shape, 1), dtype=torch.int64) for key in self.out_keys}


class PromptEmbeddingTransform(PromptTransform):
    """Run a prompt network once per reset, without gradient, and write z for all of the episode.

    For environments only: on a replay buffer z would be of outdated weights and without gradient,
    so the loss runs the network there.

    Args:
        prompt_network: maps what the prompt transforms write to ``prompt_embedding``; its
            ``in_keys`` and ``out_keys`` become the transform's.
        embedding_dim: width of z.

    Examples:
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl.envs import GymEnv, TransformedEnv
        >>> head = TensorDictModule(torch.nn.Linear(3, 2), ["observation"], ["prompt_embedding"])
        >>> env = TransformedEnv(GymEnv("Pendulum-v1"), PromptEmbeddingTransform(head, 2))
        >>> env.rollout(2)["prompt_embedding"].shape
        torch.Size([2, 2])
    """

    def __init__(self, prompt_network: TensorDictModuleBase, embedding_dim: int) -> None:
        super().__init__(
            in_keys=list(prompt_network.in_keys), out_keys=list(prompt_network.out_keys)
        )
        self.embedding_dim = embedding_dim
        # In a tuple, so that the network is not registered: appending a transform must neither put
        # the network into eval mode nor its weights into the environment's state_dict.
        self._network = (prompt_network,)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Refuse to run on a replay buffer."""
        raise RuntimeError(
            "PromptEmbeddingTransform is for environments: on a replay buffer use the prompt "
            "transforms alone and give the prompt network to the loss"
        )

    @torch.no_grad()
    def _prompt(self, tensordict: TensorDictBase, *, sampling: bool) -> dict[NestedKey, Tensor]:
        rows = tensordict.select(*self.in_keys)
        home = rows.get(self.in_keys[0]).device
        weight = next(self._network[0].parameters(), None)
        z = self._network[0](rows if weight is None else rows.to(weight.device))
        return {self.out_keys[0]: z.get(self.out_keys[0]).to(home)}

    def _specs(self, shape: torch.Size) -> dict[NestedKey, TensorSpec]:
        return {self.out_keys[0]: Unbounded((*shape, self.embedding_dim), dtype=torch.float32)}


def _by_trajectory(bank: TrajectoryPromptBank, task: int) -> list[list[int]]:
    """The rows of each trajectory of a task; each that is of none in the data is one of its own."""
    rows = bank.rows_of(task).tolist()
    groups: dict[tuple[int, int], list[int]] = {}
    for row, trajectory in zip(rows, bank.trajectory_id[rows].tolist(), strict=True):
        groups.setdefault((trajectory, row if trajectory < 0 else 0), []).append(row)
    return list(groups.values())


def _check_dropout(dropout: float) -> float:
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is {dropout}: it must be at least 0 and below 1")
    return dropout


def _drop_rows(row: Tensor, dropout: float) -> Tensor:
    """Rows ``[*]``, each replaced by -1, no prompt, with probability ``dropout``."""
    if not dropout:
        return row
    return row.masked_fill(torch.rand(row.shape, device=row.device) < dropout, -1)
