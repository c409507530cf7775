"""The prompts of a set of tasks: a table of texts and a bank of trajectories of one length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from tensordict import TensorDict, TensorDictBase, pad
from torch import Tensor, nn

from llmdpd_torchrl.data.dataset import TrajectoryDataset
from llmdpd_torchrl.prompts.demonstrations import check_demonstration
from llmdpd_torchrl.prompts.spacing import Spacing, cut_trajectory
from llmdpd_torchrl.utils.errors import ConfigError, PromptError


class PromptTables(nn.Module):
    """All prompts that a policy may be given, indexed by rows.

    Both tables are frozen data: no language model runs after they are made. They are non-persistent
    buffers, so they follow ``.to()`` and stay out of a ``state_dict``. What is not given is
    ``None``: a policy that was trained with prompt dropout acts without it, others raise a
    ``ConfigError``.

    Args:
        text: ``[T, D]`` float32 text embeddings, row = task id.
        trajectories: trajectory prompts of the tasks.
        turn: steps after which an episode goes on with the task's next trajectory; ``None``: the
            first one is followed throughout.

    Raises:
        PromptError: if the text table is no matrix, or the trajectories are no bank.

    Examples:
        >>> tables = PromptTables(text=torch.zeros(50, 576))
        >>> tables.text.shape, tables.trajectories
        (torch.Size([50, 576]), None)
    """

    text: Tensor | None
    trajectories: TrajectoryPromptBank | None

    def __init__(
        self,
        text: Tensor | None = None,
        trajectories: TrajectoryPromptBank | None = None,
        turn: int | None = None,
    ) -> None:
        super().__init__()
        self.turn = turn
        if text is not None and (not isinstance(text, Tensor) or text.ndim != 2):
            found = list(text.shape) if isinstance(text, Tensor) else type(text).__name__
            raise PromptError(f"the text table is {found}: give embeddings [T, D], row = task id")
        if text is not None and not (fine := text.isfinite().all(-1)).all():
            row = int((~fine).nonzero()[0])
            raise PromptError(f"row {row} of the text table has numbers that are not finite")
        if trajectories is not None and not isinstance(trajectories, TrajectoryPromptBank):
            raise PromptError(
                f"the trajectories are a {type(trajectories).__name__}: give a TrajectoryPromptBank"
            )
        self.register_buffer("text", text, persistent=False)
        self.trajectories = trajectories

    @property
    def task_ids(self) -> set[int]:
        """Tasks that have a trajectory prompt."""
        return set() if self.trajectories is None else set(self.trajectories.task_id.tolist())

    def shallow_copy(self) -> PromptTables:
        """Tables of their own over the same tensors: moving one does not move the other."""
        return self.map_trajectories(TrajectoryPromptBank.shallow_copy)

    def follow(self, reference: Tensor) -> PromptTables:
        """Move to the device and floating-point type of ``reference``, unless already there."""
        wanted = (reference.device, reference.dtype)
        if any((b.device, b.dtype) != wanted for b in self.buffers() if b.is_floating_point()):
            self.to(device=reference.device, dtype=reference.dtype)
        return self

    def map_trajectories(
        self, change: Callable[[TrajectoryPromptBank], TrajectoryPromptBank]
    ) -> PromptTables:
        """The same texts, and what ``change`` makes of the trajectories, if there are any."""
        bank = self.trajectories
        return PromptTables(self.text, None if bank is None else change(bank), self.turn)


class TrajectoryPromptBank(nn.Module):
    """All trajectories that a policy may be prompted with, cut to one length.

    A transition never carries a prompt, only the prompt's row in this bank. The tensors are
    non-persistent buffers: they follow ``.to()`` and stay out of a ``state_dict``.

    Args:
        prompts: TensorDict ``[P, L]``, rows as
            :func:`~llmdpd_torchrl.prompts.spacing.cut_trajectory` makes them.
        task_id: ``[P]`` int64, the task of each prompt.
        trajectory_id: ``[P]`` int64, the training trajectory that the prompt was cut from, or -1
            where it is not in the training data.

    Attributes:
        length: L, the number of steps of a prompt.

    Examples:
        >>> prompts = TensorDict({"mask": torch.ones(3, 4, dtype=torch.bool)}, batch_size=[3, 4])
        >>> bank = TrajectoryPromptBank(
        ...     prompts, task_id=torch.tensor([7, 7, 9]), trajectory_id=torch.tensor([0, 1, 2])
        ... )
        >>> bank.rows_of(7).tolist(), len(bank)
        ([0, 1], 3)
    """

    def __init__(self, prompts: TensorDictBase, task_id: Tensor, trajectory_id: Tensor) -> None:
        super().__init__()
        self.entries = tuple(prompts.keys())
        self.length = prompts.shape[1]
        for name in self.entries:
            self.register_buffer(f"prompt_{name}", prompts.get(name), persistent=False)
        self.task_id = nn.Buffer(task_id, persistent=False)
        self.trajectory_id = nn.Buffer(trajectory_id, persistent=False)

    def __len__(self) -> int:
        return len(self.task_id)

    @property
    def prompts(self) -> TensorDictBase:
        """TensorDict ``[P, L]`` of the buffers, which it shares."""
        columns = {name: self.get_buffer(f"prompt_{name}") for name in self.entries}
        return TensorDict(columns, [len(self), self.length])

    @property
    def masks(self) -> tuple[str, ...]:
        """The entries that say which steps are there."""
        return tuple(name for name in self.entries if name.endswith("mask"))

    def entries_under(self, mask: str) -> tuple[str, ...]:
        """The entries, one of :attr:`masks` among them, whose steps it is about."""
        recorded = mask.startswith("recorded_")
        return tuple(n for n in self.entries if n.startswith("recorded_") == recorded)

    @property
    def has_recorded(self) -> bool:
        """Whether the trajectories are there as recorded too, see :meth:`recorded`."""
        return "recorded_mask" in self.entries

    def recorded(self) -> TrajectoryPromptBank:
        """The same prompts cut evenly in time, where their steps lie evenly in what moves.

        That is how they can be replayed: with the waits, and the pace of each movement.

        Returns:
            a bank with ``observation``, ``action``, ``mask`` and, of a concatenated one, ``start``
            and ``end``.
        """
        prompts = self.prompts
        entries = {k: prompts[f"recorded_{k}"] for k in ("observation", "action", "mask")}
        if self.is_concatenated:
            start, mask = prompts["start"], entries["mask"]
            steps = torch.zeros_like(start).scatter_add_(1, start, mask.long())
            entries |= {"start": start, "end": start + steps.gather(1, start) - 1}
        bank = TensorDict(entries, prompts.batch_size)
        return TrajectoryPromptBank(bank, self.task_id, self.trajectory_id)

    @property
    def is_concatenated(self) -> bool:
        """Whether a prompt holds several demonstrations, see :meth:`concatenated`."""
        return "start" in self.entries

    def rows_of(self, task_id: int) -> Tensor:
        """Rows of the prompts of one task, ``[n]`` int64."""
        return (self.task_id == task_id).nonzero().squeeze(-1)

    @classmethod
    def empty(cls, length: int, observation_dim: int, action_dim: int) -> TrajectoryPromptBank:
        """A bank of one prompt that says nothing and belongs to no task.

        A placeholder for policies that are used without any trajectory.

        Examples:
            >>> TrajectoryPromptBank.empty(4, 39, 4).task_id.tolist()
            [-1]
        """
        mask = torch.zeros(1, length, dtype=torch.bool)
        mask[:, 0] = True  # an average over no step at all would not be finite
        entries = {
            "observation": torch.zeros(1, length, observation_dim),
            "action": torch.zeros(1, length, action_dim),
            "reward": torch.zeros(1, length, 1),
            "return_to_go": torch.zeros(1, length, 1),
            "has_action": torch.zeros_like(mask),
            "mask": mask,
        }
        nobody = torch.tensor([-1])
        return cls(TensorDict(entries, [1, length]), nobody, nobody.clone())

    @classmethod
    def from_dataset(
        cls,
        dataset: TrajectoryDataset,
        length: int,
        *,
        trained_on: bool = True,
        spacing: Spacing | None = None,
        recorded: bool = False,
        change: Callable[[TensorDictBase, int], TensorDictBase] | None = None,
    ) -> TrajectoryPromptBank:
        """Cut the successful trajectories of ``dataset`` into prompts.

        Args:
            dataset: training data, or a support set.
            length: L.
            trained_on: whether the trajectories are in the training data, so that a transition must
                not be prompted with its own trajectory.
            spacing: where the steps of a prompt lie; ``None``: evenly in time.
            recorded: whether the trajectories as recorded are added, see :meth:`recorded`.
            change: what to make of each trajectory, by its number, before it is cut.

        Raises:
            PromptError: if ``length`` is below 2 or a task has no successful trajectory.
        """
        if length < 2:
            raise PromptError(f"prompt length is {length}: a trajectory prompt needs at least 2")
        rows: list[int] = []
        success = dataset.trajectory_success
        for task_id in dataset.trajectory_task.unique():
            of_task = ((dataset.trajectory_task == task_id) & success).nonzero().squeeze(-1)
            if not len(of_task):
                name = dataset.manifest.task_table[int(task_id)]
                raise PromptError(
                    f"{name}: no successful trajectory to show as prompt; collect more episodes"
                )
            rows += of_task.tolist()
        trajectories = [dataset.trajectory(row) for row in rows]
        if change is not None:
            trajectories = [change(each, row) for each, row in zip(trajectories, rows, strict=True)]
        prompts = torch.stack(
            [cut_trajectory(each, length, spacing, recorded=recorded) for each in trajectories]
        )
        identity = torch.tensor(rows) if trained_on else torch.full((len(rows),), -1)
        return cls(prompts, dataset.trajectory_task[rows], identity)

    @classmethod
    def from_rollouts(
        cls,
        rollouts: Mapping[int, Sequence[TensorDictBase]],
        length: int,
        observation_dim: int | None = None,
        action_dim: int | None = None,
        spacing: Spacing | None = None,
    ) -> TrajectoryPromptBank:
        """Cut demonstrations into prompts.

        Args:
            rollouts: by task id, demonstrations ``[T]`` of one episode each, with ``observation``,
                ``action`` and ``("next", "reward")``.
            length: L.
            observation_dim: O, default: that of the first.
            action_dim: A, default: that of the first.
            spacing: where the steps of a prompt lie; ``None``: evenly in time.

        Raises:
            PromptError: if one lacks an entry, has another width, holds a number that is not
                finite, or spans several episodes.

        Examples:
            >>> steps = {"observation": torch.rand(9, 3), "action": torch.rand(9, 2),
            ...          "next": {"reward": torch.ones(9, 1)}}
            >>> TrajectoryPromptBank.from_rollouts({7: [TensorDict(steps, [9])]}, 4).length
            4
        """
        pairs = [(task, rollout) for task, several in rollouts.items() for rollout in several]
        prompts = []
        for number, (_, rollout) in enumerate(pairs):
            steps = check_demonstration(rollout, number, observation_dim, action_dim)
            observation_dim, action_dim = (steps[k].shape[-1] for k in ("observation", "action"))
            prompts.append(cut_trajectory(steps, length, spacing, recorded=True))
        task_id = torch.tensor([task for task, _ in pairs], dtype=torch.int64)
        return cls(torch.stack(prompts), task_id, torch.full_like(task_id, -1))

    @classmethod
    def concatenate(cls, banks: Sequence[TrajectoryPromptBank]) -> TrajectoryPromptBank:
        """One bank of several with equal prompt lengths, rows in the order given.

        It has the entries that all of them have.
        """
        entries = [name for name in banks[0].entries if all(name in b.entries for b in banks)]
        return cls(
            torch.cat([bank.prompts.select(*entries) for bank in banks]),
            torch.cat([bank.task_id for bank in banks]),
            torch.cat([bank.trajectory_id for bank in banks]),
        )

    def first(self, count: int) -> TrajectoryPromptBank:
        """The first ``count`` prompts of each task, or all that there are."""
        rows = torch.cat([self.rows_of(int(task))[:count] for task in self.task_id.unique()])
        return TrajectoryPromptBank(
            self.prompts[rows], self.task_id[rows], self.trajectory_id[rows]
        )

    def from_number(self, number: int) -> TrajectoryPromptBank:
        """Each task's prompts from the one of this number on, and after the last the first again.

        Examples:
            >>> mask = torch.tensor([[True, False], [True, True]])
            >>> prompts = TensorDict({"mask": mask}, batch_size=[2, 2])
            >>> bank = TrajectoryPromptBank(prompts, torch.tensor([7, 7]), torch.tensor([0, 1]))
            >>> bank.from_number(1).trajectory_id.tolist()
            [1, 0]
        """
        order = torch.cat([self.rows_of(int(task)).roll(-number) for task in self.task_id.unique()])
        return TrajectoryPromptBank(
            self.prompts[order], self.task_id[order], self.trajectory_id[order]
        )

    def shallow_copy(self) -> TrajectoryPromptBank:
        """A bank of its own over the same tensors: moving one does not move the other."""
        return TrajectoryPromptBank(self.prompts, self.task_id, self.trajectory_id)

    def check_length(self, length: int, *, retrieves: bool) -> None:
        """Check that a policy of prompts of ``length`` steps can read these.

        Raises:
            ConfigError: if they are longer or shorter, or concatenated for one that pools.
        """
        if self.is_concatenated and not retrieves:
            raise ConfigError(
                "this policy pools its trajectory prompt and cannot read concatenated "
                "demonstrations: give one per task (evaluation.demonstrations=1)"
            )
        if self.length % length or (self.length > length and not self.is_concatenated):
            raise ConfigError(
                f"the prompts have {self.length} steps, this policy was trained with {length}: cut "
                "them to that length"
            )

    def truncate(self, fraction: float) -> TrajectoryPromptBank:
        """The same prompts with only the first steps of each, the others padded.

        Args:
            fraction: of the steps of each prompt, above 0 and at most 1; two steps always remain.

        Raises:
            PromptError: if the prompts hold several demonstrations: truncate before.

        Examples:
            >>> mask = torch.tensor([[True, True, True, True, False]])
            >>> bank = TrajectoryPromptBank(
            ...     TensorDict({"mask": mask}, [1, 5]), torch.tensor([7]), torch.tensor([0])
            ... )
            >>> bank.truncate(0.5).prompts["mask"].tolist()
            [[True, True, False, False, False]]
        """
        if self.is_concatenated:
            raise PromptError(
                "concatenated demonstrations cannot be truncated: truncate, then concatenate"
            )
        prompts = self.prompts.clone()
        for mask in self.masks:
            steps = prompts[mask].sum(-1, keepdim=True)
            remaining = (fraction * steps).ceil().long().clamp(min=2).minimum(steps)
            is_padding = torch.arange(self.length, device=steps.device) >= remaining
            for name in self.entries_under(mask):
                prompts[name][is_padding] = 0  # as of shorter trajectories; in masks: False
        return TrajectoryPromptBank(prompts, self.task_id, self.trajectory_id)

    def concatenated(self) -> TrajectoryPromptBank:
        """One prompt per task with all its demonstrations one after the other, for retrieval.

        The entries ``start`` and ``end`` [L'] give, for every step, the first and the last step of
        its own demonstration.

        Returns:
            a bank of ``[T, n · L]``, n being the largest number of demonstrations of a task.

        Examples:
            >>> mask = torch.tensor([[True, True, False], [True, True, True]])
            >>> prompts = TensorDict({"mask": mask}, batch_size=[2, 3])
            >>> bank = TrajectoryPromptBank(prompts, torch.tensor([7, 7]), torch.tensor([0, 1]))
            >>> bank.concatenated().prompts["end"].tolist()
            [[1, 1, 1, 5, 5, 5]]
        """
        tasks = self.task_id.unique()
        rows = [self.rows_of(int(task)) for task in tasks]
        count = max(len(of_task) for of_task in rows)
        offsets = self.length * torch.arange(count)
        joined = []
        for of_task in rows:
            prompts = self.prompts[of_task]
            last = prompts["mask"].sum(-1) - 1
            start = offsets[: len(of_task)].unsqueeze(-1).expand(-1, self.length)
            prompts = prompts.clone(recurse=False).update(
                {"start": start, "end": start + last.unsqueeze(-1)}
            )
            long = prompts.reshape(-1)
            joined.append(pad(long, [0, count * self.length - len(long)]))
        return TrajectoryPromptBank(torch.stack(joined), tasks, torch.full_like(tasks, -1))
