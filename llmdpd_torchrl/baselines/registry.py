"""Algorithms by name: this library's method and those that it is compared with.

Each is a loss, the kinds of actor that it can train, and the schedules of its target networks. All
share networks, data, trainer, optimizer and evaluation.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from tensordict.nn import TensorDictModule
from torchrl.objectives import LossModule

from llmdpd_torchrl.baselines.sequence_models import MTDiff, PromptDT
from llmdpd_torchrl.baselines.torchrl_losses import CQL, IQL, TD3BC, BehaviourCloning
from llmdpd_torchrl.modules.build import Networks
from llmdpd_torchrl.modules.config import NetworkConfig
from llmdpd_torchrl.objectives import DiffusionQLLoss, LLMDPDLoss
from llmdpd_torchrl.trainers.optimization import TARGET_SCHEDULES, UpdateSchedule
from llmdpd_torchrl.utils.errors import ConfigError


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
        >>> ALGORITHMS["td3_bc"].actors, sorted(ALGORITHMS["td3_bc"].settings)[:2]
        (('deterministic',), ['actor_every', 'alpha'])
    """

    loss: type[LossModule]
    actors: tuple[str, ...]
    schedules: Mapping[str, UpdateSchedule]
    reads_prompts: bool = False
    has_critics: bool = True
    has_encoder: bool = True

    @property
    def settings(self) -> dict[str, tuple[Any, ...]]:
        """The loss's own settings: the types that each may have, or ``Literal`` names."""
        found: dict[str, tuple[Any, ...]] = {}
        for kind in self.loss.__mro__:
            parameters = inspect.signature(kind).parameters.values()
            hints = get_type_hints(kind.__init__)  # type: ignore[misc]
            for item in parameters:
                if item.kind is item.KEYWORD_ONLY:
                    found.setdefault(item.name, _alternatives(hints[item.name]))
            if all(item.kind is not item.VAR_KEYWORD for item in parameters):
                break  # otherwise the rest is passed on to the base class
        return found

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
        common = {"gamma", "reward_scale"}
        unknown = sorted(set(settings) - set(self.settings) - common)
        if unknown:
            raise ConfigError(
                f"loss: algorithm={name} has no setting {unknown[0]!r}, but "
                f"{', '.join(sorted(set(self.settings) | common))}"
            )
        for key, kinds in self.settings.items():
            if key in settings and not _is_one(settings[key], kinds):
                raise ConfigError(
                    f"loss.{key} is {settings[key]!r}: it must be {' or '.join(_words(kinds))}"
                )

    def make_loss(
        self,
        networks: Networks,
        prompt_network: TensorDictModule | None,
        *,
        gamma: float,
        **settings: Any,
    ) -> LossModule:
        """Build the loss of networks, with its value estimator where there are critics."""
        parts: list[Any] = [prompt_network] if self.reads_prompts and self.has_encoder else []
        parts.append(networks.actor)
        if self.has_critics:
            parts.append(networks.qvalues)
        loss = self.loss(*parts, **settings)
        if self.has_critics:
            loss.make_value_estimator(gamma=gamma)
        return loss


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    is_union = get_origin(annotation) in (types.UnionType, Union)
    return get_args(annotation) if is_union else (annotation,)


def _is_one(value: Any, kinds: tuple[Any, ...]) -> bool:
    """Whether a setting from a file or a command line is of one of the types."""
    if any(value in get_args(kind) for kind in kinds if get_origin(kind) is Literal):
        return True
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, int):
        return float in kinds or (int in kinds and value >= 0)
    if isinstance(value, float):
        return float in kinds and math.isfinite(value)
    return type(value) in kinds


def _words(kinds: tuple[Any, ...]) -> list[str]:
    """The types in words, as a user reads them."""
    words = {
        bool: "true or false", int: "a whole number of at least 0", float: "a number",
        str: "a name", types.NoneType: "null",
    }  # fmt: skip
    names = [name for kind in kinds for name in get_args(kind)]
    return [words[kind] for kind in kinds if kind in words] + names


_CRITICS = {"qvalue_network": TARGET_SCHEDULES["qvalue_network"]}
_TD3 = {**_CRITICS, "actor_network": UpdateSchedule(0.005, period=2)}

ALGORITHMS: Mapping[str, Algorithm] = {
    "llmdpd": Algorithm(LLMDPDLoss, ("diffusion",), TARGET_SCHEDULES, reads_prompts=True),
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
    """Look up one of :data:`ALGORITHMS`.

    Raises:
        ConfigError: if the name is unknown.
    """
    try:
        return ALGORITHMS[name]
    except (KeyError, TypeError):
        raise ConfigError(f"algorithm is {name!r}: use one of {', '.join(ALGORITHMS)}") from None
