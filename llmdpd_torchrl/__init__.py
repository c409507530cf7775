"""LLM-Driven Policy Diffusion on TorchRL.

The names below are what most programs need; the packages hold the rest. Each is imported when it is
first used, so that ``import llmdpd_torchrl`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmdpd_torchrl.data import TrajectoryDataset, load_episodes
    from llmdpd_torchrl.evaluation import Evaluator
    from llmdpd_torchrl.modules import DiffusionActor
    from llmdpd_torchrl.objectives import DiffusionQLLoss, LLMDPDLoss
    from llmdpd_torchrl.policies import LLMDPDPolicy
    from llmdpd_torchrl.trainers import OfflineTrainer

__version__ = "0.1.0"

_PACKAGES = {
    "DiffusionActor": "modules",
    "DiffusionQLLoss": "objectives",
    "Evaluator": "evaluation",
    "LLMDPDLoss": "objectives",
    "LLMDPDPolicy": "policies",
    "OfflineTrainer": "trainers",
    "TrajectoryDataset": "data",
    "load_episodes": "data",
}

__all__ = [
    "DiffusionActor",
    "DiffusionQLLoss",
    "Evaluator",
    "LLMDPDLoss",
    "LLMDPDPolicy",
    "OfflineTrainer",
    "TrajectoryDataset",
    "load_episodes",
]


def __getattr__(name: str) -> Any:
    if name not in _PACKAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PACKAGES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
