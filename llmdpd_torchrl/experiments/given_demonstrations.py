"""Demonstrations that a command line names: files and folders of recorded or collected episodes.

What is wrong is said in the words of the command line's options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase

from llmdpd_torchrl.data import TrajectoryDataset, load_episodes
from llmdpd_torchrl.data.manifest import Manifest
from llmdpd_torchrl.experiments.locomotion import read_speeds, speed_protocol
from llmdpd_torchrl.experiments.own_tasks import OwnTasks
from llmdpd_torchrl.utils.errors import ConfigError, DataError


@dataclass(frozen=True)
class DemonstrationSource:
    """Recorded episodes, which may be read task by task.

    Attributes:
        name: of the file or folder.
        tasks: that it has episodes of.
        load: reads those of a task, and maybe others.
        speeds: what a file of speeds says of its tasks, see
            :func:`~llmdpd_torchrl.experiments.locomotion.read_speeds`.
    """

    name: str
    tasks: tuple[str, ...]
    load: Callable[[str], TrajectoryDataset]
    speeds: tuple[list[dict[str, Any]], int] | None = None


def open_source(
    name: str, max_steps: int | None, own: OwnTasks | None = None
) -> DemonstrationSource:
    """Open what ``--demonstration`` names.

    Args:
        name: a folder or file of collected episodes, or a source of
            :func:`~llmdpd_torchrl.data.load_episodes`.
        max_steps: time limit of episodes in files that name none.
        own: whose file says how its episodes are read.

    Raises:
        ConfigError: if they are not of ``own``'s environment.
        DataError: if it is missing or damaged.
    """
    path = Path(name)
    if own is not None:
        recorded = own.load_demonstrations(name)
        return DemonstrationSource(name, recorded.tasks, lambda task: recorded)
    if path.is_dir():
        manifest = Manifest.read(path)
        return DemonstrationSource(
            name, tuple(manifest.tasks), lambda task: TrajectoryDataset.load(path, [task])
        )
    if path.suffix == ".safetensors":
        data = TrajectoryDataset.load(path.parent, [path.stem])
        return DemonstrationSource(name, data.tasks, lambda task: data)
    speeds = read_speeds(path)
    task_key = "task_id" if speeds else None
    try:
        episodes = load_episodes(name, task_key=task_key)
    except DataError:  # it may not say where episodes end
        if max_steps is None:
            raise
        episodes = load_episodes(name, task_key=task_key, max_episode_steps=max_steps)
    if speeds:
        episodes = speed_protocol(*speeds).name_tasks(episodes)
    return DemonstrationSource(name, episodes.tasks, lambda task: episodes, speeds)


def demonstrations_of(
    task: str, tasks: Sequence[str], sources: Sequence[DemonstrationSource], episode: int | None
) -> list[tuple[TensorDictBase, str]]:
    """The demonstrations of one of the evaluated tasks, and a line about each.

    Args:
        task: of which they are; a source of one task needs no name where one is evaluated.
        tasks: all that are evaluated.
        sources: an episode of each that has the task is chosen.
        episode: its number among those of the task; default: the first successful one, or that of
            highest return where nothing says what success is.

    Raises:
        ConfigError: if there is no such number.
        DataError: if no source has the task, or none of its episodes is successful.
    """
    found = []
    for source in sources:
        name = task
        if task not in source.tasks:
            if len(tasks) > 1:
                continue
            if len(source.tasks) > 1:
                raise DataError(
                    f"{source.name} has episodes of {', '.join(source.tasks)}, none of {task}: "
                    "give a file of one task"
                )
            name = source.tasks[0]
        found.append(_choose_episode(source, name, task, episode))
    if not found:
        names = ", ".join(source.name for source in sources)
        raise DataError(
            f"{names}: there is no demonstration of {task}; with several tasks, each needs its "
            "own, under its name: evaluate one at a time (--tasks), or give a file for each"
        )
    return found


def _choose_episode(
    source: DemonstrationSource, name: str, task: str, episode: int | None
) -> tuple[TensorDictBase, str]:
    data = source.load(name)
    rows = data.trajectory_task == data.manifest.task_table.index(name)
    numbers = rows.nonzero().squeeze(-1)
    count = f"{len(numbers)} episode{'s' if len(numbers) > 1 else ''}"
    if episode is not None:
        if not 0 <= episode < len(numbers):
            raise ConfigError(
                f"--episode is {episode}: {source.name} has {count} of {name}, numbered from 0"
            )
        number, why = episode, "--episode"
    elif ("next", "success") in data.transitions.keys(include_nested=True):
        good = data.trajectory_success[numbers].nonzero()
        if not len(good):
            raise DataError(
                f"{source.name}: none of its {count} of {name} is successful; choose one with "
                "--episode N"
            )
        number, why = int(good[0]), "the first successful one"
    else:
        returns = [float(data.trajectory(int(n))["next", "reward"].sum()) for n in numbers]
        number, why = int(torch.tensor(returns).argmax()), "the one of highest return"
    of = "" if name == task else f" of {name}"
    line = f"demonstration of {task}: episode {number} of {count}{of} in {source.name} ({why})"
    return data.trajectory(int(numbers[number])), line
