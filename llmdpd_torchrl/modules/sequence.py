"""Policies that read sequences: their sizes, their keys, and the one that a name stands for."""

from __future__ import annotations

from dataclasses import dataclass

from llmdpd_torchrl.modules.actors.decision_transformer import (
    DecisionTransformerActor,
    PromptDecisionTransformer,
)
from llmdpd_torchrl.modules.actors.plan_diffusion import (
    PlanConditioner,
    PlanDenoiser,
    PlanDiffusionActor,
)
from llmdpd_torchrl.modules.conditioning import ObservationFeatures
from llmdpd_torchrl.modules.diffusion import DiffusionModule
from llmdpd_torchrl.utils.errors import ConfigError

__all__ = ["SEQUENCE_ACTORS", "SequenceConfig", "make_sequence_actor"]

SEQUENCE_ACTORS = ("decision_transformer", "plan_diffusion")
"""``decision_transformer``: the next action from returns, states and actions so far (Prompt-DT);
``plan_diffusion``: the next actions, denoised together, of which the first is taken (MTDiff-p)."""


@dataclass
class SequenceConfig:
    """Sizes of a policy that reads sequences; the number of the prompt's steps is the bank's.

    Args:
        history: H, steps of the episode that are read, with the present one.
        horizon: F, actions of a plan; a decision transformer makes none.
        width: of the tokens.
        layers: of the transformer.
        heads: of its attention.
        dropout: of a decision transformer, in training.
        return_scale: that returns are divided by.
        target_return: that is asked for while acting; ``None``: as much as the shown demonstration
            has, so that nothing need be known of the task.
        guidance: weight of the return in sampling plans: 1 is plain conditioning, more exaggerates;
            training must then hide the return now and then.
        sampler: of plans, see :data:`~llmdpd_torchrl.modules.SAMPLERS`.
        sampling_steps: reverse steps of a plan; ``None``: all.

    Raises:
        ConfigError: if a number is out of range.

    Examples:
        >>> SequenceConfig(history=20).history
        20
    """

    history: int = 10
    horizon: int = 8
    width: int = 64
    layers: int = 3
    heads: int = 1
    dropout: float = 0.0
    return_scale: float = 1000.0
    target_return: float | None = None
    guidance: float = 1.2
    sampler: str = "ddim"
    sampling_steps: int | None = 5

    def __post_init__(self) -> None:
        for name in ("history", "horizon", "width", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"network.sequence.{name} is {getattr(self, name)}: it must be at least 1"
                )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(
                f"network.sequence.dropout is {self.dropout}: it must be at least 0 and below 1"
            )
        if self.return_scale <= 0:
            raise ConfigError(
                f"network.sequence.return_scale is {self.return_scale}: it must be above 0"
            )
        if self.width % self.heads:
            raise ConfigError(
                f"network.sequence.width ({self.width}) must be a multiple of "
                f"network.sequence.heads ({self.heads})"
            )


def make_sequence_actor(
    kind: str,
    features: ObservationFeatures,
    action_dim: int,
    prompt_steps: int,
    config: SequenceConfig,
    *,
    num_steps: int = 5,
    schedule: str = "vp",
    prediction: str = "epsilon",
) -> DecisionTransformerActor | PlanDiffusionActor:
    """One of :data:`SEQUENCE_ACTORS`.

    Args:
        kind: its name.
        features: of observations; used as they are, not trained.
        action_dim: A.
        prompt_steps: L, of a trajectory prompt.
        config: sizes.
        num_steps, schedule, prediction: of a diffusion, see
            :class:`~llmdpd_torchrl.modules.DiffusionModule`.

    Raises:
        ConfigError: if ``kind`` is unknown, or what it needs is not installed.

    Examples:
        >>> features = ObservationFeatures({"state": (0, 3)}, keep=["state"])
        >>> actor = make_sequence_actor("plan_diffusion", features, 2, 4, SequenceConfig(width=8))
        >>> actor.out_keys
        ['action']
    """
    if kind == "decision_transformer":
        return DecisionTransformerActor(
            PromptDecisionTransformer(
                features,
                action_dim,
                prompt_steps,
                config.history,
                width=config.width,
                layers=config.layers,
                heads=config.heads,
                dropout=config.dropout,
                return_scale=config.return_scale,
            )
        )
    if kind != "plan_diffusion":
        raise ConfigError(f"unknown actor {kind!r}: use one of {', '.join(SEQUENCE_ACTORS)}")
    denoiser = PlanDenoiser(
        features.out_features,
        action_dim,
        prompt_steps,
        config.history,
        config.horizon,
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        guidance=config.guidance,
    )
    plans = DiffusionModule(
        denoiser,
        config.horizon * action_dim,
        conditioner=PlanConditioner(features, config.return_scale),
        num_steps=num_steps,
        schedule=schedule,
        prediction=prediction,
        sampler=config.sampler,
        sampling_steps=config.sampling_steps,
    )
    return PlanDiffusionActor(plans, action_dim)
