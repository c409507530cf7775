"""Offline training on TorchRL's Trainer: a replay source in the collector's place."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import nn
from torchrl.data import ReplayBuffer
from torchrl.objectives import LossModule
from torchrl.record.loggers import Logger
from torchrl.trainers import Trainer
from torchrl.trainers.trainers import OptimizationStepper

from llmdpd_torchrl.modules.build import check_state
from llmdpd_torchrl.trainers.guard import FiniteGuard
from llmdpd_torchrl.trainers.logger_group import LoggerGroup
from llmdpd_torchrl.trainers.progress import BatchSource, RunningMeans
from llmdpd_torchrl.trainers.target_updater import TargetUpdater
from llmdpd_torchrl.utils.errors import ConfigError, UserError

if TYPE_CHECKING:
    from llmdpd_torchrl.trainers.checkpointing import Checkpointing

__all__ = ["OfflineOptimizationStepper", "OfflineTrainer", "ReplaySource"]


class ReplaySource:
    """Stands where an online trainer has its collector: an endless source of "frames".

    A frame is one update; the batch of an update is drawn by the trainer's ``process_optim_batch``
    hook. Each item is a placeholder of ``updates`` frames.

    Args:
        updates: frames an item.

    Examples:
        >>> next(iter(ReplaySource(5))).numel()
        5
    """

    init_random_frames = 0
    requested_frames_per_batch = None

    def __init__(self, updates: int) -> None:
        self.updates = updates

    def __iter__(self) -> Iterator[TensorDictBase]:
        while True:
            yield TensorDict({}, batch_size=[self.updates])

    def set_seed(self, seed: int, static_seed: bool = False) -> int:
        """Nothing is drawn here."""
        return seed

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to stop."""

    def update_policy_weights_(self, *args: Any, **kwargs: Any) -> None:
        """No policy acts while training offline."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load."""


class OfflineOptimizationStepper(OptimizationStepper):
    """One Adam over actor, critics and prompt encoder, with gradients clipped per network.

    All entries of the loss's output that begin with ``loss_`` are summed and differentiated once,
    so that the shared prompt encoder is run forwards and backwards once.

    Args:
        loss_module: an :class:`~llmdpd_torchrl.objectives.LLMDPDLoss`, or another loss whose parts
            do not reach each other's networks.
        learning_rate: of Adam.
        total_updates: over which the learning rate falls to zero along a half cosine; ``None``
            keeps it constant.
        max_grad_norm: per network; ``None`` does not clip.

    Raises:
        ConfigError: if a number is out of range.

    Examples:
        >>> from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
        >>> from llmdpd_torchrl.objectives import DiffusionQLLoss
        >>> actor = DiffusionActor(2, 3, hidden=(8,), in_keys=["observation"])
        >>> loss = DiffusionQLLoss(actor, make_qvalue_networks(3, 2, hidden=(8,)))
        >>> sorted(OfflineOptimizationStepper(loss).groups)
        ['actor_network', 'qvalue_network']
    """

    def __init__(
        self,
        loss_module: LossModule,
        *,
        learning_rate: float = 3e-4,
        total_updates: int | None = None,
        max_grad_norm: float | None = 10.0,
    ) -> None:
        if learning_rate <= 0:
            raise ConfigError(f"learning_rate is {learning_rate}: it must be above 0")
        if max_grad_norm is not None and max_grad_norm <= 0:
            raise ConfigError(f"max_grad_norm is {max_grad_norm}: it must be above 0, or null")
        self.groups = self._parameter_groups(loss_module)
        # A tensor as learning rate keeps the scheduler from recompiling or synchronising.
        self.optimizer = torch.optim.Adam(
            [{"params": parameters, "name": name} for name, parameters in self.groups.items()],
            lr=learning_rate,
            fused=True,
        )
        self.max_grad_norm = max_grad_norm
        self.scheduler = (
            None
            if total_updates is None
            else torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, total_updates)
        )

    @staticmethod
    def _parameter_groups(loss_module: LossModule) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by network; a parameter belongs to the first network that has it."""
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in loss_module.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(name.partition("_params")[0], []).append(parameter)
        return groups

    def step(self, trainer: Trainer, sub_batch: TensorDictBase) -> TensorDictBase:
        """Update all networks once and return detached scalars."""
        guard = trainer.guard if isinstance(trainer, OfflineTrainer) else None
        losses = trainer.compute_loss(sub_batch)
        terms = [loss for name, loss in losses.items() if name.startswith("loss_")]
        functools.reduce(torch.add, terms).backward()
        result = losses.detach()
        for name, parameters in self.groups.items():
            # Also measures the norm where nothing is clipped.
            limit = math.inf if self.max_grad_norm is None else self.max_grad_norm
            result[f"grad_norm_{name}"] = nn.utils.clip_grad_norm_(parameters, limit)
        if guard is not None:
            watched = {
                name: value
                for name, value in result.items()
                if name.startswith(("loss_", "grad_norm_"))
            }
            # The fused optimizer makes no step where this is 1, and the host need not know.
            self.optimizer.found_inf = guard.watch(watched)  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scheduler is not None:
            self.scheduler.step()
        return result

    def state_dict(self) -> dict[str, Any]:
        """State of optimizer and schedule."""
        scheduler = None if self.scheduler is None else self.scheduler.state_dict()
        return {"optimizer": self.optimizer.state_dict(), "scheduler": scheduler}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.optimizer.load_state_dict(state_dict["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state_dict["scheduler"])


class OfflineTrainer(Trainer):
    """TorchRL's trainer for a fixed dataset: ``total_updates`` updates on a replay buffer.

    Frames are updates: ``total_frames``, ``collected_frames``, log and save intervals count them.

    Args:
        loss_module: an :class:`~llmdpd_torchrl.objectives.LLMDPDLoss`.
        replay_buffer: sampled once per update.
        total_updates: length of the training.
        stepper: owns the optimizer; default: :class:`OfflineOptimizationStepper` with a cosine
            schedule over ``total_updates``.
        target_updater: default: :class:`~llmdpd_torchrl.trainers.TargetUpdater` of the loss.
        logger: a TorchRL logger; scalars are the means over the last ``log_every`` updates.
        log_every: updates between log entries.
        progress_bar: whether to show one.
        failures: folder that keeps what is to be looked at when a loss or a gradient is not finite,
            see :class:`~llmdpd_torchrl.trainers.guard.FiniteGuard`; ``None`` keeps nothing.

    Raises:
        ConfigError: if a count is below 1.

    Examples:
        >>> from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
        >>> from llmdpd_torchrl.objectives import DiffusionQLLoss
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> data = TensorDict({
        ...     "observation": torch.randn(32, 3), "action": torch.rand(32, 2),
        ...     "next": {"observation": torch.randn(32, 3), "reward": torch.randn(32, 1),
        ...              "terminated": torch.zeros(32, 1, dtype=torch.bool),
        ...              "done": torch.zeros(32, 1, dtype=torch.bool)},
        ... }, batch_size=[32])
        >>> buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(32), batch_size=8)
        >>> _ = buffer.extend(data)
        >>> actor = DiffusionActor(2, 3, hidden=(8,), in_keys=["observation"])
        >>> loss = DiffusionQLLoss(actor, make_qvalue_networks(3, 2, hidden=(8,)))
        >>> trainer = OfflineTrainer(loss, buffer, total_updates=4, progress_bar=False)
        >>> trainer.train()
        >>> trainer.collected_frames
        4
    """

    def __init__(
        self,
        loss_module: LossModule,
        replay_buffer: ReplayBuffer,
        *,
        total_updates: int,
        stepper: OfflineOptimizationStepper | None = None,
        target_updater: TargetUpdater | None = None,
        logger: Logger | None = None,
        log_every: int = 100,
        progress_bar: bool = True,
        failures: str | os.PathLike[str] | None = None,
    ) -> None:
        if total_updates < 1 or log_every < 1:
            raise ConfigError(
                f"total_updates is {total_updates} and log_every {log_every}: both must be >= 1"
            )
        # The trainer looks up after this many updates; both intervals end on such a moment.
        chunk = math.gcd(total_updates, log_every)
        super().__init__(
            collector=ReplaySource(chunk),
            total_frames=total_updates,
            frame_skip=1,
            optim_steps_per_batch=chunk,
            loss_module=loss_module,
            optimization_stepper=stepper
            or OfflineOptimizationStepper(loss_module, total_updates=total_updates),
            logger=_surviving(logger),
            progress_bar=progress_bar,
            log_interval=0,
            # Off: it would keep every logged value of every update for ever.
            auto_log_optim_steps=False,
        )
        self.target_updater = target_updater or TargetUpdater(loss_module)
        self.log_every = log_every
        #: What must be the same when the training is continued, beside what the caller names.
        self.plan = {"total_updates": total_updates, "log_every": log_every}
        #: Set by :class:`~llmdpd_torchrl.trainers.Checkpointing`.
        self.checkpointing: Checkpointing | None = None
        #: Hooks may enter contexts here; they are left when :meth:`train` ends, however it does.
        self.during_training = contextlib.ExitStack()
        # TorchRL keeps every logged value for ever, and these positions on the class.
        self._log_dict: defaultdict[str, Any] = defaultdict(lambda: deque(maxlen=1))
        self._last_log: dict[str, Any] = {}
        self.batches = BatchSource(replay_buffer)
        self._means = RunningMeans()
        self.guard = FiniteGuard(failures)
        self.register_op("setup", self._show_progress)
        self.register_op("process_optim_batch", self._draw)
        self.register_op("post_optim", self.target_updater.step)
        self.register_op("post_optim", self._look_in_time)
        self.register_op("post_optim_complete_log", self._look)
        self.register_op("post_optim_complete_log", self._log_means)
        self.register_module("target_updater", self.target_updater)
        self.register_module("means", self._means)
        self.register_module("batches", self.batches)

    def train(self) -> None:
        """Run all updates that are left; none are of a finished training that was resumed."""
        if self.collected_frames >= self.total_frames:
            return
        with self.during_training:
            super().train()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            DataError: if a network has other tensors.
            KeyError: if a registered module has no state in it.
        """
        saved = state_dict["loss_module"]
        check_state(saved, self.loss_module.state_dict(), "loss_module", "this training")
        super().load_state_dict(state_dict)

    def compute_loss(
        self, sub_batch: TensorDictBase, method: str | None = None
    ) -> TensorDictBase | tuple[Any, ...]:
        """The loss of a batch; where it refuses one, the error says which it was.

        Raises:
            UserError: of the kind that the loss raises.
        """
        try:
            return super().compute_loss(sub_batch, method)
        except UserError as error:
            if self.updates_made == 1:  # a mistake of the settings; every later batch has its form
                raise
            self.guard.explain(self, error, sub_batch)
            raise

    @property
    def updates_made(self) -> int:
        """Updates so far, with the one that is being made."""
        return self._optim_count

    @property
    def is_last_round(self) -> bool:
        """Whether the training ends after this round: it is complete, or was asked to stop."""
        return self._stop_training or self.collected_frames >= self.total_frames

    def logged_now(self, name: str) -> float | None:
        """What was logged under ``name`` at this very update, if it is a finite number."""
        if self._last_log.get(name) != self.collected_frames:
            return None
        value = float(self._log_dict[name][-1])
        return value if math.isfinite(value) else None

    def _show_progress(self) -> None:
        """Let the bar of a resumed training start where it left off, and end whatever happens."""
        if self.progress_bar:
            self._pbar.initial = self._pbar.n = self.collected_frames
            self._pbar.refresh()
            self.during_training.callback(self._pbar.close)

    def _draw(self, _: TensorDictBase) -> TensorDictBase:
        """The batch of the next update."""
        return self.guard.remember(self.batches.replay_buffer.sample())

    def _look_in_time(self) -> None:
        if self.guard.is_full:
            self.guard.check(self)

    def _look(self, updates: int, means: TensorDictBase) -> None:
        """Before anything of this round is logged, evaluated or saved."""
        self.guard.check(self)

    def _log_means(self, updates: int, means: TensorDictBase) -> Mapping[str, Any] | None:
        """Average what the trainer averaged over its chunks, and hand it on at the log interval."""
        self._means.add(means)
        if updates % self.log_every and updates != self.total_frames:
            return None
        scalars = {f"train/{key}": value for key, value in self._means.take().items()}
        if self.progress_bar:
            shown = {"bc": "train/bc", "q": "train/q_value"}
            self._pbar_str.update({k: scalars[v] for k, v in shown.items() if v in scalars})
        return scalars


def _surviving(logger: Logger | None) -> Logger | None:
    """The logger in a group, which goes on without one that raises."""
    if logger is None or isinstance(logger, LoggerGroup):
        return logger
    return LoggerGroup([logger], logger.exp_name, logger.log_dir)
