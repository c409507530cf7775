"""Recorded locomotion: speeds or levels of skill as tasks, evaluated by normalised score.

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
import torch
from omegaconf import DictConfig

from llmdpd_torchrl.collection.halfcheetah import collect_gait
from llmdpd_torchrl.data import OfflineDataset, load_episodes
from llmdpd_torchrl.envs import GYM_MUJOCO_TASKS, Dynamics
from llmdpd_torchrl.evaluation import EvaluationSettings, GymMujocoSuite
from llmdpd_torchrl.experiments.config import (
    EvaluationSchema,
    Family,
    Run,
    Schema,
    TrajectoryPromptSchema,
    plain,
    read,
)
from llmdpd_torchrl.prompts import (
    RetrievalSpec,
    TextPrompt,
    load_text_prompts,
    velocity_prompt,
    velocity_task,
)
from llmdpd_torchrl.tasks import TaskSplit, TaskTable, normalized_score
from llmdpd_torchrl.utils.cache import cache_root
from llmdpd_torchrl.utils.errors import ConfigError, DataError
from llmdpd_torchrl.utils.settings import Flag, Fraction, Many, Size, Text, checked_dataclass

ORACLE = "oracle"
"""As ``text_encoder.model``: the target speed, or the level's mean score, for an embedding."""


@checked_dataclass()
class _TrajectoryPrompt(TrajectoryPromptSchema):
    top_fraction: Fraction


@checked_dataclass()
class _Data:
    sources: Many[str] | None
    held_out: Many[str] | None
    environment: str | None
    max_episode_steps: Size | None
    validation: Flag
    folder: Text | None
    gait_episodes: Size


@checked_dataclass()
class _Evaluation(EvaluationSchema):
    dynamics: Dynamics


@checked_dataclass()
class LocomotionSchema(Schema):
    """Settings of ``configs/train_d4rl.yaml``."""

    dataset_name: str
    data: _Data
    trajectory_prompt: _TrajectoryPrompt
    evaluation: _Evaluation


@dataclass(frozen=True)
class Protocol:
    """The tasks of an experiment, with their prompts and environments, all by task."""

    split: TaskSplit
    prompts: Mapping[str, TextPrompt]
    variants: Mapping[str, Mapping[str, Any]]  # as GymMujocoSuite reads them
    references: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # default: D4RL's
    codes: Mapping[str, float] = field(default_factory=dict)  # target speeds

    def suite(self, seed: int, max_steps: int | None, dynamics: Dynamics) -> GymMujocoSuite:
        """The environments, with a shorter time limit than their own, if any."""
        changes: dict[str, Any] = {"dynamics": dynamics}
        if max_steps is not None:
            changes["max_steps"] = max_steps
        variants = {name: {**options, **changes} for name, options in self.variants.items()}
        return GymMujocoSuite(variants, self.references, seed=seed)

    def name_tasks(self, dataset: OfflineDataset) -> OfflineDataset:
        """The data under the names of the protocol's table."""
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


class Locomotion(Family):
    """The family of recorded locomotion, with the settings of ``configs/train_d4rl.yaml``.

    Attributes:
        protocol: the tasks of the run, once they are named.
        codes: the oracle's number of each task, once the data are loaded.

    Examples:
        >>> from llmdpd_torchrl.experiments.command import compose_settings
        >>> cfg = compose_settings("train_d4rl", ["data.sources=[hopper-medium-v2]"])
        >>> Locomotion().split(cfg).train
        ('hopper-medium-v2',)
    """

    schema = LocomotionSchema
    simulator = "mujoco"
    protocol: Protocol
    codes: Mapping[str, float]

    def check(self, cfg: DictConfig) -> None:
        """Check the text encoder, unless it is the oracle."""
        if cfg.text_encoder.model != ORACLE:
            super().check(cfg)

    def split(self, cfg: DictConfig) -> TaskSplit:
        """Speeds or levels of the data; generates the default data."""
        sources, held_out = self._sources(cfg)
        speeds = read_speeds(sources[0]) if len(sources) == 1 and not held_out else None
        if speeds is not None:
            self.protocol = speed_protocol(*speeds, validation=cfg.data.validation)
        elif cfg.data.validation:
            raise ConfigError("data.validation is for files of speeds: levels have none to spare")
        else:
            self.protocol = level_protocol(sources, held_out, environment=cfg.data.environment)
        return self.protocol.split

    def collect(self, run: Run) -> None:
        """Load all episodes, separate the held-out ones, and cut the trajectory prompts."""
        cfg, split = run.cfg, run.split
        sources, held_out = self._sources(cfg)
        is_speeds = bool(self.protocol.codes)
        dataset = load_episodes(
            [*sources, *held_out],
            task_key="task_id" if is_speeds else None,
            max_episode_steps=cfg.data.max_episode_steps,
            progress=cfg.progress,
        )
        print(f"data: {', '.join(dataset.manifest.settings)}")
        dataset = self.protocol.name_tasks(dataset)
        self.codes = self.protocol.codes or level_codes(dataset, self.protocol)
        dataset = dataset.with_success(dataset.best(cfg.trajectory_prompt.top_fraction))
        run.dataset = _of_tasks(dataset, split.train, split)
        run.cut_prompts()
        if split.held_out:
            run.add_demonstrations(_of_tasks(dataset, split.held_out, split))

    def prompts(self) -> Mapping[str, TextPrompt]:
        """The text prompts by task."""
        return self.protocol.prompts

    def embed(self, run: Run) -> torch.Tensor:
        """The texts' embeddings, or the oracle's numbers."""
        if run.cfg.text_encoder.model == ORACLE:
            return torch.tensor([[self.codes[name]] for name in run.split.table.names])
        return super().embed(run)

    def network(self, run: Run) -> dict[str, Any]:
        """The networks see the entire state; without objects, normalised states are compared."""
        fields = tuple(run.dataset.manifest.observation_layout["fields"])
        return {
            "observation_keep": fields,
            "retrieval": RetrievalSpec.of_state(fields),
        }

    def about(self) -> dict[str, Any]:
        """The environments by task, and the returns that score 0 and 100."""
        variants = {name: dict(options) for name, options in self.protocol.variants.items()}
        references = {name: list(ends) for name, ends in self.protocol.references.items()}
        return {"variants": variants, "references": references}

    def settings(self, cfg: DictConfig) -> EvaluationSettings:
        """How evaluations are made; the suite has the tasks' own limits of steps."""
        return read(EvaluationSettings, cfg.evaluation, max_steps=EvaluationSettings.max_steps)

    def suite(self, run: Run, settings: EvaluationSettings) -> GymMujocoSuite:
        """The environments, with the configured changes of the physics."""
        cfg = run.cfg.evaluation
        return self.protocol.suite(settings.seed, cfg.max_steps, read(Dynamics, cfg.dynamics))

    def starts(self, run: Run, settings: EvaluationSettings) -> dict[str, Any]:
        """The tasks' limits of steps and physics, which the settings do not have."""
        return self.suite(run, settings).starts()

    def _sources(self, cfg: DictConfig) -> tuple[list[str], list[str]]:
        """Sources to train on and held-out ones; by default a file that is generated here."""
        sources, held_out = plain(cfg.data.sources), plain(cfg.data.held_out) or []
        if sources:
            return sources, held_out
        if held_out:
            raise ConfigError("data.held_out is given without data.sources: nothing to train on")
        folder, episodes = cfg.data.folder, cfg.data.gait_episodes
        folder = cache_root() / "data" / "halfcheetah" if folder is None else Path(folder)
        path = folder / f"halfcheetah_gait_{episodes}_episodes.hdf5"
        if not path.exists():
            print(
                "no data.sources are given: generating a small data set, a half cheetah at several "
                "speeds"
            )
        collect_gait(path, episodes=episodes, progress=cfg.progress)
        return [str(path)], []


def read_speeds(source: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], int] | None:
    """The attributes ``tasks`` and ``horizon`` of a file of speeds; ``None`` for any other source.

    :func:`~llmdpd_torchrl.collection.halfcheetah.collect_gait` writes them.
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
            for key in ("target_velocity", "ref_min", "ref_max"):
                task[key] = float(task[key])
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
    """Train at some speeds, of :func:`read_speeds`, and hold out those of split ``"test"``.

    With ``validation``, every fifth of the training's speeds is held out instead, and the held-out
    ones are left alone, for choices of design.
    """
    table = TaskTable(tuple(velocity_task(task["target_velocity"]) for task in tasks))
    known = dict(zip(table.names, tasks, strict=True))
    train = [name for name, task in known.items() if task["split"] == "train"]
    held_out = [name for name in known if name not in train]
    if validation:
        held_out = train[2::5]
        train = [name for name in train if name not in held_out]
    label = "speeds_validation" if validation else "speeds"
    return Protocol(
        TaskSplit(label, tuple(train), tuple(held_out), table),
        prompts={name: velocity_prompt(task["target_velocity"]) for name, task in known.items()},
        variants={
            name: {
                "target_velocity": task["target_velocity"],
                "task_id": table.index(name),
                "max_steps": horizon,
            }
            for name, task in known.items()
        },
        references={name: (task["ref_min"], task["ref_max"]) for name, task in known.items()},
        codes={name: task["target_velocity"] for name, task in known.items()},
    )


def level_protocol(
    sources: Sequence[str], held_out: Sequence[str], *, environment: str | None = None
) -> Protocol:
    """Train on some levels of one environment and hold out others, whose episodes are only prompts.

    A level is a source of :func:`~llmdpd_torchrl.data.load_episodes`, named as there. The default
    environment is the one that the first source is named after.
    """
    names = [_level_name(source) for source in (*sources, *held_out)]
    if environment is None:
        named = (task for task in GYM_MUJOCO_TASKS if _key(names[0]).startswith(_body(task)))
        environment = next(named, None)
    if environment not in GYM_MUJOCO_TASKS:
        raise ConfigError(
            f"data.environment is {environment!r}, and {names[0]!r} is not named after one: use "
            f"one of {', '.join(GYM_MUJOCO_TASKS)}"
        )
    known = load_text_prompts("gym_mujoco")
    table, count = TaskTable(tuple(names)), len(sources)
    return Protocol(
        TaskSplit("levels", table.names[:count], table.names[count:], table),
        prompts={name: _level_prompt(name, environment, known) for name in names},
        variants={name: {"task": environment, "task_id": table.index(name)} for name in names},
    )


def level_codes(dataset: OfflineDataset, protocol: Protocol) -> dict[str, float]:
    """The mean normalised score of each level's episodes: the code of an oracle."""
    return {
        name: normalized_score(protocol.variants[name]["task"], record.mean_return)
        for name, record in dataset.manifest.tasks.items()
    }


def _level_name(source: str) -> str:
    """The reader's name of a source's task."""
    name = source.removeprefix("d4rl:").removeprefix("minari:")
    return Path(name).stem if name.endswith((".hdf5", ".h5")) else name


def _key(name: str) -> str:
    """Without case, separators, and D4RL's and Minari's suffixes."""
    words = name.lower().replace("mujoco/", "").replace("/", "-").replace("_", "-").split("-")
    return "-".join(word for word in words if word not in ("v0", "v1", "v2", "simple"))


def _body(environment: str) -> str:
    return environment.partition("-")[0].lower()


def _level_prompt(name: str, environment: str, known: Mapping[str, TextPrompt]) -> TextPrompt:
    """The text of D4RL's level of this name; for other data, one made of its name."""
    if _key(name) in known:
        return replace(known[_key(name)], name=name)
    words = _key(name).replace("-", " ")
    task, objective = f"Move as in the recordings {words}.", f"{words}."
    other = known[f"{_body(environment)}-medium"]
    return replace(other, name=name, task=task, objective=objective, paraphrases=())


def _of_tasks(dataset: OfflineDataset, tasks: tuple[str, ...], split: TaskSplit) -> OfflineDataset:
    ids = torch.tensor([split.table.index(name) for name in tasks])
    return dataset.select(torch.isin(dataset.trajectory_task, ids))
