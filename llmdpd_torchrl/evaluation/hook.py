"""Evaluation during a training: a hook of TorchRL's trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchrl.record.loggers import Logger
from torchrl.trainers import Trainer, TrainerHookBase

from llmdpd_torchrl.evaluation.evaluator import Evaluator
from llmdpd_torchrl.evaluation.statistics import summarise
from llmdpd_torchrl.evaluation.video import Frame
from llmdpd_torchrl.policies.policy import LLMDPDPolicy
from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.utils.errors import ConfigError, first_line, notice


class EvaluationHook(TrainerHookBase):
    """Evaluates the policy every ``every`` updates of a training.

    The success rates, in [0, 1], go to the progress bar and the trainer's logger, as
    ``eval/success_seen`` and ``eval/success_unseen``; where tasks have normalised scores, these do,
    as ``eval/score_seen`` and ``eval/score_unseen``. Training is not affected: workers have
    generators of their own.

    Args:
        evaluator: of seen and unseen tasks; its workers run until it is closed.
        policy: shares its parameters with what is trained.
        every: updates between evaluations, a multiple of the trainer's ``log_every``.
        trained_tasks: which of the evaluator's tasks are trained on.
        tables: prompts, see :class:`Evaluator`.
        best: folder for the policy that was best on the *trained* tasks so far. It is selected by
            evaluations during the training; its results are those of an online selection.
        render: makes the frames of a video; default: no videos.
        fps: of the video.

    Raises:
        ConfigError: if ``every`` is below 1.

    Attributes:
        history: updates and success rates, or scores, of each evaluation so far.
        best_value: the highest rate, or score, on the trained tasks so far.

    Examples:
        >>> from llmdpd_torchrl.evaluation import EvaluationSettings
        >>> from llmdpd_torchrl.modules import NetworkConfig, make_networks
        >>> config = NetworkConfig(prompt="none", hidden=[8])
        >>> policy = LLMDPDPolicy.from_networks(config, make_networks(config))
        >>> settings = EvaluationSettings(episodes_per_task=1, max_steps=5)
        >>> with Evaluator(["reach-v3"], settings, workers=1, progress=False) as evaluator:
        ...     hook = EvaluationHook(evaluator, policy, every=2, trained_tasks=["reach-v3"])
        ...     hook(1, None), hook(2, None)
        (None, {'eval/success_seen': 0.0})
    """

    def __init__(
        self,
        evaluator: Evaluator,
        policy: LLMDPDPolicy,
        *,
        every: int,
        trained_tasks: list[str] | tuple[str, ...],
        tables: PromptTables | None = None,
        best: Path | None = None,
        render: Callable[[], list[Frame]] | None = None,
        fps: float = 30,
    ) -> None:
        if every < 1:
            raise ConfigError(f"evaluation.every is {every}: it must be at least 1 update")
        self.evaluator = evaluator
        self.policy = policy
        self.every = every
        self.seen = [task for task in evaluator.tasks if task in trained_tasks]
        self.unseen = [task for task in evaluator.tasks if task not in trained_tasks]
        self.tables = tables
        self.best = best
        self.render = render
        self.fps = fps
        self.best_value: float | None = None
        self.history: list[dict[str, float]] = []
        self._trainer: Trainer | None = None

    def register(self, trainer: Trainer, name: str = "interval_evaluation") -> None:
        """Add the hook to a trainer.

        Raises:
            ConfigError: if the trainer does not log at these intervals.
        """
        log_every = getattr(trainer, "log_every", 1)
        if self.every % log_every:
            raise ConfigError(
                f"evaluation.every is {self.every}: use a multiple of trainer.log_every={log_every}"
            )
        self._trainer = trainer
        trainer.register_op("post_optim_complete_log", self)
        trainer.register_module(name, self)

    def __call__(self, updates: int, averages: Any) -> Mapping[str, float] | None:
        """Evaluate at every ``every``-th update."""
        if updates % self.every:
            return None
        episodes = self.evaluator(self.policy, self.tables)
        summary = summarise(episodes, self.seen, self.unseen)
        is_score = summary.measure == "score"
        name = "eval/score_" if is_score else "eval/success_"
        found = {
            name + group: part.percent.value / (1 if is_score else 100)
            for group, part in (("seen", summary.seen), ("unseen", summary.unseen))
            if part is not None
        }
        self.history.append({"updates": updates, **found})
        # Of equal ones the later: it was trained longer.
        seen = found.get(f"{name}seen")
        is_best = seen is not None and (self.best_value is None or seen >= self.best_value)
        if self.best is not None and is_best:
            self.policy.info["updates"] = updates
            try:
                self.policy.save_pretrained(self.best)
                self.best_value = seen
            except OSError as error:  # a full disk must not end the training
                notice(
                    f"cannot save the best policy so far to {self.best} ({first_line(error)}): "
                    "the next one that is as good as the last saved is tried"
                )
        if self._trainer is not None:
            if self._trainer.progress_bar:
                self._trainer._pbar_str.update(
                    {key.removeprefix(name): value for key, value in found.items()}
                )
            logger: Logger | None = self._trainer.logger
            if self.render is not None and logger is not None:
                video = torch.from_numpy(np.stack(self.render())).permute(0, 3, 1, 2).unsqueeze(0)
                logger.log_video("eval/episodes", video, step=updates, fps=self.fps)
        return found

    def state_dict(self) -> dict[str, Any]:
        """History and best value so far."""
        return {"best_value": self.best_value, "history": [dict(row) for row in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.best_value = state_dict["best_value"]
        self.history = [dict(row) for row in state_dict["history"]]
