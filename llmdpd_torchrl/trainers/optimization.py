"""One optimisation step of all networks, its means to log, and the targets that follow."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import LossModule
from torchrl.objectives.utils import TargetNetUpdater
from torchrl.trainers import Trainer
from torchrl.trainers.trainers import OptimizationStepper

from llmdpd_torchrl.trainers.ranks import average
from llmdpd_torchrl.utils.errors import ConfigError


class OfflineOptimizationStepper(OptimizationStepper):
    """One Adam for actor, critics and prompt encoder, with gradients clipped per network.

    Sums all entries of the loss's output that begin with ``loss_`` and differentiates the sum once,
    so that the shared prompt encoder runs forwards and backwards once. Of several
    :class:`~llmdpd_torchrl.trainers.ranks.Ranks` each has its own batch, and all follow the mean of
    their gradients.

    Args:
        loss_module: an :class:`~llmdpd_torchrl.objectives.LLMDPDLoss`, or another loss whose terms
            do not reach each other's networks.
        learning_rate: of Adam.
        total_updates: updates over which the learning rate falls to zero along a half cosine;
            ``None`` keeps it constant.
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
        #: Trainable parameters by network; a shared parameter belongs to the first one.
        self.groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in loss_module.named_parameters():
            if parameter.requires_grad:
                group = name.partition("_params" if "_params" in name else ".")[0]
                self.groups.setdefault(group, []).append(parameter)
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

    def step(self, trainer: Trainer, sub_batch: TensorDictBase) -> TensorDictBase:
        """Update all networks once; return losses, gradient norms and means of other outputs.

        Raises:
            DivergenceError: on the CPU, if a loss or gradient is not finite; the networks then stay
                as they were.
        """
        losses = trainer.compute_loss(sub_batch)
        terms = [loss for name, loss in losses.items() if name.startswith("loss_")]
        functools.reduce(torch.add, terms).backward()
        average(p.grad for group in self.groups.values() for p in group if p.grad is not None)
        result = losses.detach().apply(lambda v: v if v.ndim == 0 else v.float().mean())
        for name, parameters in self.groups.items():
            # Without a limit, it only measures the norm.
            limit = math.inf if self.max_grad_norm is None else self.max_grad_norm
            result[f"grad_norm_{name}"] = nn.utils.clip_grad_norm_(parameters, limit)
        watch = getattr(trainer, "watch", None)  # of an OfflineTrainer
        if watch is not None:
            # Where this is 1, the fused optimizer skips its step without reading the device.
            self.optimizer.found_inf = watch(result, sub_batch)  # type: ignore[attr-defined]
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
        """Restore what :meth:`state_dict` returned."""
        self.optimizer.load_state_dict(state_dict["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state_dict["scheduler"])


class RunningMeans:
    """Means of the per-round means that TorchRL's trainer computes, accumulated on the device."""

    def __init__(self) -> None:
        self._sums: TensorDictBase | None = None
        self._count = 0

    def add(self, means: TensorDictBase) -> None:
        """Add the means of one round."""
        if self._sums is None:
            self._sums = means
        else:  # on the CPU after a checkpoint was loaded
            self._sums = self._sums.apply(lambda total, mean: total.to(mean.device) + mean, means)
        self._count += 1

    def take(self) -> dict[str, float]:
        """The means of all rounds since the last call, on all ranks; waits for the device once."""
        assert self._sums is not None
        means = self._sums / self._count
        average(means.values())
        means = means.cpu()
        self._sums, self._count = None, 0
        return {key: float(value) for key, value in means.items()}

    def state_dict(self) -> dict[str, Any]:
        """Sums and number of rounds since the last log entry."""
        sums = None if self._sums is None else self._sums.to_dict()
        return {"sums": sums, "count": self._count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        sums = state_dict["sums"]
        self._sums = None if sums is None else TensorDict(sums)
        self._count = state_dict["count"]


class UpdateSchedule(NamedTuple):
    """When and how far a target tracks its source.

    Attributes:
        tau: weight of the *source* in each update, in (0, 1]: target += tau (source - target).
        period: steps between updates.
        start: before this step, the target is copied from its source instead, since averaging over
            the fast first changes would only delay it.

    Examples:
        >>> UpdateSchedule(0.005, period=5)
        UpdateSchedule(tau=0.005, period=5, start=0)
    """

    tau: float
    period: int = 1
    start: int = 0


#: Diffusion-QL's rates: critics 0.005 at every step; actor 0.005 (a decay of 0.995) at every fifth
#: step from step 1000.
TARGET_SCHEDULES: Mapping[str, UpdateSchedule] = {
    "qvalue_network": UpdateSchedule(0.005),
    "actor_network": UpdateSchedule(0.005, period=5, start=1000),
}


class TargetUpdater(TargetNetUpdater):
    """Update the target networks of a loss, each on its own :class:`UpdateSchedule`.

    Call :meth:`step` after every optimisation step, or register it: ``trainer.register_op(
    "post_optim", updater.step)``. Only trainable parameters are followed. Where TorchRL's updaters
    copy the sources into the targets when they are built, this one leaves the targets as the loss
    made them, so building one after loading a checkpoint does no harm.

    Args:
        loss_module (LossModule): a loss with target parameters.
        schedules (mapping, optional): from network name to :class:`UpdateSchedule`. Defaults to
            :data:`TARGET_SCHEDULES`; empty for a loss without targets.

    Raises:
        ConfigError: if a target network has no schedule, a schedule no target network, or a number
            is out of range.

    Examples:
        >>> from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
        >>> from llmdpd_torchrl.objectives import DiffusionQLLoss
        >>> actor = DiffusionActor(action_dim=2, condition_dim=3, in_keys=["observation"])
        >>> loss = DiffusionQLLoss(actor, make_qvalue_networks(3, 2))
        >>> updater = TargetUpdater(loss)
        >>> updater.step()
        >>> updater.state_dict()
        {'initialized': True, 'counter': 1}
    """

    def __init__(
        self, loss_module: LossModule, schedules: Mapping[str, UpdateSchedule] | None = None
    ) -> None:
        has_targets = any(
            name.startswith("target_") and name.endswith("_params")
            for name, _ in loss_module.named_children()
        )
        if schedules is None:
            schedules = TARGET_SCHEDULES if has_targets else {}
        self.schedules = dict(schedules)
        for name, (tau, period, start) in self.schedules.items():
            if not 0 < tau <= 1 or period < 1 or start < 0:
                raise ConfigError(
                    f"target schedule of {name}: tau must be in (0, 1], period at least 1 and "
                    f"start not negative, got {tau}, {period}, {start}"
                )
        self.counter = 0
        if has_targets:
            super().__init__(loss_module)
            return
        self.loss_module = loss_module  # TorchRL's constructor refuses it
        self._target_names: list[str] = []
        self.init_()

    def init_(self) -> None:
        """Check that every target network has a schedule; called by the constructor."""
        targets = {
            name.removeprefix("target_").removesuffix("_params") for name in self._target_names
        }
        if targets != set(self.schedules):
            raise ConfigError(
                f"target schedules name {sorted(self.schedules)}, the loss has target networks "
                f"{sorted(targets)}: give each one schedule"
            )
        self.initialized = True

    @torch.no_grad()
    def step(self) -> None:
        """Count one optimisation step, and update the targets that are due."""
        self.counter += 1
        for name, (tau, period, start) in self.schedules.items():
            if self.counter % period:
                continue
            targets, sources = self._pairs(name)
            if self.counter < start:
                torch._foreach_copy_(targets, sources)
            else:
                torch._foreach_lerp_(targets, sources, tau)

    def _pairs(self, name: str) -> tuple[list[Tensor], list[Tensor]]:
        """Target and source tensors, looked up at each step: casting the loss replaces them."""
        sources = getattr(self.loss_module, f"{name}_params")
        targets = getattr(self.loss_module, f"target_{name}_params")
        pairs = [
            (targets.get(key), source)
            for key, source in sources.items(True, True)
            if source.requires_grad
        ]
        return [target.data for target, _ in pairs], [source.data for _, source in pairs]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.schedules}, counter={self.counter})"
