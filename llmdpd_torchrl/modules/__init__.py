"""Networks: diffusion actor, critics, prompt encoder, and the policy that is saved of them."""

from __future__ import annotations

from llmdpd_torchrl.modules.activations import ACTIVATIONS, Mish, make_activation, mish
from llmdpd_torchrl.modules.actors.decision_transformer import (
    DecisionTransformerActor,
    PromptDecisionTransformer,
)
from llmdpd_torchrl.modules.actors.diffusion import DiffusionActor
from llmdpd_torchrl.modules.actors.direct import DeterministicActor, DirectNetwork, GaussianActor
from llmdpd_torchrl.modules.actors.plan_diffusion import (
    PlanConditioner,
    PlanDenoiser,
    PlanDiffusionActor,
)
from llmdpd_torchrl.modules.build import NetworkConfig, Networks, make_networks
from llmdpd_torchrl.modules.conditioning import ObservationConditioner, ObservationFeatures
from llmdpd_torchrl.modules.critics import QValueNetwork, make_qvalue_networks
from llmdpd_torchrl.modules.denoiser import MLPDenoiser, SinusoidalTimeEmbedding, make_mlp
from llmdpd_torchrl.modules.diffusion import PREDICTIONS, DiffusionModule
from llmdpd_torchrl.modules.prompt_encoder import (
    PromptEncoder,
    PromptNetwork,
    TextHead,
    TrajectoryEncoder,
)
from llmdpd_torchrl.modules.residual import ResidualDenoiser
from llmdpd_torchrl.modules.samplers import SAMPLERS, ReverseStep, Sampler
from llmdpd_torchrl.modules.schedules import NOISE_SCHEDULES, NoiseSchedule
from llmdpd_torchrl.modules.selection import SELECTIONS, QSelectedActor
from llmdpd_torchrl.modules.sequence import SEQUENCE_ACTORS, SequenceConfig, make_sequence_actor

__all__ = [
    "ACTIVATIONS",
    "NOISE_SCHEDULES",
    "PREDICTIONS",
    "SAMPLERS",
    "SELECTIONS",
    "SEQUENCE_ACTORS",
    "DecisionTransformerActor",
    "DeterministicActor",
    "DiffusionActor",
    "DiffusionModule",
    "DirectNetwork",
    "GaussianActor",
    "MLPDenoiser",
    "Mish",
    "NetworkConfig",
    "Networks",
    "NoiseSchedule",
    "ObservationConditioner",
    "ObservationFeatures",
    "PlanConditioner",
    "PlanDenoiser",
    "PlanDiffusionActor",
    "PromptDecisionTransformer",
    "PromptEncoder",
    "PromptNetwork",
    "QSelectedActor",
    "QValueNetwork",
    "ResidualDenoiser",
    "ReverseStep",
    "Sampler",
    "SequenceConfig",
    "SinusoidalTimeEmbedding",
    "TextHead",
    "TrajectoryEncoder",
    "make_activation",
    "make_mlp",
    "make_networks",
    "make_qvalue_networks",
    "make_sequence_actor",
    "mish",
]
