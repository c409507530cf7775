"""Prompts: texts that describe tasks, their embeddings, and demonstrations.

:func:`load_text_prompts` reads the descriptions, :func:`text_embedding_table` returns their
embeddings. Those of the built-in prompts come with the package and need neither a language model
nor a connection.
"""

from __future__ import annotations

from llmdpd_torchrl.prompts.demonstrations import (
    DEMONSTRATIONS,
    change_demonstration,
    vary_demonstration,
)
from llmdpd_torchrl.prompts.embedding_cache import (
    centred_similarity,
    embed_texts,
    nearest_tasks,
    text_embedding_table,
    wordings_table,
)
from llmdpd_torchrl.prompts.encoders import (
    ENCODERS,
    HuggingFaceEncoder,
    MiniLMEncoder,
    SmolLM2Encoder,
    TextEncoder,
    make_text_encoder,
)
from llmdpd_torchrl.prompts.frames import FrameSpec
from llmdpd_torchrl.prompts.language_model import POOLINGS, QUANTIZATIONS
from llmdpd_torchrl.prompts.retrieval import PromptRetrieval
from llmdpd_torchrl.prompts.retrieval_spec import METAWORLD_RETRIEVAL, RetrievalSpec
from llmdpd_torchrl.prompts.spacing import Spacing, cut_trajectory, space_evenly
from llmdpd_torchrl.prompts.tables import PromptTables, TrajectoryPromptBank
from llmdpd_torchrl.prompts.text import (
    PROMPT_SUITES,
    TextPrompt,
    load_text_prompts,
    task_velocity,
    velocity_prompt,
    velocity_task,
)

__all__ = [
    "DEMONSTRATIONS",
    "ENCODERS",
    "METAWORLD_RETRIEVAL",
    "POOLINGS",
    "PROMPT_SUITES",
    "QUANTIZATIONS",
    "FrameSpec",
    "HuggingFaceEncoder",
    "MiniLMEncoder",
    "PromptRetrieval",
    "PromptTables",
    "RetrievalSpec",
    "SmolLM2Encoder",
    "Spacing",
    "TextEncoder",
    "TextPrompt",
    "TrajectoryPromptBank",
    "centred_similarity",
    "change_demonstration",
    "cut_trajectory",
    "embed_texts",
    "load_text_prompts",
    "make_text_encoder",
    "nearest_tasks",
    "space_evenly",
    "task_velocity",
    "text_embedding_table",
    "vary_demonstration",
    "velocity_prompt",
    "velocity_task",
    "wordings_table",
]
