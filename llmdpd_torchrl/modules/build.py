"""The networks of one policy, built from one configuration."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import Bounded

from llmdpd_torchrl.modules.actors.decision_transformer import (
    DecisionTransformerActor,
    PromptDecisionTransformer,
)
from llmdpd_torchrl.modules.actors.diffusion import DiffusionActor, QSelectedActor
from llmdpd_torchrl.modules.actors.direct import DeterministicActor, DirectNetwork, GaussianActor
from llmdpd_torchrl.modules.actors.one_step import OneStepActor
from llmdpd_torchrl.modules.actors.plan_diffusion import (
    PlanConditioner,
    PlanDenoiser,
    PlanDiffusionActor,
)
from llmdpd_torchrl.modules.conditioning import (
    ObservationConditioner,
    ObservationFeatures,
    PromptEncoder,
    TextHead,
)
from llmdpd_torchrl.modules.config import NetworkConfig
from llmdpd_torchrl.modules.critics import make_qvalue_networks
from llmdpd_torchrl.modules.denoiser import make_mlp
from llmdpd_torchrl.modules.diffusion import DiffusionModule
from llmdpd_torchrl.modules.known_texts import KnownTexts
from llmdpd_torchrl.modules.retrieved_condition import GatedConditioner, SuggestionAttention
from llmdpd_torchrl.modules.trajectory_encoder import TrajectoryEncoder
from llmdpd_torchrl.utils.errors import ConfigError, first_line
from llmdpd_torchrl.utils.parts import load_part

Actor: TypeAlias = (
    DiffusionActor | DeterministicActor | GaussianActor | DecisionTransformerActor
    | PlanDiffusionActor
)  # fmt: skip


@dataclass
class Networks:
    """What :func:`make_networks` builds.

    Attributes:
        encoder: the trainable prompt encoder; ``None`` if there is nothing to encode: without
            prompts, and with a trajectory alone that is retrieved or read as a sequence.
        actor: the policy.
        qvalues: the critics; none where the actor reads sequences.
        acting: what acts: the actor, its samples as ranked by the critics, or the network that is
            distilled from it.

    Examples:
        >>> networks = make_networks(NetworkConfig(prompt="none", hidden=[8]))
        >>> networks.encoder is None, len(networks.qvalues)
        (True, 2)
    """

    encoder: PromptEncoder | None
    actor: Actor
    qvalues: list[TensorDictModule]
    acting: Actor | QSelectedActor | OneStepActor


def make_networks(
    config: NetworkConfig,
    *,
    observations: Tensor | None = None,
    text_embeddings: Tensor | None = None,
    value_bounds: tuple[float, float] = (0.0, 1.0),
) -> Networks:
    """Build prompt encoder, actor and critics, in float32.

    Args:
        config: their structure.
        observations: ``[N, O]`` of the *training* tasks; sets the normalisation. ``None`` leaves it
            to a state_dict that is loaded afterwards.
        text_embeddings: ``[T, D]`` of the *training* tasks, or ``[G, T, D]`` in the styles of
            :class:`~llmdpd_torchrl.modules.KnownTexts`; sets the centring. ``None`` leaves it to a
            state_dict.
        value_bounds: between which the bins of categorical critics lie, see
            :func:`~llmdpd_torchrl.objectives.return_bounds`; saved with them.

    Raises:
        ConfigError: if a field of the observation is unknown, or data and config disagree on a
            width.

    Examples:
        >>> networks = make_networks(NetworkConfig(prompt="text", hidden=[32]))
        >>> networks.encoder.embedding_dim, networks.actor.in_keys
        (32, ['observation', 'prompt_embedding'])
    """
    features = _make_features(config, observations)
    encoder, qvalues = None, []
    if config.reads_sequences:
        actor: Actor = _make_sequence_actor(config, features)
        acting: Actor | QSelectedActor | OneStepActor = actor
    else:
        encoder = _make_encoder(config, features, text_embeddings)
        embedding_dim = 0 if encoder is None else encoder.embedding_dim
        condition = _make_condition(config, features, embedding_dim)
        actor = _make_actor(config, condition)
        number = config.critic_bins
        bins = None if number is None else torch.linspace(*value_bounds, number)
        qvalues = _make_critics(config, condition, features, embedding_dim, bins)
        acting = _make_acting(config, condition, actor, qvalues)
    for module in (encoder, actor, acting, *qvalues):
        if module is not None:
            module.float()  # whatever torch's default number type is
    return Networks(encoder, actor, qvalues, acting)


def _make_sequence_actor(
    config: NetworkConfig, features: ObservationFeatures
) -> DecisionTransformerActor | PlanDiffusionActor:
    sequence = config.sequence
    sizes = {"width": sequence.width, "layers": sequence.layers, "heads": sequence.heads}
    if config.actor == "decision_transformer":
        network = PromptDecisionTransformer(
            features,
            config.action_dim,
            config.trajectory_length,
            sequence.history,
            dropout=sequence.dropout,
            return_scale=sequence.return_scale,
            **sizes,
        )
        return DecisionTransformerActor(network)
    denoiser = PlanDenoiser(
        features.out_features,
        config.action_dim,
        config.trajectory_length,
        sequence.history,
        sequence.horizon,
        guidance=sequence.guidance,
        **sizes,
    )
    plans = DiffusionModule(
        denoiser,
        sequence.horizon * config.action_dim,
        conditioner=PlanConditioner(features, sequence.return_scale),
        num_steps=config.diffusion_steps,
        schedule=config.schedule,
        prediction=config.prediction,
        sampler=sequence.sampler,
        sampling_steps=sequence.sampling_steps,
    )
    return PlanDiffusionActor(plans, config.action_dim)


class _Condition(NamedTuple):
    """What an actor acts on: what ``conditioner`` makes of the entries of ``keys``."""

    conditioner: ObservationConditioner
    keys: list[NestedKey]
    width: int
    base: slice | None = None  # columns that hold the suggested action


def _make_features(config: NetworkConfig, observations: Tensor | None) -> ObservationFeatures:
    features = ObservationFeatures(
        config.observation_fields,
        config.observation_keep,
        config.observation_differences,
        scales=config.observation_scales,
    )
    if observations is None:
        return features
    if observations.shape[-1] != config.observation_dim:
        raise ConfigError(
            f"the data's observations have {observations.shape[-1]} entries, the network's "
            f"observation_fields {config.observation_dim}: use the dataset's layout"
        )
    return features.fit(observations)


def _make_encoder(
    config: NetworkConfig, features: ObservationFeatures, text_embeddings: Tensor | None
) -> PromptEncoder | None:
    text = trajectory = None
    if config.uses_text:
        if text_embeddings is None:
            tasks = max(1, len(config.trained_task_ids))
            text_embeddings = torch.zeros(config.text_styles, tasks, config.text_dim)
        if text_embeddings.ndim == 2:
            text_embeddings = text_embeddings.unsqueeze(0)
        if text_embeddings.shape[-1] != config.text_dim:
            raise ConfigError(
                f"the text embeddings are {text_embeddings.shape[-1]} wide, network.text_dim is "
                f"{config.text_dim}: set it to the encoder's width"
            )
        known = KnownTexts(text_embeddings) if config.text_mixture else None
        text = TextHead(text_embeddings[0], config.text_features, config.activation, known)
    if config.uses_trajectory and not config.retrieves:
        trajectory = TrajectoryEncoder(
            copy.deepcopy(features),
            config.action_dim,
            config.trajectory_length,
            features=config.trajectory_features,
            width=config.trajectory_width,
            layers=config.trajectory_layers,
            heads=config.trajectory_heads,
            activation=config.activation,
        )
    return None if text is None and trajectory is None else PromptEncoder(text, trajectory)


def _make_condition(
    config: NetworkConfig, features: ObservationFeatures, embedding_dim: int
) -> _Condition:
    features = copy.deepcopy(features)
    width = features.out_features + embedding_dim
    embedding: list[NestedKey] = ["prompt_embedding"] if embedding_dim else []
    if not config.retrieves:
        return _Condition(ObservationConditioner(features), ["observation", *embedding], width)
    layout = config.context_layout
    keys = ["observation", ("prompt", "observation_gate"), "retrieved_context", *embedding]
    width += 1 + layout.width
    if config.max_residual is None or config.actor != "diffusion":
        return _Condition(GatedConditioner(features), keys, width)
    attention = SuggestionAttention(layout, config.hidden[:-1], activation=config.activation)
    conditioner = GatedConditioner(features, attention, config.max_residual)
    base = slice(width, width + config.action_dim)
    return _Condition(conditioner, keys, width + 2 * config.action_dim, base)


def _make_actor(config: NetworkConfig, condition: _Condition) -> Actor:
    spec = Bounded(-1.0, 1.0, (config.action_dim,), dtype=torch.float32)
    if config.actor == "diffusion":
        network = None
        if config.denoiser is not None:
            network = _own_denoiser(config, condition.width)
        return DiffusionActor(
            config.action_dim,
            condition.width,
            score_network=network,
            conditioner=condition.conditioner,
            hidden=config.hidden,
            activation=config.activation,
            base=condition.base,
            num_steps=config.diffusion_steps,
            schedule=config.schedule,
            prediction=config.prediction,
            in_keys=condition.keys,
            spec=spec,
        )
    squashed = config.actor == "tanh_gaussian"
    direct = DirectNetwork(
        condition.conditioner,
        condition.width,
        2 * config.action_dim if squashed else config.action_dim,
        config.hidden,
        config.activation,
    )
    if config.actor == "deterministic":
        return DeterministicActor(direct, condition.keys, spec=spec)
    return GaussianActor(direct, condition.keys, config.action_dim, squashed=squashed, spec=spec)


def _own_denoiser(config: NetworkConfig, width: int) -> nn.Module:
    """The denoiser of somebody's own, after a try whether it is one."""
    made = load_part("denoiser", str(config.denoiser))
    size, options = config.action_dim, config.denoiser_options
    try:
        network = made(size, width, **options)
        found = network(torch.zeros(2, size + width + 1))
    except Exception as error:  # of anybody's module
        raise ConfigError(
            f"network.denoiser {config.denoiser}: made with ({size}, {width}, {options}) and "
            f"called with [2, {size + width + 1}]: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(network, nn.Module) or found.shape != (2, size):
        raise ConfigError(
            f"network.denoiser {config.denoiser} returned {[*found.shape]} for 2 rows: it must be "
            f"a torch module that returns an action each, [2, {size}]"
        )
    return network


def _make_acting(
    config: NetworkConfig, condition: _Condition, actor: Actor, qvalues: list[TensorDictModule]
) -> Actor | QSelectedActor | OneStepActor:
    if config.candidates > 1:
        assert isinstance(actor, DiffusionActor)
        count = config.candidates
        return QSelectedActor(actor, qvalues, selection="argmax", num_candidates=count)
    if config.one_step:
        size, width = config.action_dim, condition.width
        network = make_mlp(width + size, config.hidden, size, config.activation)
        return OneStepActor(network, condition.conditioner, condition.keys, spec=actor.spec)
    return actor


def _make_critics(
    config: NetworkConfig,
    condition: _Condition,
    features: ObservationFeatures,
    embedding_dim: int,
    bins: Tensor | None,
) -> list[TensorDictModule]:
    common: dict[str, Any] = {
        "num": config.critics,
        "hidden": config.hidden if config.critic_hidden is None else config.critic_hidden,
        "activation": config.activation,
        "layer_norm": config.critic_layer_norm,
        "bins": bins,
    }
    if not config.retrieves:
        return make_qvalue_networks(
            features.out_features,
            config.action_dim,
            embedding_dim,
            observation_module=features,
            **common,
        )
    # The critics of an actor that retrieves read what it does: with a gate that is closed for the
    # one and open for the other they would judge by what the actor cannot know.
    critics_condition = GatedConditioner(condition.conditioner.observation_module)
    width = condition.width if condition.base is None else condition.base.start
    return make_qvalue_networks(
        width,
        config.action_dim,
        conditioner=critics_condition,
        condition_keys=condition.keys[1:],
        **common,
    )
