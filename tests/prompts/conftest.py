"""A tiny language model on disk, and an encoder that counts its calls."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A randomly initialised Llama of four layers, with a word-level tokenizer and no padding."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    transformers.LlamaModel(config).save_pretrained(folder)
    words = ["[UNK]", "open", "close", "the", "door", "window", "robot", "arm"]
    words += ["slowly", "and", "then", "stop", "now"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


class CountingEncoder:
    """Embeds a text by its letters' codes, and remembers what it was asked for."""

    def __init__(self, name="counting"):
        self.identity = {"model": name, "schema": 1}
        self.asked = []

    def encode(self, texts, *, progress=True):
        self.asked.append(list(texts))
        return torch.tensor([[len(t), sum(map(ord, t)), ord(t[0])] for t in texts]).float()


@pytest.fixture
def counting():
    return CountingEncoder()
