"""Target networks that track their sources, each on its own schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torchrl.objectives.common import LossModule
from torchrl.objectives.utils import TargetNetUpdater

from llmdpd_torchrl.utils.errors import ConfigError


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
        schedules (mapping, optional): from network name to :class:`UpdateSchedule` or a tuple
            ``(tau, period, start)``. Defaults to :data:`TARGET_SCHEDULES`; empty for a loss without
            targets.

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
        self,
        loss_module: LossModule,
        schedules: Mapping[str, UpdateSchedule | tuple[float, int, int]] | None = None,
    ) -> None:
        has_targets = any(
            name.startswith("target_") and name.endswith("_params")
            for name, _ in loss_module.named_children()
        )
        if schedules is None:
            schedules = TARGET_SCHEDULES if has_targets else {}
        self.schedules = {name: UpdateSchedule(*schedule) for name, schedule in schedules.items()}
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
