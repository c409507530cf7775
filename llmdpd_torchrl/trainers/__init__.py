"""Offline training on TorchRL's Trainer: optimisation, targets, checkpoints and loggers."""

from llmdpd_torchrl.trainers.checkpointing import (
    Checkpointing,
    SavedTraining,
    find_checkpoint,
    resume,
)
from llmdpd_torchrl.trainers.loggers import check_logger, make_logger
from llmdpd_torchrl.trainers.offline import Interrupted, OfflineTrainer, handle_signals
from llmdpd_torchrl.trainers.optimization import (
    OfflineOptimizationStepper,
    TargetUpdater,
    UpdateSchedule,
)

__all__ = [
    "Checkpointing",
    "Interrupted",
    "OfflineOptimizationStepper",
    "OfflineTrainer",
    "SavedTraining",
    "TargetUpdater",
    "UpdateSchedule",
    "check_logger",
    "find_checkpoint",
    "handle_signals",
    "make_logger",
    "resume",
]
