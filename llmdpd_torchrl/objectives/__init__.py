"""Losses: LLM-driven policy diffusion and Diffusion-QL."""

from __future__ import annotations

from llmdpd_torchrl.objectives.llmdpd import GUIDANCE_MODES, DiffusionQLLoss, LLMDPDLoss

__all__ = ["GUIDANCE_MODES", "DiffusionQLLoss", "LLMDPDLoss"]
