"""Evaluation: episodes on fixed goals, success rates with intervals, tables, plots, videos."""

from llmdpd_torchrl.evaluation.rollout import EvaluationSettings, evaluate
from llmdpd_torchrl.evaluation.statistics import EpisodeResult, ResultsSummary, summarise

__all__ = ["EpisodeResult", "EvaluationSettings", "ResultsSummary", "evaluate", "summarise"]
