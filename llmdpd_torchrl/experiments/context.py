"""What the stages of a run hand on to each other, and what a family of environments provides."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from omegaconf import DictConfig

from llmdpd_torchrl.evaluation import EvaluationSettings, Suite
from llmdpd_torchrl.experiments.config import Schema
from llmdpd_torchrl.prompts import TextPrompt
from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.tasks.splits import TaskSplit


class Family(Protocol):
    """What a family of environments brings to a run: its tasks, data, prompts and simulators.

    Examples:
        >>> from llmdpd_torchrl.experiments.metaworld import MetaWorld
        >>> family: Family = MetaWorld()
    """

    @property
    def schema(self) -> type[Schema]:
        """The schema of the family's settings."""

    def check(self, cfg: DictConfig) -> TaskSplit:
        """Check the family's own settings, before any work is done, and name the tasks.

        Raises:
            ConfigError: on a setting that is out of range.
        """

    def collect(self, run: Run) -> None:
        """Fill in the run's data and trajectory prompts."""

    def prompts(self, run: Run) -> Mapping[str, TextPrompt]:
        """The text prompts by task."""

    def embed(self, run: Run) -> None:
        """Fill in the run's text table and its encoder, for a policy that reads texts."""

    def network(self, run: Run) -> dict[str, Any]:
        """The entries of the network's configuration that follow from the data."""

    def settings(self, cfg: DictConfig) -> EvaluationSettings:
        """How evaluations are made.

        Raises:
            ConfigError: on a setting that is out of range.
        """

    def suite(self, run: Run, settings: EvaluationSettings) -> Suite:
        """The environments of all tasks."""

    def identity(self, cfg: DictConfig) -> Any:
        """The family's own settings that a training depends on, as JSON has them."""


@dataclasses.dataclass
class Run:
    """State of one run, filled in stage by stage.

    Attributes:
        cfg: the configuration.
        family: the family of environments.
        output: folder of all artefacts.
        split: the tasks.
        device: of networks, training and the policy in evaluations.
        dataset: transitions of the training tasks.
        training_prompts: texts and trajectories that the training samples from.
        evaluation_prompts: those of the evaluations, also of held-out tasks.
        text_encoder_identity: which encoder embedded the texts.
        support_hash: hash of the demonstrations of held-out tasks.
        fingerprint: hash of everything that the training depends on.
        policy: the trained policy.
        trained: whether it was trained in this run.
        failed: number of episodes that crashed.
        objective: of the evaluation, for a sweep.
        seconds: duration of each stage.

    Examples:
        >>> from llmdpd_torchrl.tasks.splits import make_split
        >>> from llmdpd_torchrl.experiments.metaworld import MetaWorld
        >>> run = Run(DictConfig({}), MetaWorld(), Path("outputs/mine"), make_split("ml10"))
        >>> run.trained, len(run.split.held_out)
        (False, 5)
    """

    cfg: DictConfig
    family: Family
    output: Path
    split: TaskSplit
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    dataset: Any = None
    training_prompts: PromptTables = dataclasses.field(default_factory=PromptTables)
    evaluation_prompts: PromptTables = dataclasses.field(default_factory=PromptTables)
    text_encoder_identity: dict[str, Any] | None = None
    support_hash: str | None = None
    fingerprint: str = ""
    policy: Any = None
    trained: bool = False
    failed: int = 0
    objective: float = math.nan
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
