"""Losses: LLM-driven policy diffusion, Diffusion-QL, and those of policies that read sequences."""

from __future__ import annotations

from llmdpd_torchrl.objectives.llmdpd import GUIDANCE_MODES, DiffusionQLLoss, LLMDPDLoss
from llmdpd_torchrl.objectives.sequence import SequenceLoss

__all__ = ["GUIDANCE_MODES", "DiffusionQLLoss", "LLMDPDLoss", "SequenceLoss"]
