"""Meta-World: scripted experts' data, one text a task, success on fixed goals."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import DictConfig, OmegaConf

from llmdpd_torchrl.collection.metaworld import CollectionSettings, collect_metaworld
from llmdpd_torchrl.data import TrajectoryDataset
from llmdpd_torchrl.envs.metaworld import EpisodeSteps
from llmdpd_torchrl.evaluation import EvaluationSettings, MetaWorldSuite
from llmdpd_torchrl.evaluation.controls import random_strings
from llmdpd_torchrl.experiments.config import (
    EvaluationSchema,
    Schema,
    check_text_encoder,
    plain,
    read,
)
from llmdpd_torchrl.experiments.context import Run
from llmdpd_torchrl.prompts import (
    TextPrompt,
    embed_texts,
    load_text_prompts,
    make_text_encoder,
    text_embedding_table,
)
from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.prompts.trajectory import TrajectoryPromptBank
from llmdpd_torchrl.tasks.splits import TaskSplit, make_split
from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.settings import (
    Count,
    Flag,
    Fraction,
    Many,
    NonEmpty,
    NonNegative,
    Number,
    Size,
    Text,
    checked_dataclass,
)


@checked_dataclass()
class _Tasks:
    split: Text
    train: Many[str] | None
    held_out: Many[str] | None
    count: Size | None
    count_seed: Count


@checked_dataclass()
class _Data:
    folder: Text
    episodes_per_task: Size
    noise_levels: NonEmpty[NonNegative]
    seed: Count
    max_steps: EpisodeSteps
    steps_after_success: Count
    hide_goal: Flag
    support_episodes: Size
    support_noise_levels: NonEmpty[NonNegative] | None
    support_expert_gain: Fraction
    use_episodes: Size | None
    use_noise: Number | None
    workers: Size | None


@checked_dataclass()
class _Evaluation(EvaluationSchema):
    max_steps: EpisodeSteps


@checked_dataclass()
class MetaWorldSchema(Schema):
    """Settings of ``configs/train_metaworld.yaml``."""

    texts: Literal["own", "random"]
    tasks: _Tasks
    data: _Data
    evaluation: _Evaluation


class MetaWorld:
    """The family of Meta-World's 50 tasks, with the settings of ``configs/train_metaworld.yaml``.

    Examples:
        >>> sorted(MetaWorld().prompts(None))[:2]
        ['assembly-v3', 'basketball-v3']
    """

    schema = MetaWorldSchema

    def check(self, cfg: DictConfig) -> TaskSplit:
        """See :class:`~llmdpd_torchrl.experiments.context.Family`."""
        check_text_encoder(cfg)
        noise, tasks = cfg.data.use_noise, cfg.tasks
        if noise is not None and noise not in cfg.data.noise_levels:
            raise ConfigError(
                f"data.use_noise is {noise}: no episode is collected with it; data.noise_levels "
                f"has {', '.join(f'{level:g}' for level in cfg.data.noise_levels)}"
            )
        return make_split(
            tasks.split,
            train=tasks.train,
            held_out=tasks.held_out,
            count=tasks.count,
            seed=tasks.count_seed,
        )

    def collect(self, run: Run) -> None:
        """Collect training data and support demonstrations, and cut the trajectory prompts."""
        cfg, split = run.cfg, run.split
        split.check_trainable(split.train)
        settings = _collection_settings(cfg)
        options = {"workers": cfg.data.workers, "progress": cfg.progress}
        folder = Path(cfg.data.folder)
        collect_metaworld(folder / "train", split.train, settings, **options)
        dataset = TrajectoryDataset.load(
            folder / "train", split.train, hide_goal=cfg.data.hide_goal
        )
        run.dataset = _used(dataset, cfg)
        length = cfg.trajectory_prompt.length
        bank = TrajectoryPromptBank.from_dataset(run.dataset, length)
        run.training_prompts = PromptTables(trajectories=bank)
        self.demonstrate(run)

    def demonstrate(self, run: Run) -> None:
        """Collect the demonstrations of held-out tasks, and cut the prompts of evaluations."""
        cfg, split = run.cfg, run.split
        length = cfg.trajectory_prompt.length
        run.evaluation_prompts = run.training_prompts
        if not split.held_out:
            return
        folder = Path(cfg.data.folder) / _support_name(cfg)
        options = {"workers": cfg.data.workers, "progress": cfg.progress}
        collect_metaworld(folder, split.held_out, _support_settings(cfg), **options)
        demonstrations = TrajectoryDataset.load(
            folder, split.held_out, hide_goal=cfg.data.hide_goal
        )
        run.support_hash = demonstrations.manifest.data_hash
        bank = TrajectoryPromptBank.from_dataset(demonstrations, length, trained_on=False)
        text, trained = run.training_prompts.text, run.training_prompts.trajectories
        assert trained is not None
        both = TrajectoryPromptBank.concatenate([trained, bank])
        run.evaluation_prompts = PromptTables(text, both)

    def prompts(self, run: Run | None) -> Mapping[str, TextPrompt]:
        """Those that come with the package."""
        return load_text_prompts()

    def embed(self, run: Run) -> None:
        """Look up their embeddings."""
        names, encoder = run.split.table.names, make_text_encoder(plain(run.cfg.text_encoder))
        run.text_encoder_identity = encoder.identity
        if run.cfg.texts == "random":
            texts = [self.prompts(run)[name].render() for name in names]
            table = embed_texts(random_strings(texts), encoder)
        else:
            table = text_embedding_table(names, encoder)
        run.training_prompts.text = run.evaluation_prompts.text = table

    def network(self, run: Run) -> dict[str, Any]:
        """Nothing: the networks' defaults are Meta-World's."""
        return {}

    def settings(self, cfg: DictConfig) -> EvaluationSettings:
        """See :class:`~llmdpd_torchrl.experiments.context.Family`."""
        return read(EvaluationSettings, cfg.evaluation, hide_goal=cfg.data.hide_goal)

    def suite(self, run: Run, settings: EvaluationSettings) -> MetaWorldSuite:
        """All tasks on the settings' goals."""
        return settings.suite(run.split.tasks)

    def identity(self, cfg: DictConfig) -> Any:
        """The tasks, whether goals are hidden, and what else is not as usual."""
        tasks = plain(cfg.tasks)
        if tasks["count"] is None:
            del tasks["count"], tasks["count_seed"]
        usual = {"texts": "own", "data.use_episodes": None, "data.use_noise": None}
        chosen = {key: OmegaConf.select(cfg, key) for key in usual}
        unusual = {key: value for key, value in chosen.items() if value != usual[key]}
        return [tasks, cfg.data.hide_goal, *([unusual] if unusual else [])]


def _collection_settings(cfg: DictConfig) -> CollectionSettings:
    """The settings that the training data depend on."""
    return read(CollectionSettings, cfg.data)


def _support_settings(cfg: DictConfig) -> CollectionSettings:
    """The settings of the demonstrations of held-out tasks: another seed, and another expert."""
    settings, levels = _collection_settings(cfg), cfg.data.support_noise_levels
    return dataclasses.replace(
        settings,
        episodes_per_task=cfg.data.support_episodes,
        seed=settings.seed + 1,
        noise_levels=settings.noise_levels if levels is None else plain(levels),
        expert_gain=cfg.data.support_expert_gain,
    )


def _support_name(cfg: DictConfig) -> str:
    """The folder of the demonstrations: another one for each expert."""
    name, gain = "support", cfg.data.support_expert_gain
    if cfg.data.support_noise_levels is not None:
        name += "_noise_" + "_".join(f"{level:g}" for level in cfg.data.support_noise_levels)
    return name if gain == 1 else f"{name}_gain_{gain:g}"


def _used(dataset: TrajectoryDataset, cfg: DictConfig) -> TrajectoryDataset:
    """The episodes that are trained on.

    Raises:
        ConfigError: if there are none.
    """
    records = dataset.manifest.tasks
    episodes = [episode for task in dataset.tasks for episode in records[task].episodes]
    used = torch.ones(len(episodes), dtype=torch.bool)
    if cfg.data.use_noise is not None:
        used = torch.tensor([episode["noise"] == cfg.data.use_noise for episode in episodes])
    if cfg.data.use_episodes is not None:
        for task in dataset.trajectory_task.unique():
            rows = ((dataset.trajectory_task == task) & used).nonzero().squeeze(-1)
            used[rows[cfg.data.use_episodes :]] = False
    if not used.any():
        raise ConfigError(
            f"data.use_noise is {cfg.data.use_noise}: none of the {len(episodes)} episodes was "
            "collected with it; set data.episodes_per_task to at least the number of noise levels"
        )
    return dataset if used.all() else dataset.select(used)
