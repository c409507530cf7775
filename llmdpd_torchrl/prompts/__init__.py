"""Prompts: what a task is, told in words, and the language model's view of it.

:func:`load_text_prompts` reads the descriptions, :func:`text_embedding_table` gives their
embeddings. Those of the built-in prompts come with the package, so neither a language model nor a
connection is needed for them.
"""

from __future__ import annotations

from llmdpd_torchrl.prompts.embedding_cache import embed_texts, text_embedding_table
from llmdpd_torchrl.prompts.encoders import (
    ENCODERS,
    MiniLMEncoder,
    SmolLM2Encoder,
    TextEncoder,
    make_text_encoder,
)
from llmdpd_torchrl.prompts.language_model import POOLINGS, QUANTIZATIONS, HuggingFaceEncoder
from llmdpd_torchrl.prompts.similarity import centred_similarity, nearest_tasks
from llmdpd_torchrl.prompts.storage import cache_root
from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.prompts.text import PROMPT_SUITES, TextPrompt, load_text_prompts
from llmdpd_torchrl.prompts.velocity import velocity_prompt, velocity_task

__all__ = [
    "ENCODERS",
    "POOLINGS",
    "PROMPT_SUITES",
    "QUANTIZATIONS",
    "HuggingFaceEncoder",
    "MiniLMEncoder",
    "PromptTables",
    "SmolLM2Encoder",
    "TextEncoder",
    "TextPrompt",
    "cache_root",
    "centred_similarity",
    "embed_texts",
    "load_text_prompts",
    "make_text_encoder",
    "nearest_tasks",
    "text_embedding_table",
    "velocity_prompt",
    "velocity_task",
]
