"""Meta-World: scripted experts' data, one text a task, success on fixed goals."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from llmdpd_torchrl.data import TrajectoryDataset
from llmdpd_torchrl.data.collection import CollectionSettings, collect_metaworld
from llmdpd_torchrl.envs.splits import TaskSplit, make_split
from llmdpd_torchrl.evaluation import EvaluationSettings, MetaWorldSuite
from llmdpd_torchrl.experiments.settings import (
    check_lists,
    check_text_encoder,
    part,
    plain,
    read,
)
from llmdpd_torchrl.prompts import (
    TextPrompt,
    load_text_prompts,
    make_text_encoder,
    text_embedding_table,
)
from llmdpd_torchrl.prompts.trajectory import TrajectoryPromptBank

if TYPE_CHECKING:
    from llmdpd_torchrl.experiments.run import Run

__all__ = ["MetaWorld"]


class MetaWorld:
    """The family of Meta-World's 50 tasks; its settings are ``configs/train_metaworld.yaml``'s.

    Examples:
        >>> sorted(MetaWorld().prompts(None))[:2]
        ['assembly-v3', 'basketball-v3']
    """

    def check(self, cfg: DictConfig) -> TaskSplit:
        """See :class:`~llmdpd_torchrl.experiments.run.Family`."""
        check_lists(cfg, ("tasks.train", "tasks.held_out"))
        _collection_settings(cfg)
        check_text_encoder(cfg)
        return make_split(cfg.tasks.split, train=cfg.tasks.train, held_out=cfg.tasks.held_out)

    def collect(self, run: Run) -> None:
        """Collect training data and support demonstrations, and cut the trajectory prompts."""
        cfg, split = run.cfg, run.split
        split.check_trainable(split.train)
        settings = _collection_settings(cfg)
        options = {"workers": cfg.data.workers, "progress": cfg.progress}
        folder = Path(cfg.data.folder)
        collect_metaworld(folder / "train", split.train, settings, **options)
        run.dataset = TrajectoryDataset.load(
            folder / "train", split.train, hide_goal=cfg.data.hide_goal
        )
        length = cfg.trajectory_prompt.length
        run.training_bank = TrajectoryPromptBank.from_dataset(run.dataset, length)
        run.evaluation_bank = run.training_bank
        if not split.held_out:
            return
        # A seed of its own: demonstrations of held-out tasks are never trained on.
        support = dataclasses.replace(
            settings, episodes_per_task=cfg.data.support_episodes, seed=settings.seed + 1
        )
        collect_metaworld(folder / "support", split.held_out, support, **options)
        demonstrations = TrajectoryDataset.load(
            folder / "support", split.held_out, hide_goal=cfg.data.hide_goal
        )
        run.support_hash = demonstrations.manifest.data_hash
        bank = TrajectoryPromptBank.from_dataset(demonstrations, length, trained_on=False)
        run.evaluation_bank = TrajectoryPromptBank.concatenate([run.training_bank, bank])

    def prompts(self, run: Run | None) -> Mapping[str, TextPrompt]:
        """Those that come with the package."""
        return load_text_prompts()

    def embed(self, run: Run) -> None:
        """Look up their embeddings."""
        encoder = make_text_encoder(plain(run.cfg.text_encoder))
        run.text_table = text_embedding_table(run.split.table.names, encoder)
        run.text_encoder_identity = encoder.identity

    def network(self, run: Run) -> dict[str, Any]:
        """Nothing: the networks' defaults are Meta-World's."""
        return {}

    def settings(self, cfg: DictConfig) -> EvaluationSettings:
        """See :class:`~llmdpd_torchrl.experiments.run.Family`."""
        names = ("episodes_per_task", "max_steps", "seed", "stochastic")
        return read(
            EvaluationSettings,
            part(cfg.evaluation, names),
            "evaluation",
            hide_goal=cfg.data.hide_goal,
        )

    def suite(self, run: Run, settings: EvaluationSettings) -> MetaWorldSuite:
        """All tasks on the settings' goals."""
        return settings.suite(run.split.tasks)

    def identity(self, cfg: DictConfig) -> Any:
        """The tasks, and whether goals are hidden."""
        return [plain(cfg.tasks), cfg.data.hide_goal]


def _collection_settings(cfg: DictConfig) -> CollectionSettings:
    """The part of ``data`` that the data is a function of."""
    names = ("episodes_per_task", "noise_levels", "seed", "max_steps", "steps_after_success")
    return read(CollectionSettings, part(cfg.data, names), "data")
