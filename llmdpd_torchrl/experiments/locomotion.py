"""Recorded locomotion: speeds or levels of skill as tasks, evaluated by normalised score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from llmdpd_torchrl.collection.halfcheetah import collect_gait
from llmdpd_torchrl.data import OfflineDataset, load_episodes
from llmdpd_torchrl.envs import Dynamics
from llmdpd_torchrl.evaluation import EvaluationSettings, GymMujocoSuite
from llmdpd_torchrl.experiments.config import (
    EvaluationSchema,
    Schema,
    TrajectoryPromptSchema,
    check_text_encoder,
    plain,
    read,
)
from llmdpd_torchrl.experiments.context import Run
from llmdpd_torchrl.experiments.protocols import (
    Protocol,
    level_codes,
    level_protocol,
    read_speeds,
    speed_protocol,
)
from llmdpd_torchrl.prompts import TextPrompt, make_text_encoder, text_embedding_table
from llmdpd_torchrl.prompts.relative_frame import FrameSpec
from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.prompts.trajectory import TrajectoryPromptBank
from llmdpd_torchrl.tasks.splits import TaskSplit
from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.settings import Flag, Fraction, Many, Size, Text, checked_dataclass

ORACLE = "oracle"
"""As ``text_encoder``: the target speed, or the level's mean score, instead of an embedding."""


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
    folder: Text
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


class Locomotion:
    """The family of recorded locomotion, with the settings of ``configs/train_d4rl.yaml``.

    Examples:
        >>> from llmdpd_torchrl.experiments.command import compose_settings
        >>> cfg = compose_settings("configs", "train_d4rl", ["data.sources=[hopper-medium-v2]"])
        >>> Locomotion().check(cfg).train
        ('hopper-medium-v2',)
    """

    schema = LocomotionSchema

    def __init__(self) -> None:
        self._protocol: Protocol | None = None
        self._codes: Mapping[str, float] = {}

    @property
    def protocol(self) -> Protocol:
        """The tasks of the run, once its settings are checked."""
        assert self._protocol is not None
        return self._protocol

    def check(self, cfg: DictConfig) -> TaskSplit:
        """See :class:`~llmdpd_torchrl.experiments.context.Family`; generates the default data."""
        if cfg.text_encoder != ORACLE:
            check_text_encoder(cfg)
        sources, held_out = self._sources(cfg)
        speeds = read_speeds(sources[0]) if len(sources) == 1 and not held_out else None
        if speeds is not None:
            self._protocol = speed_protocol(*speeds, validation=cfg.data.validation)
            self._codes = self._protocol.codes
        elif cfg.data.validation:
            raise ConfigError("data.validation is for files of speeds: levels have none to spare")
        else:
            self._protocol = level_protocol(sources, held_out, environment=cfg.data.environment)
        return self._protocol.split

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
        dataset = self.protocol.name_tasks(dataset)
        if not is_speeds:
            self._codes = level_codes(dataset, next(iter(self.protocol.variants.values()))["task"])
        dataset = dataset.with_success(_best(dataset, cfg.trajectory_prompt.top_fraction))
        run.dataset = _of_tasks(dataset, split.train, split)
        length = cfg.trajectory_prompt.length
        bank = TrajectoryPromptBank.from_dataset(run.dataset, length)
        run.training_prompts = run.evaluation_prompts = PromptTables(trajectories=bank)
        if split.held_out:
            support = _of_tasks(dataset, split.held_out, split)
            run.support_hash = support.manifest.data_hash
            others = TrajectoryPromptBank.from_dataset(support, length, trained_on=False)
            both = TrajectoryPromptBank.concatenate([bank, others])
            run.evaluation_prompts = PromptTables(trajectories=both)

    def prompts(self, run: Run) -> Mapping[str, TextPrompt]:
        """See :class:`~llmdpd_torchrl.experiments.context.Family`."""
        return self.protocol.prompts

    def embed(self, run: Run) -> None:
        """Look up the texts' embeddings, or the oracle's numbers."""
        names = run.split.table.names
        if run.cfg.text_encoder == ORACLE:
            table = torch.tensor([[self._codes[name]] for name in names])
        else:
            encoder = make_text_encoder(plain(run.cfg.text_encoder))
            table = text_embedding_table(names, encoder, self.protocol.prompts)
            run.text_encoder_identity = encoder.identity
        run.training_prompts.text = run.evaluation_prompts.text = table

    def network(self, run: Run) -> dict[str, Any]:
        """The networks see the entire state; without objects, normalised states are compared."""
        fields = tuple(run.dataset.manifest.observation_layout["fields"])
        return {
            "observation_keep": fields,
            "frame": FrameSpec(values=fields, weights=(None,) * len(fields)),
            "residual_on_retrieved": False,
        }

    def settings(self, cfg: DictConfig) -> EvaluationSettings:
        """See :class:`~llmdpd_torchrl.experiments.context.Family`."""
        own = EvaluationSettings.max_steps  # no matter: the suite has the tasks' limits
        return read(EvaluationSettings, cfg.evaluation, max_steps=own)

    def suite(self, run: Run, settings: EvaluationSettings) -> GymMujocoSuite:
        """The environments, with the configured changes of the physics."""
        limit, dynamics = run.cfg.evaluation.max_steps, read(Dynamics, run.cfg.evaluation.dynamics)
        return self.protocol.suite(settings.seed, limit, dynamics)

    def identity(self, cfg: DictConfig) -> Any:
        """Nothing: the hash of the data covers all."""
        return None

    def _sources(self, cfg: DictConfig) -> tuple[list[str], list[str]]:
        """Sources to train on and held-out ones; by default a file that is generated here."""
        sources, held_out = plain(cfg.data.sources), plain(cfg.data.held_out) or []
        if sources:
            return sources, held_out
        if held_out:
            raise ConfigError("data.held_out is given without data.sources: nothing to train on")
        path = Path(cfg.data.folder) / "halfcheetah_gait.hdf5"
        if not path.exists():
            print(
                "no data.sources are given: generating a small data set, a half cheetah at several "
                f"speeds ({path})"
            )
        collect_gait(path, episodes=cfg.data.gait_episodes, progress=cfg.progress)
        return [str(path)], []


def _best(dataset: OfflineDataset, share: float) -> torch.Tensor:
    """``[E]`` bool: the episodes of highest return of each task, at least two."""
    best = torch.zeros(len(dataset.lengths), dtype=torch.bool)
    returns = dataset.trajectory_return
    for task in dataset.trajectory_task.unique():
        rows = (dataset.trajectory_task == task).nonzero().squeeze(-1)
        count = min(len(rows), max(2, round(share * len(rows))))
        best[rows[returns[rows].topk(count).indices]] = True
    return best


def _of_tasks(dataset: OfflineDataset, tasks: tuple[str, ...], split: TaskSplit) -> OfflineDataset:
    ids = torch.tensor([split.table.index(name) for name in tasks])
    return dataset.select(torch.isin(dataset.trajectory_task, ids))
