"""Losses: LLM-driven policy diffusion, its cloning alone, and Diffusion-QL."""

from __future__ import annotations

from llmdpd_torchrl.objectives.cloning import DiffusionCloning
from llmdpd_torchrl.objectives.llmdpd import GUIDANCE_MODES, DiffusionQLLoss, LLMDPDLoss

__all__ = ["GUIDANCE_MODES", "DiffusionCloning", "DiffusionQLLoss", "LLMDPDLoss"]
