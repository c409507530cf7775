"""Algorithms by name: this library's method and those that it is compared with.

Each is a loss, the kinds of actor that it can train, and the schedules of its target networks. All
share networks, data, trainer, optimizer and evaluation.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args, get_type_hints

from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.objectives import LossModule

from llmdpd_torchrl.baselines.sequence_models import MTDiff, PromptDT
from llmdpd_torchrl.baselines.torchrl_losses import CQL, IQL, TD3BC, BehaviourCloning
from llmdpd_torchrl.modules.actors.one_step import OneStepActor
from llmdpd_torchrl.modules.build import Networks
from llmdpd_torchrl.modules.config import NetworkConfig
from llmdpd_torchrl.objectives import (
    CriticLoss,
    DiffusionCloning,
    DiffusionQLLoss,
    LLMDPDLoss,
)
from llmdpd_torchrl.objectives.guidance import DistilledGuidance, Guidance
from llmdpd_torchrl.trainers.optimization import TARGET_SCHEDULES, UpdateSchedule
from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.parts import load_part, target_of
from llmdpd_torchrl.utils.settings import Flag, Positive, Probability, checked_dataclass


class Algorithm(NamedTuple):
    """A loss with what it can train.

    Attributes:
        loss: loss class; the keywords of its constructor are the algorithm's settings.
        actors: supported values of :class:`~llmdpd_torchrl.modules.NetworkConfig`'s ``actor``.
        schedules: update schedules of the target networks, by name.
        reads_prompts: whether it can be conditioned on a prompt.
        has_critics: whether it learns values; otherwise rewards and discount are not read.
        has_encoder: whether prompts are encoded by a prompt encoder, which it trains.

    Examples:
        >>> ALGORITHMS["td3_bc"].actors
        ('deterministic',)
        >>> ALGORITHMS["iql"].settings(gamma=0.99, reward_scale=1.0).expectile
        0.7
    """

    loss: type[LossModule]
    actors: tuple[str, ...]
    schedules: Mapping[str, UpdateSchedule]
    reads_prompts: bool = False
    has_critics: bool = True
    has_encoder: bool = True

    @property
    def imitates_labels(self) -> bool:
        """Whether its actor can imitate another action than the executed one."""
        return hasattr(self.loss.default_keys(), "expert_action")

    @property
    def has_own_critics(self) -> bool:
        """Whether its critics can be bounded and categorical, and rank a diffusion's samples."""
        return issubclass(self.loss, LLMDPDLoss)

    @property
    def settings(self) -> type:
        """A dataclass of ``gamma``, ``reward_scale`` and the keywords of the loss.

        With ``bounded``, where its critics can be: targets are clipped to what the rewards of the
        data can sum to; and ``distillation``, the weight of a one-step network's distance to the
        diffusion, if there is one.
        """
        found: dict[str, Any] = {
            "gamma": ("gamma", Probability),
            "reward_scale": ("reward_scale", Positive),
        }
        if self.has_own_critics:
            found["bounded"] = ("bounded", Flag, False)
            found["distillation"] = ("distillation", Positive, 10.0)
        for kind in self.loss.__mro__:
            parameters = inspect.signature(kind).parameters.values()
            hints = get_type_hints(kind.__init__, include_extras=True)  # type: ignore[misc]
            for item in parameters:
                if item.kind is item.KEYWORD_ONLY:
                    hint = hints[item.name]
                    plain = [one for one in get_args(hint) if one not in (Tensor, Guidance)]
                    if len(plain) < len(get_args(hint)):  # no file holds what was left out
                        hint = plain[0]
                    found.setdefault(item.name, (item.name, hint, item.default))
            if all(item.kind is not item.VAR_KEYWORD for item in parameters):
                break  # otherwise the rest is passed on to the base class
        made = dataclasses.make_dataclass("LossSettings", found.values())
        return checked_dataclass("loss", strict=True)(made)

    def schedules_with(self, tau: float) -> dict[str, UpdateSchedule]:
        """The schedules, with the critics' targets following them at the rate ``tau``."""
        return {
            name: one._replace(tau=tau) if name in _CRITICS else one
            for name, one in self.schedules.items()
        }

    def check(self, name: str, config: NetworkConfig, settings: Mapping[str, Any]) -> None:
        """Check networks and settings before any work is done.

        Args:
            name: name of the algorithm, for messages.
            config: configuration of the networks.
            settings: settings of the loss, with ``gamma`` and ``reward_scale``.

        Raises:
            ConfigError: if one is not supported.
        """
        if config.actor not in self.actors:
            raise ConfigError(
                f"network.actor is {config.actor!r}: algorithm={name} trains "
                f"{' or '.join(self.actors)}"
            )
        if config.prompt != "none" and not self.reads_prompts:
            raise ConfigError(
                f"prompt is {config.prompt!r}: algorithm={name} reads none, use prompt=none"
            )
        chosen = self.settings(**settings)
        if config.critic_bins is not None and not getattr(chosen, "bounded", False):
            raise ConfigError(
                f"network.critic_bins is {config.critic_bins}: categorical critics need "
                "loss.bounded=true, and algorithm=llmdpd or diffusion_ql"
            )
        if config.candidates > 1 and not self.has_own_critics:
            raise ConfigError(
                f"network.candidates is {config.candidates}: algorithm={name} has no critics that "
                "rank samples of a diffusion, use 1"
            )
        if config.one_step and not self.has_own_critics:
            raise ConfigError(
                f"network.one_step is true: algorithm={name} distils nothing, use false"
            )

    def make_loss(
        self,
        networks: Networks,
        prompt_network: TensorDictModule | None,
        *,
        gamma: float,
        reward_scale: float = 1.0,
        bounded: bool = False,
        distillation: float = 10.0,
        value_bounds: tuple[float, float] = (0.0, 1.0),
        **settings: Any,
    ) -> LossModule:
        """Build the loss of networks, with its value estimator where there are critics.

        ``reward_scale`` is not the loss's: a transform of the batches applies it. ``value_bounds``
        are the networks', and read with ``bounded`` alone.
        """
        if self.has_own_critics:
            given = dict(settings.get("critic_loss") or {})
            bounds = {"bounds": value_bounds} if bounded else {}
            settings["critic_loss"] = CriticLoss(**given | bounds)
            if isinstance(networks.acting, OneStepActor):
                network = networks.acting.module.network
                settings["guidance"] = DistilledGuidance(network, distillation)
        parts: list[Any] = [prompt_network] if self.reads_prompts and self.has_encoder else []
        parts.append(networks.actor)
        if self.has_critics:
            parts.append(networks.qvalues)
        loss = self.loss(*parts, **settings)
        if self.has_critics:
            loss.make_value_estimator(gamma=gamma)
        return loss


_CRITICS = {"qvalue_network": TARGET_SCHEDULES["qvalue_network"]}
_TD3 = {**_CRITICS, "actor_network": UpdateSchedule(0.005, period=2)}

ALGORITHMS: Mapping[str, Algorithm] = {
    "llmdpd": Algorithm(LLMDPDLoss, ("diffusion",), TARGET_SCHEDULES, reads_prompts=True),
    "diffusion_bc": Algorithm(DiffusionCloning, ("diffusion",), {}, reads_prompts=True,
                              has_critics=False),
    "diffusion_ql": Algorithm(DiffusionQLLoss, ("diffusion",), TARGET_SCHEDULES),
    "bc": Algorithm(BehaviourCloning, ("deterministic",), {}, reads_prompts=True,
                    has_critics=False),
    "td3_bc": Algorithm(TD3BC, ("deterministic",), _TD3),
    "iql": Algorithm(IQL, ("gaussian",), _CRITICS),
    "cql": Algorithm(CQL, ("tanh_gaussian",), _CRITICS),
    "prompt_dt": Algorithm(PromptDT, ("decision_transformer",), {}, reads_prompts=True,
                           has_critics=False, has_encoder=False),
    "mtdiff": Algorithm(MTDiff, ("plan_diffusion",), {}, reads_prompts=True, has_critics=False,
                        has_encoder=False),
}  # fmt: skip
"""Algorithms by name, as in ``configs/algorithm/``."""


def get_algorithm(name: str) -> Algorithm:
    """Look up one of :data:`ALGORITHMS`, or import somebody's own :class:`Algorithm`.

    Raises:
        ConfigError: if the name is unknown.
    """
    if isinstance(name, str) and target_of("algorithm", name) is not None:
        found = load_part("algorithm", name)
        if not isinstance(found, Algorithm):
            raise ConfigError(f"algorithm {name}: is a {type(found).__name__}, not an Algorithm")
        return found
    try:
        return ALGORITHMS[name]
    except (KeyError, TypeError):
        raise ConfigError(f"algorithm is {name!r}: use one of {', '.join(ALGORITHMS)}") from None
