"""Somebody's own tasks: Gymnasium's environments, recorded episodes and texts, by one YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from llmdpd_torchrl.evaluation import EvaluationSettings, GymnasiumSuite
from llmdpd_torchrl.experiments.config import (
    EvaluationSchema,
    Family,
    Run,
    Schema,
    TrajectoryPromptSchema,
    read,
)
from llmdpd_torchrl.experiments.own_tasks import OwnTasks
from llmdpd_torchrl.prompts import TextPrompt
from llmdpd_torchrl.tasks import TaskSplit
from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.settings import Flag, Fraction, Text, check_all, checked_dataclass


@checked_dataclass()
class _TrajectoryPrompt(TrajectoryPromptSchema):
    top_fraction: Fraction


@checked_dataclass()
class _Evaluation(EvaluationSchema):
    stop_on_success: Flag


@checked_dataclass()
class OwnTasksSchema(Schema):
    """Settings of ``configs/train_own.yaml``."""

    tasks: Text
    trajectory_prompt: _TrajectoryPrompt
    evaluation: _Evaluation


class OwnTasksFamily(Family):
    """The family of a task file, with the settings of ``configs/train_own.yaml``.

    Attributes:
        own: what the file says, once it is read.
    """

    schema = OwnTasksSchema
    simulator = "gymnasium"
    own: OwnTasks

    def check(self, cfg: DictConfig) -> None:
        """Check the file, and that there are texts where the policy reads them."""
        check_all(lambda: super(OwnTasksFamily, self).check(cfg), lambda: self._read(cfg))

    def _read(self, cfg: DictConfig) -> None:
        self.own = OwnTasks.read(cfg.tasks)
        if cfg.prompt in ("both", "text"):
            self.own.check_texts()
        if cfg.evaluation.every and not self.own.evaluates:
            raise ConfigError(f"evaluation.every is set, and no task of {cfg.tasks} has an env")

    def split(self, cfg: DictConfig) -> TaskSplit:
        """The tasks of the file."""
        return self.own.split

    def evaluates(self) -> bool:
        """Whether there are environments."""
        return self.own.evaluates

    def collect(self, run: Run) -> None:
        """Load all episodes, separate the held-out ones, and cut the trajectory prompts."""
        cfg, split = run.cfg, run.split
        dataset = self.own.load(
            top_fraction=cfg.trajectory_prompt.top_fraction, progress=cfg.progress
        )
        print(f"data: {', '.join(dataset.manifest.settings)}")
        is_held_out = dataset.trajectory_task >= len(split.train)
        run.dataset = dataset.select(~is_held_out) if is_held_out.any() else dataset
        run.cut_prompts()
        if split.held_out:
            run.add_demonstrations(dataset.select(is_held_out))

    def prompts(self) -> Mapping[str, TextPrompt]:
        """The file's texts by task."""
        return self.own.prompts

    def network(self, run: Run) -> dict[str, Any]:
        """The networks see the entire state."""
        fields = tuple(run.dataset.manifest.observation_layout["fields"])
        return {"observation_keep": fields, "retrieval": self.own.retrieval(fields)}

    def settings(self, cfg: DictConfig) -> EvaluationSettings:
        """How evaluations are made; the suite has the tasks' own limits of steps."""
        return read(EvaluationSettings, cfg.evaluation, max_steps=EvaluationSettings.max_steps)

    def suite(self, run: Run, settings: EvaluationSettings) -> GymnasiumSuite:
        """The environments of the file."""
        return self.own.suite(
            settings.seed,
            max_steps=run.cfg.evaluation.max_steps,
            stop_on_success=settings.stop_on_success,
        )

    def starts(self, run: Run, settings: EvaluationSettings) -> dict[str, Any]:
        """The tasks' environments and limits of steps, which the settings do not have."""
        return self.suite(run, settings).starts()

    def rendering_problem(self) -> str:
        """Why no video can be made; empty if one can."""
        return self.own.rendering_problem()

    def identity(self, cfg: DictConfig) -> Any:
        """The texts."""
        return {name: prompt.render() for name, prompt in self.own.prompts.items()}
