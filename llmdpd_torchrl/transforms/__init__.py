"""Prompts as TorchRL transforms, for environments and replay buffers alike."""

from llmdpd_torchrl.transforms.augmentation import ContextAugmentation
from llmdpd_torchrl.transforms.base import AbsentPromptTransform, PromptEmbeddingTransform
from llmdpd_torchrl.transforms.history import HistoryTransform
from llmdpd_torchrl.transforms.retrieved_context import (
    ObservationGateTransform,
    PromptContextTransform,
)
from llmdpd_torchrl.transforms.text_prompt import TextPromptTransform
from llmdpd_torchrl.transforms.trajectory_prompt import TrajectoryPromptTransform

__all__ = [
    "AbsentPromptTransform",
    "ContextAugmentation",
    "HistoryTransform",
    "ObservationGateTransform",
    "PromptContextTransform",
    "PromptEmbeddingTransform",
    "TextPromptTransform",
    "TrajectoryPromptTransform",
]
