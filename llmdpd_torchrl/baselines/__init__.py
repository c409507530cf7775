"""Policies that ours is compared with, on the same trainer, data and evaluator."""

from __future__ import annotations

from llmdpd_torchrl.baselines.bc import BehaviourCloning
from llmdpd_torchrl.baselines.cql import CQL
from llmdpd_torchrl.baselines.iql import IQL
from llmdpd_torchrl.baselines.mtdiff import MTDiff
from llmdpd_torchrl.baselines.prompt_dt import PromptDT
from llmdpd_torchrl.baselines.registry import ALGORITHMS, Algorithm, get_algorithm
from llmdpd_torchrl.baselines.retrieve_and_play import RetrieveAndPlay, retrieve_and_play_policy
from llmdpd_torchrl.baselines.td3_bc import TD3BC

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
    "retrieve_and_play_policy",
]
