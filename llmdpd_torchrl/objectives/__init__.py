"""Losses: LLM-driven policy diffusion and, as its prompt-free case, Diffusion-QL."""

from __future__ import annotations

from llmdpd_torchrl.objectives.alignment import alignment_loss
from llmdpd_torchrl.objectives.base import PromptedActorCriticLoss
from llmdpd_torchrl.objectives.diffusion_ql import DiffusionQLLoss
from llmdpd_torchrl.objectives.llmdpd import (
    GUIDANCE_MODES,
    PROMPT_GRADIENTS,
    Q_NORMALIZATIONS,
    LLMDPDLoss,
)
from llmdpd_torchrl.objectives.process import DiffusionProcess, diffusion_process
from llmdpd_torchrl.objectives.sequence import SequenceLoss

__all__ = [
    "GUIDANCE_MODES",
    "PROMPT_GRADIENTS",
    "Q_NORMALIZATIONS",
    "DiffusionProcess",
    "DiffusionQLLoss",
    "LLMDPDLoss",
    "PromptedActorCriticLoss",
    "SequenceLoss",
    "alignment_loss",
    "diffusion_process",
]
