"""Offline training on TorchRL's Trainer: replay source, optimisation, targets, loggers."""

from llmdpd_torchrl.trainers.logging import make_logger
from llmdpd_torchrl.trainers.offline import OfflineOptimizationStepper, OfflineTrainer, ReplaySource
from llmdpd_torchrl.trainers.target_updater import TargetUpdater, UpdateSchedule

__all__ = [
    "OfflineOptimizationStepper",
    "OfflineTrainer",
    "ReplaySource",
    "TargetUpdater",
    "UpdateSchedule",
    "make_logger",
]
