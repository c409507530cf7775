"""Evaluation: episodes on fixed goals, success rates with intervals, tables, plots, videos."""

from llmdpd_torchrl.evaluation.evaluator import Evaluator, evaluate
from llmdpd_torchrl.evaluation.rollout import EvaluationSettings
from llmdpd_torchrl.evaluation.statistics import EpisodeResult, ResultsSummary, summarise
from llmdpd_torchrl.evaluation.suites import GymMujocoSuite, GymnasiumSuite, MetaWorldSuite, Suite

__all__ = [
    "EpisodeResult",
    "EvaluationSettings",
    "Evaluator",
    "GymMujocoSuite",
    "GymnasiumSuite",
    "MetaWorldSuite",
    "ResultsSummary",
    "Suite",
    "evaluate",
    "summarise",
]
