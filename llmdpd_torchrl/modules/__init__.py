"""Networks: diffusion actor, critics, prompt encoder, and how they are built from a config."""

from __future__ import annotations

from llmdpd_torchrl.modules.actors.decision_transformer import DecisionTransformerActor
from llmdpd_torchrl.modules.actors.diffusion import SELECTIONS, DiffusionActor, QSelectedActor
from llmdpd_torchrl.modules.actors.direct import DeterministicActor, GaussianActor
from llmdpd_torchrl.modules.actors.plan_diffusion import PlanDiffusionActor
from llmdpd_torchrl.modules.build import Networks, make_networks
from llmdpd_torchrl.modules.conditioning import (
    ObservationConditioner,
    ObservationFeatures,
    PromptEncoder,
    PromptNetwork,
    TextHead,
)
from llmdpd_torchrl.modules.config import SEQUENCE_ACTORS, NetworkConfig, SequenceConfig
from llmdpd_torchrl.modules.critics import QValueNetwork, make_qvalue_networks
from llmdpd_torchrl.modules.denoiser import ACTIVATIONS, MLPDenoiser, ResidualDenoiser
from llmdpd_torchrl.modules.diffusion import PREDICTIONS, DiffusionModule
from llmdpd_torchrl.modules.known_texts import KnownTexts
from llmdpd_torchrl.modules.retrieved_condition import GatedConditioner, SuggestionAttention
from llmdpd_torchrl.modules.samplers import NOISE_SCHEDULES, SAMPLERS, NoiseSchedule
from llmdpd_torchrl.modules.trajectory_encoder import TrajectoryEncoder

__all__ = [
    "ACTIVATIONS", "NOISE_SCHEDULES", "PREDICTIONS", "SAMPLERS", "SELECTIONS",
    "SEQUENCE_ACTORS", "DecisionTransformerActor", "DeterministicActor", "DiffusionActor",
    "DiffusionModule", "GatedConditioner", "GaussianActor", "KnownTexts", "MLPDenoiser",
    "NetworkConfig", "Networks", "NoiseSchedule", "ObservationConditioner", "ObservationFeatures",
    "PlanDiffusionActor", "PromptEncoder", "PromptNetwork", "QSelectedActor", "QValueNetwork",
    "ResidualDenoiser", "SequenceConfig", "SuggestionAttention", "TextHead", "TrajectoryEncoder",
    "make_networks", "make_qvalue_networks",
]  # fmt: skip
