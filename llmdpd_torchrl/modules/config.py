"""The structure of a policy's networks, as data that JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmdpd_torchrl.prompts.relative_frame import METAWORLD_FRAME, FrameSpec
from llmdpd_torchrl.prompts.retrieval import context_layout
from llmdpd_torchrl.tasks.table import METAWORLD_OBSERVATION_LAYOUT
from llmdpd_torchrl.utils.errors import ConfigError

DIRECT_ACTORS = ("deterministic", "gaussian", "tanh_gaussian")
"""``deterministic``: one action, squashed by tanh (TD3+BC); ``gaussian``: a squashed mean with one
deviation per dimension, whatever the state (IQL); ``tanh_gaussian``: a squashed Gaussian whose mean
and deviation both depend on the state (CQL)."""

SEQUENCE_ACTORS = ("decision_transformer", "plan_diffusion")
"""``decision_transformer``: the next action from returns, states and actions so far (Prompt-DT);
``plan_diffusion``: the next actions, denoised together, of which the first is taken (MTDiff-p)."""

ACTORS = ("diffusion", *DIRECT_ACTORS, *SEQUENCE_ACTORS)
"""``diffusion`` is the method's actor; the others are those of the baselines."""

PROMPTS = ("both", "text", "trajectory", "none")
"""Which prompts a policy is conditioned on; all but the first are ablations."""

CONDITIONINGS = ("retrieved", "pooled", "sequence")
"""How a trajectory prompt reaches the actor. ``retrieved``: step by step, as the context of the
prompt's step that is nearest to the observation; the observation itself passes a gate. ``pooled``,
the paper's: through a transformer, as a part of the prompt embedding z beside the observation.
``sequence``: all its steps before the last ones of the episode, for actors that read sequences."""


@dataclass
class SequenceConfig:
    """Sizes of an actor that reads sequences; :class:`NetworkConfig` has the prompt's length.

    Args:
        history: H, steps of the episode that are read, the present one among them.
        horizon: F, actions of a plan. For ``plan_diffusion`` only.
        width: width of the tokens.
        layers: layers of the transformer.
        heads: heads of its attention.
        dropout: dropout in training. For ``decision_transformer`` only.
        return_scale: divisor of returns.
        target_return: return to condition on while acting; ``None``: that of the demonstration in
            the prompt, so that nothing need be known of the task.
        guidance: weight of the return in sampling. 1 is plain conditioning, more exaggerates;
            training must then hide the return now and then. For ``plan_diffusion`` only.
        sampler: sampler of plans, one of :data:`~llmdpd_torchrl.modules.SAMPLERS`.
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
        _check_counts(self, ("history", "horizon", "width", "layers", "heads"), "network.sequence")
        _check_probabilities(self, ("dropout",), "network.sequence")
        if self.return_scale <= 0:
            raise ConfigError(
                f"network.sequence.return_scale is {self.return_scale}: it must be above 0"
            )
        if self.width % self.heads:
            raise ConfigError(
                f"network.sequence.width ({self.width}) must be a multiple of "
                f"network.sequence.heads ({self.heads})"
            )


@dataclass
class NetworkConfig:
    """Everything that fixes the structure of a policy's networks and what they read.

    ``dataclasses.asdict`` makes it JSON; ``NetworkConfig(**values)`` reads that back.

    Args:
        prompt: one of :data:`PROMPTS`.
        actor: one of :data:`ACTORS`.
        conditioning: one of :data:`CONDITIONINGS`; without a trajectory prompt there is nothing to
            retrieve, and the actor reads the observation and the prompt embedding, if any.
        observation_fields: half-open index ranges of the observation by name.
        observation_keep: fields that the networks read; default: all of Meta-World's.
        observation_differences: pairs of fields whose difference the networks read as well.
        observation_scales: see :class:`~llmdpd_torchrl.modules.ObservationFeatures`.
        frame: the relative frame in which a prompt's steps are compared with the present, see
            :class:`~llmdpd_torchrl.prompts.relative_frame.FrameSpec`. Read, and required, by
            actors that retrieve; ``None`` for others.
        lookaheads: lookaheads of the retrieved context, see
            :class:`~llmdpd_torchrl.prompts.retrieval.PromptRetrieval`.
        residual_on_retrieved: where a diffusion actor retrieves and the state is hidden, let it
            learn how actions differ from the suggested action, see
            :class:`~llmdpd_torchrl.modules.ResidualDenoiser`.
        min_base_fraction: fraction of the suggested movement that the residual must leave, see
            there.
        trained_task_ids: ids of the tasks that were trained on. On these, an actor that retrieves
            sees the state and the embedding, see
            :class:`~llmdpd_torchrl.transforms.ObservationGateTransform`.
        action_dim: A.
        text_dim: D, width of the frozen text embedding.
        text_features: width of h_ψ's output.
        trajectory_length: L, steps of a trajectory prompt.
        trajectory_features: width of g_φ's output. This and the next three: ``pooled`` only.
        trajectory_width: width of the tokens of g_φ's transformer.
        trajectory_layers: layers of the transformer.
        trajectory_heads: heads of its attention.
        hidden: widths of the hidden layers of actor and critics.
        activation: activation of all MLPs, one of :data:`~llmdpd_torchrl.modules.ACTIVATIONS`.
        diffusion_steps: K. This and the next two: actors that diffuse only.
        schedule: noise schedule, one of :data:`~llmdpd_torchrl.modules.NOISE_SCHEDULES`.
        prediction: meaning of the denoiser's output, one of
            :data:`~llmdpd_torchrl.modules.PREDICTIONS`.
        critics: number of critics.
        critic_hidden: widths of the critics' hidden layers; ``None``: as ``hidden``.
        text_dropout: probability that training hides the text prompt, in [0, 1). Above 0, the
            policy can be used without a text.
        trajectory_dropout: probability that training hides the trajectory prompt, in [0, 1).
        sequence: sizes of an actor that reads sequences, which has no encoder, no hidden layers
            and no critics, see :class:`~llmdpd_torchrl.modules.SequenceConfig`.

    Raises:
        ConfigError: on an unknown name, a width below 1, an actor that does not fit how it is
            conditioned and on what, or no relative frame where the actor retrieves.

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
    frame: FrameSpec | None = METAWORLD_FRAME
    lookaheads: Sequence[int] = (3,)
    residual_on_retrieved: bool = True
    min_base_fraction: float = 0.75
    trained_task_ids: Sequence[int] = ()
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
        if not isinstance(self.frame, FrameSpec | None):
            raise ConfigError(f"network.frame is {self.frame!r}: give a FrameSpec or None")
        if isinstance(self.sequence, Mapping):
            self.sequence = SequenceConfig(**self.sequence)
        if self.prompt not in PROMPTS:
            raise ConfigError(f"unknown prompt {self.prompt!r}: use one of {', '.join(PROMPTS)}")
        for name, choices in (("actor", ACTORS), ("conditioning", CONDITIONINGS)):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"unknown network.{name} {getattr(self, name)!r}: use one of "
                    f"{', '.join(choices)}"
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
        if self.retrieves and self.frame is None:
            raise ConfigError(
                "network.frame is None: an actor that retrieves needs a relative frame, give a "
                "FrameSpec of the observation's fields"
            )
        _check_counts(
            self,
            ("action_dim", "text_dim", "trajectory_length", "diffusion_steps", "critics"),
            "network",
        )
        _check_probabilities(self, ("text_dropout", "trajectory_dropout"), "network")
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
        """The columns of each part of the retrieved context.

        Raises:
            ConfigError: if there is no relative frame, or it does not fit the observation.
        """
        if self.frame is None:
            raise ConfigError("network.frame is None: there is no retrieved context without it")
        return context_layout(self.frame, self.observation_fields, self.action_dim, self.lookaheads)

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
        """Whether the actor is a diffusion, which acts by sampling."""
        return self.actor in ("diffusion", "plan_diffusion")

    @property
    def uses_text(self) -> bool:
        """Whether the text prompt is read."""
        return self.prompt in ("both", "text")

    @property
    def uses_trajectory(self) -> bool:
        """Whether the trajectory prompt is read."""
        return self.prompt in ("both", "trajectory")


def _check_counts(config: object, names: Sequence[str], group: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{group}.{name} is {getattr(config, name)}: it must be at least 1")


def _check_probabilities(config: object, names: Sequence[str], group: str) -> None:
    for name in names:
        if not 0.0 <= getattr(config, name) < 1.0:
            raise ConfigError(
                f"{group}.{name} is {getattr(config, name)}: it must be at least 0 and below 1"
            )
