"""Networks: noise schedules, denoiser, diffusion actor and critics."""

from __future__ import annotations

from llmdpd_torchrl.modules.activations import ACTIVATIONS, Mish, make_activation, mish
from llmdpd_torchrl.modules.critics import QValueNetwork, make_qvalue_networks
from llmdpd_torchrl.modules.denoiser import MLPDenoiser, SinusoidalTimeEmbedding, make_mlp
from llmdpd_torchrl.modules.diffusion import (
    PREDICTIONS,
    SAMPLERS,
    DiffusionActor,
    DiffusionModule,
)
from llmdpd_torchrl.modules.schedules import NOISE_SCHEDULES, NoiseSchedule

__all__ = [
    "ACTIVATIONS",
    "NOISE_SCHEDULES",
    "PREDICTIONS",
    "SAMPLERS",
    "DiffusionActor",
    "DiffusionModule",
    "MLPDenoiser",
    "Mish",
    "NoiseSchedule",
    "QValueNetwork",
    "SinusoidalTimeEmbedding",
    "make_activation",
    "make_mlp",
    "make_qvalue_networks",
    "mish",
]
