"""Losses: LLM-driven policy diffusion, its cloning alone, and Diffusion-QL."""

from __future__ import annotations

from llmdpd_torchrl.objectives.cloning import DiffusionCloning
from llmdpd_torchrl.objectives.critic_loss import CriticLoss, return_bounds
from llmdpd_torchrl.objectives.llmdpd import GUIDANCE_MODES, DiffusionQLLoss, LLMDPDLoss

__all__ = [
    "GUIDANCE_MODES", "CriticLoss", "DiffusionCloning", "DiffusionQLLoss", "LLMDPDLoss",
    "return_bounds",
]  # fmt: skip
