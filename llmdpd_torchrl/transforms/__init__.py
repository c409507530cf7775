"""Prompts as TorchRL transforms, for environments and replay buffers alike."""

from llmdpd_torchrl.transforms.history import HistoryTransform
from llmdpd_torchrl.transforms.in_turn import DemonstrationsInTurn
from llmdpd_torchrl.transforms.prompts import (
    AbsentPromptTransform,
    PromptEmbeddingTransform,
    TextPromptTransform,
    TrajectoryPromptTransform,
)
from llmdpd_torchrl.transforms.retrieved_context import (
    ContextAugmentation,
    ObservationGateTransform,
    RetrievedContextTransform,
)

__all__ = [
    "AbsentPromptTransform",
    "ContextAugmentation",
    "DemonstrationsInTurn",
    "HistoryTransform",
    "ObservationGateTransform",
    "PromptEmbeddingTransform",
    "RetrievedContextTransform",
    "TextPromptTransform",
    "TrajectoryPromptTransform",
]
