"""The networks of one policy, built from one configuration that JSON can hold."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torchrl.data import Bounded

from llmdpd_torchrl.modules.actors.decision_transformer import DecisionTransformerActor
from llmdpd_torchrl.modules.actors.diffusion import DiffusionActor
from llmdpd_torchrl.modules.actors.direct import (
    DIRECT_ACTORS,
    DeterministicActor,
    GaussianActor,
    make_direct_actor,
)
from llmdpd_torchrl.modules.actors.plan_diffusion import PlanDiffusionActor
from llmdpd_torchrl.modules.conditioning import (
    GatedConditioner,
    ObservationConditioner,
    ObservationFeatures,
)
from llmdpd_torchrl.modules.critics import make_qvalue_networks
from llmdpd_torchrl.modules.prompt_encoder import PromptEncoder, TextHead, TrajectoryEncoder
from llmdpd_torchrl.modules.sequence import SEQUENCE_ACTORS, SequenceConfig, make_sequence_actor
from llmdpd_torchrl.prompts.relative_frame import METAWORLD_FRAME, FrameSpec
from llmdpd_torchrl.prompts.retrieval import PromptRetrieval
from llmdpd_torchrl.tasks.table import METAWORLD_OBSERVATION_LAYOUT
from llmdpd_torchrl.utils.errors import ConfigError

__all__ = ["ACTORS", "CONDITIONINGS", "PROMPTS", "NetworkConfig", "Networks", "make_networks"]

Actor: TypeAlias = (
    DiffusionActor | DeterministicActor | GaussianActor | DecisionTransformerActor
    | PlanDiffusionActor
)  # fmt: skip

ACTORS = ("diffusion", *DIRECT_ACTORS, *SEQUENCE_ACTORS)
"""What the policy is: the method's diffusion, or one of those that it is compared with."""

PROMPTS = ("both", "text", "trajectory", "none")
"""Which prompts a policy is conditioned on; all but the first are ablations."""

CONDITIONINGS = ("retrieved", "pooled", "sequence")
"""How a trajectory prompt reaches the actor: ``retrieved``, step by step as a function of the
observation, which it sees itself only where the gate is open; or ``pooled``, the paper's, through a
transformer as a part of the prompt embedding z beside the observation; or ``sequence``, all its
steps before the last ones of the episode, for the actors that read sequences."""


@dataclass
class NetworkConfig:
    """Everything that fixes the networks' structure.

    Args:
        prompt: one of :data:`PROMPTS`.
        actor: one of :data:`ACTORS`. What is said of diffusion and denoiser, and ``around_prompt``,
            is for the first.
        conditioning: one of :data:`CONDITIONINGS`; without a trajectory prompt there is nothing to
            retrieve, and the actor sees the observation and what embedding there is.
        observation_fields: named index ranges of the observation.
        observation_keep: fields that the networks see; default: all.
        observation_differences: pairs of fields whose difference the networks see besides.
        observation_scales: see :class:`~llmdpd_torchrl.modules.ObservationFeatures`.
        frame: how prompts are compared with the present, see
            :class:`~llmdpd_torchrl.prompts.relative_frame.FrameSpec`; its fields are the
            observation's.
        lookaheads: of the context, see :class:`~llmdpd_torchrl.prompts.retrieval.PromptRetrieval`.
        around_prompt: where the actor retrieves and the state is hidden, let it learn how actions
            differ from what the prompt suggests, see
            :class:`~llmdpd_torchrl.modules.ResidualDenoiser`.
        least_share: of the suggested movement, that the learnt difference must leave, see there.
        action_dim: A.
        text_dim: D, the width of the frozen text embedding.
        text_features: width of h_ψ's output.
        trajectory_length: L, steps of a trajectory prompt.
        trajectory_features: width of g_φ's output.
        trajectory_width: token width of g_φ's transformer.
        trajectory_layers: its layers.
        trajectory_heads: its attention heads.
        hidden: widths of the hidden layers of denoiser and critics.
        critic_hidden: of the critics, where they shall differ.
        activation: of all MLPs.
        diffusion_steps: K.
        schedule: of the noise.
        prediction: what the denoiser's output means, see
            :class:`~llmdpd_torchrl.modules.DiffusionModule`.
        critics: how many.
        text_dropout: how often training leaves the text prompt out, in [0, 1). Above 0, the policy
            can be used without.
        trajectory_dropout: likewise for the trajectory prompt.
        sequence: sizes of an actor that reads sequences, which has nothing of encoder, hidden
            layers or critics, see :class:`~llmdpd_torchrl.modules.SequenceConfig`.

    Raises:
        ConfigError: on an unknown name, a width below 1, or an actor that does not fit how it is
            conditioned and on what.

    Examples:
        >>> NetworkConfig(prompt="text").retrieves, NetworkConfig().observation_dim
        (False, 39)
    """

    prompt: str = "both"
    actor: str = "diffusion"
    conditioning: str = "retrieved"
    observation_fields: Mapping[str, Sequence[int]] = field(
        default_factory=lambda: dict(METAWORLD_OBSERVATION_LAYOUT["fields"])
    )
    observation_keep: Sequence[str] = tuple(METAWORLD_OBSERVATION_LAYOUT["fields"])
    observation_differences: Sequence[Sequence[str]] = ()
    observation_scales: Sequence[float] = ()
    frame: FrameSpec = METAWORLD_FRAME
    lookaheads: Sequence[int] = (3,)
    around_prompt: bool = True
    least_share: float = 0.75
    action_dim: int = 4
    text_dim: int = 576
    text_features: int = 32
    trajectory_length: int = 32
    trajectory_features: int = 32
    trajectory_width: int = 64
    trajectory_layers: int = 2
    trajectory_heads: int = 4
    hidden: Sequence[int] = (256, 256, 256)
    activation: str = "mish"
    diffusion_steps: int = 5
    schedule: str = "vp"
    prediction: str = "epsilon"
    critics: int = 2
    critic_hidden: Sequence[int] | None = None
    text_dropout: float = 0.0
    trajectory_dropout: float = 0.0
    sequence: SequenceConfig = field(default_factory=SequenceConfig)

    def __post_init__(self) -> None:
        if isinstance(self.frame, Mapping):  # as JSON and YAML have it
            self.frame = FrameSpec(**self.frame)
        if isinstance(self.sequence, Mapping):
            self.sequence = SequenceConfig(**self.sequence)
        if self.prompt not in PROMPTS:
            raise ConfigError(f"unknown prompt {self.prompt!r}: use one of {', '.join(PROMPTS)}")
        if self.actor not in ACTORS:
            raise ConfigError(
                f"unknown network.actor {self.actor!r}: use one of {', '.join(ACTORS)}"
            )
        if self.conditioning not in CONDITIONINGS:
            raise ConfigError(
                f"unknown network.conditioning {self.conditioning!r}: use one of "
                f"{', '.join(CONDITIONINGS)}"
            )
        if self.reads_sequences != (self.actor in SEQUENCE_ACTORS):
            raise ConfigError(
                f"network.actor is {self.actor!r} and network.conditioning {self.conditioning!r}: "
                f"sequence is for {' and '.join(SEQUENCE_ACTORS)}, and they need it"
            )
        if self.reads_sequences and (self.prompt != "trajectory" or self.trajectory_dropout):
            raise ConfigError(
                f"prompt is {self.prompt!r} and network.trajectory_dropout "
                f"{self.trajectory_dropout}: network.actor={self.actor} reads prompt=trajectory, "
                "and always"
            )
        for name in ("action_dim", "text_dim", "trajectory_length", "diffusion_steps", "critics"):
            if getattr(self, name) < 1:
                raise ConfigError(f"network.{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("text_dropout", "trajectory_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(
                    f"network.{name} is {getattr(self, name)}: it must be at least 0 and below 1"
                )
        self._check_widths("hidden")
        if self.critic_hidden is not None:
            self._check_widths("critic_hidden")
        if self.trajectory_width % self.trajectory_heads:
            raise ConfigError(
                f"network.trajectory_width ({self.trajectory_width}) must be a multiple of "
                f"network.trajectory_heads ({self.trajectory_heads})"
            )

    def _check_widths(self, name: str) -> None:
        widths = getattr(self, name)
        is_list = isinstance(widths, Sequence) and not isinstance(widths, str) and len(widths) > 0
        if not is_list or not all(type(width) is int and width >= 1 for width in widths):
            raise ConfigError(f"network.{name} is {widths!r}: give a list of widths of at least 1")

    @property
    def observation_dim(self) -> int:
        """O, the width of the raw observation."""
        return max(end for _, end in self.observation_fields.values())

    @property
    def context_parts(self) -> dict[str, slice]:
        """The columns of the context that the actor reads, by what they tell."""
        return PromptRetrieval.layout(
            self.frame, self.observation_fields, self.action_dim, self.lookaheads
        )

    @property
    def retrieves(self) -> bool:
        """Whether the actor reads a trajectory prompt step by step."""
        return self.conditioning == "retrieved" and self.uses_trajectory

    @property
    def reads_sequences(self) -> bool:
        """Whether the actor reads the steps of prompt and episode one by one."""
        return self.conditioning == "sequence"

    @property
    def diffuses(self) -> bool:
        """Whether the actor is a diffusion, which acts by drawing."""
        return self.actor in ("diffusion", "plan_diffusion")

    @property
    def uses_text(self) -> bool:
        """Whether the text prompt is read."""
        return self.prompt in ("both", "text")

    @property
    def uses_trajectory(self) -> bool:
        """Whether the trajectory prompt is read."""
        return self.prompt in ("both", "trajectory")


@dataclass
class Networks:
    """What :func:`make_networks` builds.

    Attributes:
        encoder: the trainable prompt encoder; ``None`` if there is nothing to encode: without
            prompts, and with a trajectory alone that is retrieved or read as a sequence.
        actor: the policy.
        qvalues: the critics; none where the actor reads sequences.

    Examples:
        >>> networks = make_networks(NetworkConfig(prompt="none", hidden=[8]))
        >>> networks.encoder is None, len(networks.qvalues)
        (True, 2)
    """

    encoder: PromptEncoder | None
    actor: Actor
    qvalues: list[TensorDictModule]


def make_networks(
    config: NetworkConfig,
    *,
    observations: torch.Tensor | None = None,
    text_embeddings: torch.Tensor | None = None,
) -> Networks:
    """Build prompt encoder, actor and critics.

    Args:
        config: their structure.
        observations: ``[N, O]`` of the *training* tasks; sets the normalisation. ``None`` leaves it
            to a state_dict that is loaded afterwards.
        text_embeddings: ``[T, D]`` of the *training* tasks; sets the centring, likewise.

    Raises:
        ConfigError: if a field of the observation is unknown, or data and config disagree on a
            width.

    Examples:
        >>> networks = make_networks(NetworkConfig(prompt="text", hidden=[32]))
        >>> networks.encoder.embedding_dim, networks.actor.in_keys
        (32, ['observation', 'prompt_embedding'])
    """
    try:
        features = ObservationFeatures(
            config.observation_fields,
            config.observation_keep,
            config.observation_differences,
            scales=config.observation_scales,
        )
    except ValueError as error:
        raise ConfigError(f"network.observation_*: {error}") from None
    if observations is not None:
        if observations.shape[-1] != config.observation_dim:
            raise ConfigError(
                f"the data's observations have {observations.shape[-1]} entries, the network's "
                f"observation_fields {config.observation_dim}: use the dataset's layout"
            )
        features.fit(observations)
    if config.reads_sequences:
        actor: Actor = make_sequence_actor(
            config.actor,
            features,
            config.action_dim,
            config.trajectory_length,
            config.sequence,
            num_steps=config.diffusion_steps,
            schedule=config.schedule,
            prediction=config.prediction,
        )
        return Networks(None, actor, [])
    encoder = _make_encoder(config, features, text_embeddings)
    embedding_dim = 0 if encoder is None else encoder.embedding_dim
    known = config.context_parts["known"] if config.retrieves else slice(0, 0)
    context_dim = known.stop
    in_keys: list[NestedKey] = ["observation"]
    if config.retrieves:
        in_keys += [("prompt", "observation_gate"), "prompt_context"]
    if encoder is not None:
        in_keys.append("prompt_embedding")
    condition_dim = features.out_features + embedding_dim
    if config.retrieves:
        condition_dim += 1 + context_dim
    conditioner: ObservationConditioner
    base = None
    if config.retrieves:
        is_around = config.around_prompt and config.actor == "diffusion"
        play = config.context_parts["play"] if is_around else None
        conditioner = GatedConditioner(copy.deepcopy(features), _width(known), play)
        if play is not None:
            base = slice(condition_dim, condition_dim + config.action_dim)
            condition_dim = base.stop
    else:
        conditioner = ObservationConditioner(copy.deepcopy(features))
    spec = Bounded(-1.0, 1.0, (config.action_dim,))
    common: dict[str, Any] = {
        "hidden": config.hidden, "activation": config.activation, "in_keys": in_keys, "spec": spec
    }  # fmt: skip
    if config.actor == "diffusion":
        actor = DiffusionActor(
            config.action_dim,
            condition_dim,
            conditioner=conditioner,
            base=base,
            movement=_width(config.context_parts["way"]),
            least_share=config.least_share,
            num_steps=config.diffusion_steps,
            schedule=config.schedule,
            prediction=config.prediction,
            **common,
        )
    else:
        actor = make_direct_actor(
            config.actor, config.action_dim, conditioner, condition_dim, **common
        )
    # The critics of an actor that retrieves read what it does: a gate that is shut for the one and
    # open for the other would let them judge by what it can not know.
    qvalues = make_qvalue_networks(
        condition_dim if config.retrieves else features.out_features,
        config.action_dim,
        0 if config.retrieves else embedding_dim,
        num=config.critics,
        hidden=config.hidden if config.critic_hidden is None else config.critic_hidden,
        activation=config.activation,
        observation_module=None if config.retrieves else features,
        conditioner=conditioner if config.retrieves else None,
        condition_keys=in_keys[1:] if config.retrieves else (),
    )
    return Networks(encoder, actor, qvalues)


def _make_encoder(
    config: NetworkConfig, features: ObservationFeatures, text_embeddings: torch.Tensor | None
) -> PromptEncoder | None:
    pools = config.uses_trajectory and not config.retrieves
    if not config.uses_text and not pools:
        return None
    text = trajectory = None
    if config.uses_text:
        if text_embeddings is None:
            text_embeddings = torch.zeros(1, config.text_dim)
        if text_embeddings.shape[-1] != config.text_dim:
            raise ConfigError(
                f"the text embeddings are {text_embeddings.shape[-1]} wide, network.text_dim is "
                f"{config.text_dim}: set it to the encoder's width"
            )
        text = TextHead(text_embeddings, config.text_features, activation=config.activation)
    if pools:
        options: dict[str, Any] = {
            "features": config.trajectory_features,
            "width": config.trajectory_width,
            "layers": config.trajectory_layers,
            "heads": config.trajectory_heads,
            "activation": config.activation,
        }
        trajectory = TrajectoryEncoder(
            copy.deepcopy(features), config.action_dim, config.trajectory_length, **options
        )
    return PromptEncoder(text, trajectory)


def _width(columns: slice) -> int:
    return columns.stop - columns.start
