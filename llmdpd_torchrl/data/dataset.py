"""A dataset: transitions, trajectories, and a replay buffer of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tensordict import TensorDict, TensorDictBase
from torchrl.envs.transforms import Transform

from llmdpd_torchrl.data.manifest import Manifest
from llmdpd_torchrl.data.replay import EpisodeExperienceReplay
from llmdpd_torchrl.utils.errors import DataError
from llmdpd_torchrl.utils.files import file_sha256
from llmdpd_torchrl.utils.memory import check_memory

_Dataset = TypeVar("_Dataset", bound="TrajectoryDataset")


class TrajectoryDataset:
    """Transitions of some tasks of a dataset, episode after episode.

    Args:
        manifest: of the dataset.
        transitions: TensorDict ``[N]`` with ``observation`` [N, O] and ``action`` [N, A] (float32),
            ``task_id``, ``trajectory_id``, ``step_count`` [N, 1] (int64), and under ``"next"``
            ``observation``, ``reward`` [N, 1], ``success``, ``terminated``, ``truncated`` and
            ``done`` [N, 1] (bool). ``trajectory_id`` counts the loaded episodes from 0. Data of
            scripted experts also have ``expert_action`` [N, A], what the expert wanted, where
            ``action`` was executed; those collected by earlier versions have not.

    The rows of an episode are contiguous, from ``starts`` [E] with ``lengths`` [E];
    ``trajectory_task`` [E] is the task id of each episode. :meth:`load` checks the values: all are
    finite, actions are within [-1, 1], and flags are bool.

    Examples:
        >>> import tempfile
        >>> from llmdpd_torchrl.collection.metaworld import CollectionSettings, collect_metaworld
        >>> folder = tempfile.mkdtemp()
        >>> settings = CollectionSettings(episodes_per_task=2, max_steps=4)
        >>> _ = collect_metaworld(folder, ["reach-v3"], settings, workers=1, progress=False)
        >>> data = TrajectoryDataset.load(folder)
        >>> data.transitions.shape, data.lengths.tolist()
        (torch.Size([8]), [4, 4])
        >>> data.replay_buffer(batch_size=3).sample()["next", "reward"].shape
        torch.Size([3, 1])
    """

    #: Folder of memory-mapped transitions; ``None`` if they are in memory.
    folder: Path | None = None

    def __init__(self, manifest: Manifest, transitions: TensorDictBase) -> None:
        self.manifest = manifest
        self.transitions = transitions
        self.lengths = episode_lengths(transitions)
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.trajectory_task = transitions["task_id"].squeeze(-1)[self.starts]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the loaded tasks, in the order of their ids."""
        return tuple(self.manifest.task_table[i] for i in self.trajectory_task.unique().tolist())

    @property
    def trajectory_success(self) -> torch.Tensor:
        """Whether each episode reaches success at any step: ``[E]`` bool.

        Raises:
            DataError: if nothing says what success is.
        """
        return episode_sums(self._success, self.lengths) > 0

    @property
    def _success(self) -> torch.Tensor:
        """The success flag of each step, ``[N, 1]``; a ``DataError`` if there is none."""
        if ("next", "success") not in self.transitions.keys(include_nested=True):
            raise DataError(
                f"{self.manifest.environment}: the episodes carry no success flag; say which ones "
                "count with with_success(), e.g. those above some return"
            )
        return self.transitions["next", "success"]

    @classmethod
    def load(
        cls,
        folder: str | Path,
        tasks: Iterable[str] | None = None,
        *,
        hide_goal: bool = False,
        verify: bool = True,
    ) -> TrajectoryDataset:
        """Load ``tasks`` (default: all) of the dataset in ``folder``.

        Args:
            folder: of the dataset.
            tasks: names; each must be in the dataset.
            hide_goal: set the goal entries of the observation to zero, as Meta-World's ML
                benchmarks do.
            verify: compare each file's SHA-256 with the manifest.

        Raises:
            ConfigError: if they do not fit into memory.
            DataError: if the dataset or a task is missing or damaged, or has unexpected shapes,
                types or values.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        names = list(manifest.tasks) if tasks is None else list(tasks)
        absent = [name for name in names if name not in manifest.tasks]
        if absent:
            raise DataError(
                f"{folder}: task {absent[0]!r} is not in this dataset (it contains "
                f"{', '.join(manifest.tasks)}); collect it into the same folder"
            )
        names.sort(key=manifest.task_table.index)
        # The data's hash is that of what is loaded, whatever else is in the folder.
        manifest = replace(manifest, tasks={name: manifest.tasks[name] for name in names})
        files = [folder / manifest.tasks[name].file for name in names]
        size = sum(file.stat().st_size for file in files if file.is_file())
        check_memory(2 * size, f"{folder} ({len(files)} tasks)")  # read, then concatenated
        parts = []
        episodes = 0
        for name, file in zip(names, files, strict=True):
            part = _load_task(file, manifest, name, verify)
            part["trajectory_id"] += episodes
            episodes += len(manifest.tasks[name].episodes)
            parts.append(part)
        transitions: TensorDictBase = TensorDict.cat(parts)
        if hide_goal:
            goal = slice(*manifest.observation_layout["fields"]["goal_position"])
            transitions["observation"][:, goal] = 0.0
            transitions["next", "observation"][:, goal] = 0.0
        return cls(manifest, transitions)

    def trajectory(self, index: int) -> TensorDictBase:
        """The transitions of episode ``index``: a view, ``[T]``."""
        start = int(self.starts[index])
        return self.transitions[start : start + int(self.lengths[index])]

    def select(self: _Dataset, episodes: torch.Tensor) -> _Dataset:
        """A dataset of some of the episodes, with the same task table.

        Neighbouring episodes are not copied; others are, into memory.

        Args:
            episodes: ``[E]`` bool, or indices ``[n]`` int64, for instance those of training tasks.
        """
        chosen = torch.zeros(len(self.lengths), dtype=torch.bool)
        chosen[episodes] = True
        if not chosen.any():
            raise DataError("no episode is selected: a dataset needs at least one")
        indices = chosen.nonzero().squeeze(-1)
        first, last = int(indices[0]), int(indices[-1])
        rows = slice(int(self.starts[first]), int(self.starts[last] + self.lengths[last]))
        transitions = self.transitions[rows]
        lengths = self.lengths[first : last + 1]
        if len(indices) < len(lengths):
            transitions = transitions[chosen[first : last + 1].repeat_interleave(lengths)]
            lengths = lengths[chosen[first : last + 1]]
        owner = torch.arange(len(lengths)).repeat_interleave(lengths)
        transitions["trajectory_id"] = owner.unsqueeze(-1)
        return self._with(transitions)

    def with_time_to_go(self: _Dataset) -> _Dataset:
        """The same with a reward of -1 a step, and 0 and an end of the return where it succeeds.

        Values are then minus the discounted steps until success, whatever the task.

        Raises:
            DataError: if the episodes carry no success flag.
        """
        success = self._success
        following = self.transitions["next"].copy()
        following["reward"] = success.float() - 1.0
        following["terminated"] = following["terminated"] | success
        return self._with(self.transitions.copy().set("next", following))

    def _with(self: _Dataset, transitions: TensorDictBase) -> _Dataset:
        """A dataset of other rows with the same manifest, whose records are those of the files."""
        return type(self)(self.manifest, transitions)

    def replay_buffer(
        self,
        batch_size: int,
        *,
        transforms: Sequence[Transform] = (),
        seed: int | None = None,
    ) -> EpisodeExperienceReplay:
        """A TorchRL dataset buffer of the loaded transitions, sampled uniformly with replacement.

        It is read-only and does not copy them. A trainer on a GPU moves it there if there is room.
        For slices of episodes, put ``transitions`` into a buffer with TorchRL's
        ``SliceSampler(end_key=("next", "done"))``; its ``traj_key`` takes no column ``[N, 1]``.

        Args:
            batch_size: rows a sample.
            transforms: appended in order; they see what is sampled.
            seed: of the sampler; ``None`` uses torch's global generator.
        """
        return EpisodeExperienceReplay(
            self.transitions, batch_size, folder=self.folder, transforms=transforms, seed=seed
        )


def as_transitions(columns: Mapping[str, torch.Tensor]) -> TensorDict:
    """Columns by their names in task files, and ``trajectory_id``, as TorchRL's transitions [N]."""
    following = {key: columns[key] for key in ("reward", "terminated", "truncated")}
    following["observation"] = columns["next_observation"]
    following["done"] = columns["terminated"] | columns["truncated"]
    if "success" in columns:
        following["success"] = columns["success"]
    keys = ["observation", "action", "task_id", "trajectory_id", "step_count"]
    keys += ["expert_action"] * ("expert_action" in columns)
    return TensorDict(
        {**{key: columns[key] for key in keys}, "next": following},
        batch_size=[len(columns["observation"])],
    )


def row_blocks(rows: int) -> Iterator[slice]:
    """All rows in blocks of limited size, for columns larger than the memory."""
    size = 1 << 17
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def episode_lengths(transitions: TensorDictBase) -> torch.Tensor:
    """Rows of each episode, ``[E]`` int64, from ``trajectory_id``."""
    owner = transitions["trajectory_id"].squeeze(-1)
    starts = [torch.zeros(min(len(owner), 1), dtype=torch.int64)]
    for block in row_blocks(len(owner) - 1):
        after = slice(block.start + 1, block.stop + 1)
        starts.append((owner[after] != owner[block]).nonzero().squeeze(-1) + after.start)
    return torch.cat(starts).diff(append=torch.tensor([len(owner)]))


def episode_sums(column: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Sum of a column ``[N, 1]`` over the rows of each episode, ``lengths`` [E]: [E] float64."""
    sums = torch.zeros(len(lengths), dtype=torch.float64)
    ends = lengths.cumsum(0)
    for block in row_blocks(len(column)):
        rows = torch.arange(block.start, block.stop)
        owner = torch.bucketize(rows, ends, right=True)
        sums.index_add_(0, owner, column[block].squeeze(-1).double())
    return sums


def returns_to_go(reward: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The rewards [N, 1] from each step to the end of its episode, undiscounted: [N, 1] float32.

    ``lengths`` [E] are the rows of each episode.
    """
    # In float64, because a sum over a million rows in float32 would lose the rewards.
    total = reward.squeeze(-1).to(torch.float64).cumsum(0)
    at_end = total[lengths.cumsum(0) - 1].repeat_interleave(lengths)
    return (at_end - total + reward.squeeze(-1)).to(torch.float32).unsqueeze(-1)


def _load_task(path: Path, manifest: Manifest, name: str, verify: bool) -> TensorDict:
    """One task file as a TensorDict of transitions, with ``trajectory_id`` counted from 0."""
    if not path.is_file():
        raise DataError(f"{path}: missing, although the manifest lists it; collect again to add it")
    if verify and file_sha256(path) != manifest.tasks[name].sha256:
        raise DataError(
            f"{path}: damaged or cut short (its SHA-256 is not the manifest's); delete it and "
            "collect again"
        )
    try:
        arrays = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it and collect again") from None
    rows = manifest.tasks[name].transitions
    widths = dict.fromkeys(("observation", "next_observation"), manifest.observation_layout["size"])
    actions = ["action", *(["expert_action"] if "expert_action" in arrays else [])]
    for key, width in (widths | dict.fromkeys(actions, manifest.action_size)).items():
        if tuple(arrays[key].shape) != (rows, width):
            raise DataError(
                f"{path}: {key} has shape {tuple(arrays[key].shape)}, the manifest says "
                f"{(rows, width)}; collect again"
            )
    for key in ("observation", "next_observation", "reward", *actions):
        if not arrays[key].isfinite().all():
            raise DataError(f"{path}: {key} has values that are not finite; collect again")
    for key in actions:
        if arrays[key].abs().max() > 1:
            raise DataError(f"{path}: {key} has values outside of [-1, 1]; collect again")
    arrays["trajectory_id"] = arrays.pop("episode")
    return as_transitions(arrays)
