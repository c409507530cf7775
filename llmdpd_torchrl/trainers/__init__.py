"""Offline training on TorchRL's Trainer: replay source, optimisation, targets, loggers, resume."""

from llmdpd_torchrl.trainers.checkpointing import Checkpointing, resume
from llmdpd_torchrl.trainers.interruption import Interrupted, handle_signals
from llmdpd_torchrl.trainers.loggers import make_logger
from llmdpd_torchrl.trainers.offline import OfflineOptimizationStepper, OfflineTrainer, ReplaySource
from llmdpd_torchrl.trainers.rotation import Rotation, SavedTraining, find_checkpoint
from llmdpd_torchrl.trainers.target_updater import TargetUpdater, UpdateSchedule

__all__ = [
    "Checkpointing",
    "Interrupted",
    "OfflineOptimizationStepper",
    "OfflineTrainer",
    "ReplaySource",
    "Rotation",
    "SavedTraining",
    "TargetUpdater",
    "UpdateSchedule",
    "find_checkpoint",
    "handle_signals",
    "make_logger",
    "resume",
]
