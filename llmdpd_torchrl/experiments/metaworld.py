"""Meta-World: scripted experts' data, one text a task, success on fixed goals."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import DictConfig, OmegaConf

from llmdpd_torchrl.baselines import ALGORITHMS, get_algorithm
from llmdpd_torchrl.collection.behaviour import Behaviour
from llmdpd_torchrl.collection.metaworld import CollectionSettings, collect_metaworld
from llmdpd_torchrl.data import TrajectoryDataset
from llmdpd_torchrl.envs.metaworld import EpisodeSteps
from llmdpd_torchrl.evaluation import EvaluationSettings, MetaWorldSuite
from llmdpd_torchrl.evaluation.controls import random_strings
from llmdpd_torchrl.experiments.config import (
    EvaluationSchema,
    Family,
    Run,
    Schema,
    plain,
    read,
    text_encoder,
)
from llmdpd_torchrl.prompts import TextPrompt, embed_texts, load_text_prompts, make_text_encoder
from llmdpd_torchrl.prompts.demonstrations import Demonstration
from llmdpd_torchrl.tasks import TaskSplit, make_split
from llmdpd_torchrl.utils.errors import ConfigError, DataError, notice
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
    check_all,
    checked_dataclass,
)

#: More demonstrations, at a gain, of a held-out task of which none succeeds.
_SUPPORT_RETRIES = 4


@checked_dataclass()
class _Tasks:
    split: Text
    train: Many[str] | None
    held_out: Many[str] | None
    count: Size | None
    count_seed: Count


@checked_dataclass()
class _Data:
    folder: Text | None
    episodes_per_task: Size
    noise_levels: NonEmpty[NonNegative]
    behaviours: Many[Behaviour]
    seed: Count
    max_steps: EpisodeSteps
    steps_after_success: Count
    hide_goal: Flag
    labels: Literal["executed", "expert", "auto"]
    reward: Literal["environment", "time_to_go"]
    support_episodes: Size
    support_noise_levels: NonEmpty[NonNegative] | None
    support_expert_gain: Fraction
    support_behaviour: Behaviour | None
    use_episodes: Size | None
    use_noise: Number | None
    workers: Size | None


@checked_dataclass()
class _Evaluation(EvaluationSchema):
    max_steps: EpisodeSteps
    stop_on_success: Flag
    demonstration: Demonstration
    demonstration_number: Count
    recovery: Flag


@checked_dataclass()
class MetaWorldSchema(Schema):
    """Settings of ``configs/train_metaworld.yaml``."""

    texts: Literal["own", "random"]
    tasks: _Tasks
    data: _Data
    evaluation: _Evaluation


class MetaWorld(Family):
    """The family of Meta-World's 50 tasks, with the settings of ``configs/train_metaworld.yaml``.

    Examples:
        >>> sorted(MetaWorld().prompts())[:2]
        ['assembly-v3', 'basketball-v3']
    """

    schema = MetaWorldSchema
    simulator = "metaworld"

    def check(self, cfg: DictConfig) -> None:
        """Check that there are such tasks and data."""
        check_all(
            lambda: super(MetaWorld, self).check(cfg),
            lambda: _check_noise(cfg),
            lambda: _check_support(cfg),
            lambda: _check_labels(cfg),
            lambda: self.split(cfg),
        )

    def split(self, cfg: DictConfig) -> TaskSplit:
        """The tasks of the suite, or those that replace them."""
        tasks = plain(cfg.tasks)
        return make_split(tasks.pop("split"), seed=tasks.pop("count_seed"), **tasks)

    def imitates_expert(self, cfg: DictConfig) -> bool:
        """Whether the labels are the expert's: as set, or where the algorithm can imitate them."""
        is_able = get_algorithm(cfg.algorithm).imitates_labels
        return bool(cfg.data.labels == "expert" or (cfg.data.labels == "auto" and is_able))

    def collect(self, run: Run) -> None:
        """Collect training data and support demonstrations, and cut the trajectory prompts."""
        cfg = run.cfg
        settings = read(CollectionSettings, cfg.data)
        run.dataset = _used(_collected(run, "train", run.split.train, settings), cfg)
        if self.imitates_expert(cfg) and "expert_action" not in run.dataset.transitions:
            raise DataError(
                f"data.labels is {cfg.data.labels!r}: these data were collected by an earlier "
                "version, without expert_action; choose another data.folder, or delete this one"
            )
        if cfg.data.reward == "time_to_go":
            run.dataset = run.dataset.with_time_to_go()
        run.cut_prompts()
        self.demonstrate(run)

    def demonstrate(self, run: Run) -> None:
        """Collect the demonstrations of held-out tasks, for evaluations; see :meth:`support`."""
        if run.split.held_out:
            chosen = run.cfg.evaluation
            run.add_demonstrations(
                self.support(run),
                chosen.demonstration,
                chosen.demonstration_number,
                recovery=chosen.recovery,
            )

    def support(self, run: Run) -> TrajectoryDataset:
        """The demonstrations of held-out tasks: with another seed, and another expert.

        Those of each expert have a folder of their own. Where an expert under
        ``data.support_behaviour`` never succeeds, more episodes are recorded, at last at a higher
        gain.
        """
        data = run.cfg.data
        settings = dataclasses.replace(
            read(CollectionSettings, data),
            episodes_per_task=data.support_episodes,
            seed=data.seed + 1,
            noise_levels=plain(data.support_noise_levels) or plain(data.noise_levels),
            expert_gain=data.support_expert_gain,
            behaviours=(),
        )
        name = "support"
        if data.support_noise_levels is not None:
            name += "_noise_" + "_".join(f"{level:g}" for level in data.support_noise_levels)
        if data.support_expert_gain != 1:
            name += f"_gain_{data.support_expert_gain:g}"
        if data.support_behaviour is not None:
            chosen = Behaviour(**plain(data.support_behaviour))
            settings = dataclasses.replace(settings, behaviours=[chosen], retries=_SUPPORT_RETRIES)
            name += "_behaviour" + "".join(f"_{k}_{_short(v)}" for k, v in chosen.to_dict().items())
        support = _collected(run, name, run.split.held_out, settings)
        for task, record in support.manifest.tasks.items() if settings.retries else ():
            gain = next((one["gain"] for one in record.episodes if one["success"]), 0.0)
            if gain > settings.behaviours[0].gain:
                notice(f"{task} is demonstrated at gain {gain:g}: slower experts do not succeed")
        return support

    def prompts(self) -> Mapping[str, TextPrompt]:
        """Those that come with the package."""
        return load_text_prompts()

    def embed(self, run: Run) -> torch.Tensor:
        """The texts' embeddings, or those of as many random letters."""
        if run.cfg.texts == "own":
            return super().embed(run)
        encoder = make_text_encoder(text_encoder(run.cfg))
        run.text_encoder_identity = encoder.identity
        return embed_texts(list(random_texts(run.split.table.names).values()), encoder)

    def settings(self, cfg: DictConfig) -> EvaluationSettings:
        """How evaluations are made."""
        return read(EvaluationSettings, cfg.evaluation, hide_goal=cfg.data.hide_goal)

    def suite(self, run: Run, settings: EvaluationSettings) -> MetaWorldSuite:
        """All tasks on the settings' goals."""
        return settings.suite(run.split.tasks)

    def identity(self, cfg: DictConfig) -> Any:
        """The tasks, whether goals are hidden, and what else is not as usual."""
        tasks = plain(cfg.tasks)
        if tasks["count"] is None:
            del tasks["count"], tasks["count_seed"]
        usual = {"texts": "own", "data.use_episodes": None, "data.use_noise": None,
                 "data.reward": "environment"}  # fmt: skip
        chosen = {key: OmegaConf.select(cfg, key) for key in usual}
        usual["data.labels"] = "executed"
        chosen["data.labels"] = "expert" if self.imitates_expert(cfg) else "executed"
        unusual = {key: value for key, value in chosen.items() if value != usual[key]}
        return [tasks, cfg.data.hide_goal, *([unusual] if unusual else [])]


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def random_texts(names: Sequence[str]) -> dict[str, str]:
    """By task, what ``texts=random`` shows for its text: as many random letters.

    They depend on the complete table of names.
    """
    prompts = load_text_prompts()
    return dict(zip(names, random_strings([prompts[n].render() for n in names]), strict=True))


def _check_labels(cfg: DictConfig) -> None:
    if cfg.data.labels == "expert" and not get_algorithm(cfg.algorithm).imitates_labels:
        can = [name for name, algorithm in ALGORITHMS.items() if algorithm.imitates_labels]
        raise ConfigError(
            f"data.labels is 'expert': algorithm={cfg.algorithm} imitates executed actions only; "
            f"use {', '.join(can)}, or data.labels=auto"
        )


def _check_noise(cfg: DictConfig) -> None:
    used, settings = cfg.data.use_noise, read(CollectionSettings, cfg.data)
    key = "behaviours" if settings.behaviours else "noise_levels"
    collected = [behaviour.noise for behaviour in settings.behaviours] or settings.noise_levels
    if used is not None and used not in collected:
        raise ConfigError(
            f"data.use_noise is {used}: no episode is collected with it; data.{key} "
            f"has {', '.join(f'{level:g}' for level in dict.fromkeys(collected))}"
        )


def _check_support(cfg: DictConfig) -> None:
    data = cfg.data
    other = data.support_noise_levels is not None or data.support_expert_gain != 1
    if data.support_behaviour is not None and other:
        raise ConfigError(
            "data.support_behaviour replaces support_noise_levels and support_expert_gain: set "
            "its noise and gain instead"
        )


def _collected(
    run: Run, name: str, tasks: tuple[str, ...], settings: CollectionSettings
) -> TrajectoryDataset:
    """The data of some tasks, which are collected if they are not yet.

    They are in the user's cache, or in a folder of this name in ``data.folder``.
    """
    data = run.cfg.data
    folder = settings.folder if data.folder is None else Path(data.folder) / name
    print(f"data: {folder} ({name})")
    collect_metaworld(folder, tasks, settings, workers=data.workers, progress=run.cfg.progress)
    return TrajectoryDataset.load(folder, tasks, hide_goal=data.hide_goal)


def _used(dataset: TrajectoryDataset, cfg: DictConfig) -> TrajectoryDataset:
    """The episodes that are trained on."""
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
