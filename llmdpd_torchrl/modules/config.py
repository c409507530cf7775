"""The structure of a policy's networks, as data that JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from llmdpd_torchrl.data.dataset import TrajectoryDataset
from llmdpd_torchrl.prompts.retrieval_spec import METAWORLD_RETRIEVAL, ContextLayout, RetrievalSpec
from llmdpd_torchrl.prompts.spacing import Spacing
from llmdpd_torchrl.tasks.table import METAWORLD_OBSERVATION_LAYOUT
from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.settings import (
    Dropout,
    Flag,
    Integer,
    Many,
    NonEmpty,
    Number,
    Positive,
    Text,
    Width,
    checked_dataclass,
)

DirectActor = Literal["deterministic", "gaussian", "tanh_gaussian"]
"""``deterministic``: one action, squashed by tanh (TD3+BC); ``gaussian``: a squashed mean with one
deviation per dimension, whatever the state (IQL); ``tanh_gaussian``: a squashed Gaussian whose mean
and deviation both depend on the state (CQL)."""

SequenceActor = Literal["decision_transformer", "plan_diffusion"]
"""``decision_transformer``: the next action from returns, states and actions so far (Prompt-DT);
``plan_diffusion``: the next actions, denoised together, of which the first is taken (MTDiff-p)."""

SEQUENCE_ACTORS: tuple[str, ...] = get_args(SequenceActor)

Actor = Literal["diffusion", DirectActor, SequenceActor]
"""``diffusion`` is the method's actor; the others are those of the baselines."""

Prompt = Literal["both", "text", "trajectory", "none"]
"""Which prompts a policy is conditioned on; all but the first are ablations."""

Conditioning = Literal["retrieved", "pooled", "sequence"]
"""How a trajectory prompt reaches the actor. ``retrieved``: step by step, as the context of the
prompt's step that is nearest to the observation; the observation itself passes a gate. ``pooled``,
the paper's: through a transformer, as a part of the prompt embedding z beside the observation.
``sequence``: all its steps before the last ones of the episode, for actors that read sequences."""


@checked_dataclass("network.sequence")
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

    history: Width = 10
    horizon: Width = 8
    width: Width = 64
    layers: Width = 3
    heads: Width = 1
    dropout: Dropout = 0.0
    return_scale: Positive = 1000.0
    target_return: Number | None = None
    guidance: Number = 1.2
    sampler: str = "ddim"
    sampling_steps: Width | None = 5

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(
                f"network.sequence.width ({self.width}) must be a multiple of "
                f"network.sequence.heads ({self.heads})"
            )


@checked_dataclass("network")
class NetworkConfig:
    """Everything that fixes the structure of a policy's networks and what they read.

    ``dataclasses.asdict`` makes it JSON; ``NetworkConfig(**values)`` reads that back.

    Args:
        prompt: see :data:`Prompt`.
        actor: see :data:`Actor`.
        conditioning: see :data:`Conditioning`; without a trajectory prompt there is nothing to
            retrieve, and the actor reads the observation and the prompt embedding, if any.
        observation_fields: half-open index ranges of the observation by name.
        observation_keep: fields that the networks read; default: all of Meta-World's.
        observation_differences: pairs of fields whose difference the networks read as well.
        observation_scales: see :class:`~llmdpd_torchrl.modules.ObservationFeatures`.
        retrieval: what is looked up in a prompt, see
            :class:`~llmdpd_torchrl.prompts.RetrievalSpec`. Read, and required, by actors that
            retrieve; ``None`` for others.
        max_residual: where a diffusion actor retrieves and the state is hidden, how far its
            action may be from what the prompt suggests, see
            :class:`~llmdpd_torchrl.modules.SuggestionAttention`; ``None``: as far as it will.
        trained_task_ids: ids of the tasks that were trained on. On these, an actor that retrieves
            sees the state and the embedding, see
            :class:`~llmdpd_torchrl.transforms.ObservationGateTransform`.
        action_dim: A.
        text_dim: D, width of the frozen text embedding.
        text_features: width of h_ψ's output.
        text_mixture: whether any text is read as a mixture of those of the trained tasks, and as
            none where it names none of them, see :class:`~llmdpd_torchrl.modules.KnownTexts`.
        text_styles: G, styles of these texts: 1, or 2 where the tasks have short wordings.
        trajectory_length: L, steps of a trajectory prompt.
        trajectory_spacing: units by observation field at which retrieved prompts are resampled, see
            :func:`~llmdpd_torchrl.prompts.spacing.space_evenly`; ``None``: evenly in time.
        trajectory_features: width of g_φ's output. This and the next three: ``pooled`` only.
        trajectory_width: width of the tokens of g_φ's transformer.
        trajectory_layers: layers of the transformer.
        trajectory_heads: heads of its attention.
        hidden: widths of the hidden layers of actor and critics.
        activation: activation of all MLPs, one of :data:`~llmdpd_torchrl.modules.ACTIVATIONS`.
        denoiser: the diffusion's network, where it is of somebody's own: ``module:Class`` or an
            entry point, see :mod:`~llmdpd_torchrl.utils.parts`. It is made with A, the width C of
            the condition, and ``denoiser_options``, and maps ``[*, A + C + 1]`` (noisy action,
            condition, step) to ``[*, A]``. ``None``: :class:`~llmdpd_torchrl.modules.MLPDenoiser`.
        denoiser_options: further arguments of it.
        diffusion_steps: K. This and the next two: actors that diffuse only.
        schedule: noise schedule, one of :data:`~llmdpd_torchrl.modules.NOISE_SCHEDULES`.
        candidates: actions that a diffusion samples at a time where it samples, and of which its
            critics choose the most valued; above 1, the critics are a part of the policy.
        one_step: whether the policy acts by a network that is distilled from the diffusion and
            makes an action in one step, see
            :class:`~llmdpd_torchrl.objectives.guidance.DistilledGuidance`.
        prediction: meaning of the denoiser's output, one of
            :data:`~llmdpd_torchrl.modules.PREDICTIONS`; with a bounded residual ``"x0"``.
        critics: number of critics, at least 2.
        critic_hidden: widths of the critics' hidden layers; ``None``: as ``hidden``.
        critic_layer_norm: normalise the critics' hidden layers.
        critic_bins: bins of categorical critics, see
            :class:`~llmdpd_torchrl.modules.QValueNetwork`; ``None``: critics write values.
        text_dropout: probability that training hides the text prompt, in [0, 1). Above 0, the
            policy can be used without a text.
        trajectory_dropout: probability that training hides the trajectory prompt, in [0, 1).
        sequence: sizes of an actor that reads sequences, which has no encoder, no hidden layers
            and no critics, see :class:`~llmdpd_torchrl.modules.SequenceConfig`.

    Raises:
        ConfigError: on an unknown name, a width below 1, an actor that does not fit how it is
            conditioned and on what, or no relative frames where the actor retrieves.

    Examples:
        >>> NetworkConfig(prompt="text").retrieves, NetworkConfig().observation_dim
        (False, 39)
    """

    prompt: Prompt = "both"
    actor: Actor = "diffusion"
    conditioning: Conditioning = "retrieved"
    observation_fields: Mapping[str, Many[Integer]] = field(
        default_factory=lambda: dict(METAWORLD_OBSERVATION_LAYOUT["fields"])
    )
    observation_keep: Many[str] = tuple(METAWORLD_OBSERVATION_LAYOUT["fields"])
    observation_differences: Many[Many[str]] = ()
    observation_scales: Many[Number] = ()
    retrieval: RetrievalSpec | None = METAWORLD_RETRIEVAL
    max_residual: Positive | None = 0.3
    trained_task_ids: Many[Integer] = ()
    action_dim: Width = 4
    text_dim: Width = 576
    text_features: Width = 32
    text_mixture: Flag = False
    text_styles: Width = 1
    trajectory_length: Width = 32
    trajectory_spacing: Mapping[str, Positive] | None = None
    trajectory_features: Width = 32
    trajectory_width: Width = 64
    trajectory_layers: Width = 2
    trajectory_heads: Width = 4
    hidden: NonEmpty[Width] = (256, 256, 256)
    activation: str = "mish"
    denoiser: Text | None = None
    denoiser_options: dict[str, Any] = field(default_factory=dict)
    diffusion_steps: Width = 5
    schedule: str = "vp"
    prediction: str = "x0"
    candidates: Width = 1
    one_step: Flag = False
    critics: Annotated[int, Field(strict=True, ge=2, le=100)] = 2
    critic_hidden: NonEmpty[Width] | None = None
    critic_layer_norm: Flag = False
    critic_bins: Annotated[int, Field(strict=True, ge=2)] | None = None
    text_dropout: Dropout = 0.0
    trajectory_dropout: Dropout = 0.0
    sequence: SequenceConfig = field(default_factory=SequenceConfig)

    def __post_init__(self) -> None:
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
        if self.retrieves and self.retrieval is None:
            raise ConfigError(
                "network.retrieval is None: an actor that retrieves needs relative frames, give a "
                "RetrievalSpec of the observation's fields"
            )
        is_bounded = self.retrieves and self.actor == "diffusion" and self.max_residual is not None
        if is_bounded and self.prediction != "x0":
            raise ConfigError(
                f"network.prediction is {self.prediction!r}: the residual to what a prompt "
                "suggests is one of clean actions, use x0, or network.max_residual=null"
            )
        if self.candidates > 1 and self.actor != "diffusion":
            raise ConfigError(
                f"network.candidates is {self.candidates}: network.actor={self.actor} acts without "
                "its critics, use 1"
            )
        if self.denoiser is not None and (self.actor != "diffusion" or is_bounded):
            raise ConfigError(
                f"network.denoiser is {self.denoiser!r}: it needs network.actor=diffusion (it is "
                f"{self.actor}) and, with conditioning=retrieved, network.max_residual=null"
            )
        if self.one_step and (self.candidates > 1 or self.actor != "diffusion"):
            raise ConfigError(
                f"network.one_step is true: it needs network.actor=diffusion (it is {self.actor}) "
                f"and network.candidates=1 (it is {self.candidates})"
            )
        if self.text_mixture and self.uses_text and not self.text_dropout:
            raise ConfigError(
                "network.text_mixture is true: a text that names no task is read as none, which "
                "the policy learns only with network.text_dropout above 0"
            )
        if self.trajectory_width % self.trajectory_heads:
            raise ConfigError(
                f"network.trajectory_width ({self.trajectory_width}) must be a multiple of "
                f"network.trajectory_heads ({self.trajectory_heads})"
            )

    @classmethod
    def from_dataset(cls, dataset: TrajectoryDataset, **settings: Any) -> NetworkConfig:
        """The configuration that fits a dataset, with further ``settings``.

        The networks read the entire observation, and an actor that retrieves compares the
        standardised state, unless ``settings`` say otherwise.

        Examples:
            >>> from llmdpd_torchrl.data import load_episodes
            >>> arrays = {"observations": [[0.0, 1.0]] * 3, "actions": [[0.5]] * 3}
            >>> arrays |= {"rewards": [1.0] * 3, "terminals": [0, 0, 1], "timeouts": [0, 0, 0]}
            >>> config = NetworkConfig.from_dataset(load_episodes(arrays), prompt="trajectory")
            >>> config.observation_dim, config.action_dim, config.retrieves
            (2, 1, True)
        """
        manifest = dataset.manifest
        fields = manifest.observation_layout["fields"]
        found = {
            "observation_fields": fields,
            "observation_keep": tuple(fields),
            "retrieval": RetrievalSpec.of_state(fields),
            "action_dim": manifest.action_size,
            "trained_task_ids": dataset.trajectory_task.unique().tolist(),
        }
        return cls(**found | settings)

    @property
    def observation_dim(self) -> int:
        """O, the width of the raw observation."""
        return max(end for _, end in self.observation_fields.values())

    @property
    def context_layout(self) -> ContextLayout:
        """The columns of the retrieved context.

        Raises:
            ConfigError: if there are no relative frames, or they do not fit the observation.
        """
        if self.retrieval is None:
            raise ConfigError("network.retrieval is None: there is no retrieved context without it")
        return self.retrieval.layout(self.observation_fields, self.action_dim)

    @property
    def spacing(self) -> Spacing | None:
        """Where the steps of a trajectory prompt lie; ``None``: evenly in time."""
        if not (self.retrieves and self.trajectory_spacing):
            return None
        return Spacing(self.trajectory_spacing, self.observation_fields)

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
