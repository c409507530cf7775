"""Protocols on recorded locomotion: which tasks are trained on, which are held out, their prompts.

- *Speeds.* One file of a half cheetah that runs at many speeds; some are held out, and specified
  by text, by one episode, or both.
- *Levels.* Files of one environment, each a level of skill; a policy is trained on some and
  prompted with another, the expert's say. With one file and nothing held out it is the usual
  per-file table.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py

from llmdpd_torchrl.data import OfflineDataset
from llmdpd_torchrl.envs import GYM_MUJOCO_TASKS, Dynamics
from llmdpd_torchrl.evaluation import GymMujocoSuite
from llmdpd_torchrl.prompts import TextPrompt, load_text_prompts, velocity_prompt, velocity_task
from llmdpd_torchrl.tasks import TaskTable
from llmdpd_torchrl.tasks.splits import TaskSplit
from llmdpd_torchrl.tasks.table import normalized_score
from llmdpd_torchrl.utils.errors import ConfigError, DataError


@dataclass(frozen=True)
class Protocol:
    """The tasks of an experiment, with their prompts and environments.

    Attributes:
        split: names of the trained and the held-out tasks; their place in the table is their id.
        prompts: the text prompts by task.
        variants: the tasks' environments, see :class:`~llmdpd_torchrl.evaluation.GymMujocoSuite`.
        references: returns that score 0 and 100; where a task has none, D4RL's are used.
        codes: by task, the number that an oracle gets instead of a text: the target speed.

    Examples:
        >>> level_protocol(["hopper_medium.hdf5"], []).variants
        {'hopper_medium': {'task': 'Hopper-v4', 'task_id': 0}}
    """

    split: TaskSplit
    prompts: Mapping[str, TextPrompt]
    variants: Mapping[str, Mapping[str, Any]]
    references: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    codes: Mapping[str, float] = field(default_factory=dict)

    def suite(self, seed: int, max_steps: int | None, dynamics: Dynamics) -> GymMujocoSuite:
        """The environments.

        Args:
            seed: of the initial states.
            max_steps: a shorter time limit than the tasks' own, if any.
            dynamics: changes of the physics, of all tasks.
        """
        changes: dict[str, Any] = {"dynamics": dynamics}
        if max_steps is not None:
            changes["max_steps"] = max_steps
        variants = {name: {**options, **changes} for name, options in self.variants.items()}
        return GymMujocoSuite(variants, self.references, seed=seed)

    def name_tasks(self, dataset: OfflineDataset) -> OfflineDataset:
        """The data under the names of the protocol's table.

        Raises:
            DataError: if they hold another number of tasks.
        """
        manifest, names = dataset.manifest, list(self.split.table.names)
        if len(manifest.task_table) != len(names):
            raise DataError(
                f"the data hold {len(manifest.task_table)} tasks ({', '.join(manifest.task_table)})"
                f", not the {len(names)} of the split ({', '.join(names)}): a source may "
                "hold one task, or speeds"
            )
        renamed = dict(zip(manifest.task_table, names, strict=True))
        records = {renamed[name]: record for name, record in manifest.tasks.items()}
        return OfflineDataset(
            replace(manifest, task_table=names, tasks=records), dataset.transitions
        )


def read_speeds(source: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], int] | None:
    """The target speeds that a file of D4RL's layout is about, and the steps of its episodes.

    Args:
        source: of data; only a file can be of speeds.

    Returns:
        what its attribute ``tasks`` says, see
        :func:`~llmdpd_torchrl.collection.halfcheetah.collect_gait`, and its
        ``horizon``; ``None`` for anything else.

    Raises:
        DataError: if the attribute is damaged.
    """
    path = Path(source)
    if not path.is_file():
        return None
    try:
        with h5py.File(path, "r") as file:
            text, horizon = file.attrs.get("tasks"), int(file.attrs.get("horizon", 200))
    except OSError:
        return None  # the reader says what is wrong with it
    if text is None or "target_velocity" not in str(text):
        return None
    try:
        tasks = json.loads(text)
        for task in tasks:
            float(task["target_velocity"]), float(task["ref_min"]), float(task["ref_max"])
            if task["split"] not in ("train", "test"):
                raise ValueError(f"split is {task['split']!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: the attribute 'tasks' is damaged ({error!r}): it lists target_velocity, "
            "split, ref_min and ref_max of each task; generate the file again"
        ) from None
    return tasks, horizon


def speed_protocol(
    tasks: Sequence[Mapping[str, Any]], horizon: int, *, validation: bool = False
) -> Protocol:
    """Train at some speeds and hold out others.

    Args:
        tasks: of :func:`read_speeds`; those of split ``"test"`` are held out.
        horizon: steps of an episode.
        validation: hold every fifth of the training's speeds out instead, and leave the held-out
            ones alone, for choices of design.

    Raises:
        ConfigError: if nothing is left to train on.

    Examples:
        >>> speeds = [{"target_velocity": v, "split": s, "ref_min": -9, "ref_max": -1}
        ...           for v, s in ((1.0, "train"), (2.0, "test"))]
        >>> speed_protocol(speeds, 200).split.held_out
        ('halfcheetah-vel-2',)
    """
    speeds = [float(task["target_velocity"]) for task in tasks]
    names = [velocity_task(speed) for speed in speeds]
    train = [name for name, task in zip(names, tasks, strict=True) if task["split"] == "train"]
    held_out = [name for name in names if name not in train]
    if validation:
        held_out = train[2::5]
        train = [name for name in train if name not in held_out]
    label = "speeds_validation" if validation else "speeds"
    return Protocol(
        TaskSplit(label, tuple(train), tuple(held_out), TaskTable(tuple(names))),
        prompts={velocity_task(speed): velocity_prompt(speed) for speed in speeds},
        variants={
            name: {"target_velocity": speed, "task_id": number, "max_steps": horizon}
            for number, (name, speed) in enumerate(zip(names, speeds, strict=True))
        },
        references={
            name: (float(task["ref_min"]), float(task["ref_max"]))
            for name, task in zip(names, tasks, strict=True)
        },
        codes=dict(zip(names, speeds, strict=True)),
    )


def level_protocol(
    sources: Sequence[str | os.PathLike[str]],
    held_out: Sequence[str | os.PathLike[str]],
    *,
    environment: str | None = None,
) -> Protocol:
    """Train on some levels of one environment and hold out others.

    Args:
        sources: of :func:`~llmdpd_torchrl.data.load_episodes`; each is a level, named as there.
        held_out: those whose episodes are only prompts.
        environment: one of :data:`~llmdpd_torchrl.envs.GYM_MUJOCO_TASKS`; default: the one that the
            first source is named after.

    Raises:
        ConfigError: if no name contains the environment, or a name occurs twice.
    """
    names = [_level_name(source) for source in (*sources, *held_out)]
    if environment is None:
        environment = _environment_of(names[0])
    if environment not in GYM_MUJOCO_TASKS:
        raise ConfigError(
            f"data.environment is {environment!r}: use one of {', '.join(GYM_MUJOCO_TASKS)}"
        )
    known = load_text_prompts("gym_mujoco")
    split = TaskSplit(
        "levels",
        tuple(names[: len(sources)]),
        tuple(names[len(sources) :]),
        TaskTable(tuple(names)),
    )
    return Protocol(
        split,
        prompts={name: _level_prompt(name, environment, known) for name in names},
        variants={
            name: {"task": environment, "task_id": number} for number, name in enumerate(names)
        },
    )


def level_codes(dataset: OfflineDataset, environment: str) -> dict[str, float]:
    """The mean normalised score of each level's episodes: the code of an oracle.

    Args:
        dataset: of the levels.
        environment: of :data:`~llmdpd_torchrl.envs.GYM_MUJOCO_TASKS`.
    """
    records = dataset.manifest.tasks.items()
    return {name: normalized_score(environment, record.mean_return) for name, record in records}


def _level_name(source: str | os.PathLike[str]) -> str:
    """The reader's name of a source's task."""
    name = os.fspath(source).removeprefix("d4rl:").removeprefix("minari:")
    return Path(name).stem if name.endswith((".hdf5", ".h5")) else name


def _key(name: str) -> str:
    """Without case, separators, and D4RL's and Minari's suffixes."""
    words = name.lower().replace("mujoco/", "").replace("/", "-").replace("_", "-").split("-")
    return "-".join(word for word in words if word not in ("v0", "v1", "v2", "simple"))


def _environment_of(name: str) -> str:
    for environment in GYM_MUJOCO_TASKS:
        if _key(name).startswith(environment.partition("-")[0].lower()):
            return environment
    raise ConfigError(
        f"nothing says which environment {name!r} is of: set data.environment to one of "
        f"{', '.join(GYM_MUJOCO_TASKS)}"
    )


def _level_prompt(name: str, environment: str, known: Mapping[str, TextPrompt]) -> TextPrompt:
    """The text of D4RL's level of this name; for other data, one made of its name."""
    if _key(name) in known:
        return replace(known[_key(name)], name=name)
    body = known[f"{environment.partition('-')[0].lower()}-medium"]
    words = _key(name).replace("-", " ")
    return replace(
        body, name=name, task=f"Move as in the recordings {words}.", objective=f"{words}.",
        paraphrases=(),
    )  # fmt: skip
