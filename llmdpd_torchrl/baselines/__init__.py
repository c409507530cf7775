"""Policies that ours is compared with, on the same trainer, data and evaluator."""

from __future__ import annotations

from llmdpd_torchrl.baselines.registry import ALGORITHMS, Algorithm, get_algorithm
from llmdpd_torchrl.baselines.retrieve_and_play import (
    RetrieveAndPlay,
    retrieve_and_play_plus_policy,
    retrieve_and_play_policy,
)
from llmdpd_torchrl.baselines.sequence_models import MTDiff, PromptDT
from llmdpd_torchrl.baselines.torchrl_losses import CQL, IQL, TD3BC, BehaviourCloning

__all__ = [
    "ALGORITHMS",
    "CQL",
    "IQL",
    "TD3BC",
    "Algorithm",
    "BehaviourCloning",
    "MTDiff",
    "PromptDT",
    "RetrieveAndPlay",
    "get_algorithm",
    "retrieve_and_play_plus_policy",
    "retrieve_and_play_policy",
]
