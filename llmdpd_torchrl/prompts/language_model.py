"""A frozen language model in the Hugging Face format that turns prompts into vectors.

By default a prompt's embedding is the mean over its tokens of one middle layer's hidden state,
without the first token. The first token is an attention sink: its norm is some hundred times the
others', and a mean that includes it encodes little but the prompt's length. The embeddings are raw;
the trainable head centres and scales them by the training prompts' statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import PlainValidator
from pydantic_core import PydanticCustomError
from torch import Tensor
from tqdm import tqdm

from llmdpd_torchrl.utils.errors import PromptError, explain_hub_errors, import_optional
from llmdpd_torchrl.utils.memory import available_memory
from llmdpd_torchrl.utils.settings import Flag, Size, checked_dataclass

Pooling = Literal["mean", "last_token"]
Quantization = Literal["8bit", "4bit"]
POOLINGS = get_args(Pooling)
"""How the hidden states of a prompt's tokens become one vector."""
QUANTIZATIONS = get_args(Quantization)
"""How the weights can be compressed, by the package bitsandbytes."""

HUB_REMEDY = "use the embedded model 'smollm2', a complete local folder, or a cached prompt"

_SCHEMA = 1  # to be increased when the same identity gives other vectors
_CPU = torch.device("cpu")
_DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


def _layer(value: Any) -> int | str:
    if value not in ("middle", "last") and not (type(value) is int and value >= 1):
        raise PydanticCustomError("layer", "it must be a number of at least 1, 'middle' or 'last'")
    return value


def _device(value: Any) -> torch.device:
    try:
        return torch.device(value)
    except (RuntimeError, TypeError):
        raise PydanticCustomError("device", "it must be one of torch's, such as cuda:0") from None


def _dtype(value: Any) -> torch.dtype:
    if isinstance(value, torch.dtype):
        return value
    if str(value) not in _DTYPES:
        raise PydanticCustomError("dtype", "it must be float32, bfloat16 or float16")
    return _DTYPES[str(value)]


def pool(hidden: Tensor, mask: Tensor, how: str = "mean", *, skip_first: bool = True) -> Tensor:
    """Make one vector ``[n, D]`` of the hidden states ``[n, L, D]`` of each text's tokens.

    ``mask`` [n, L] is true where a token is; texts are padded on the right. ``how`` is one of
    :data:`POOLINGS`; with ``skip_first`` the first token is left out of the mean.
    """
    if how == "last_token":
        return hidden[torch.arange(len(hidden)), mask.sum(1) - 1].float()
    start = int(skip_first)
    weight = mask[:, start:, None].float()
    return (hidden[:, start:].float() * weight).sum(1) / weight.sum(1)


@checked_dataclass("text_encoder", eq=False)
class LanguageModelEncoder:
    """Base class that loads, runs and pools a transformers model; subclasses define which one.

    Only the layers up to ``layer`` are loaded, and only while :meth:`encode` runs. For the
    arguments see :class:`~llmdpd_torchrl.prompts.HuggingFaceEncoder`.
    """

    name: str
    layer: Annotated[int | str, PlainValidator(_layer)] = "middle"
    layers: Size = 1
    pooling: Pooling = "mean"
    skip_first: Flag = True
    max_length: Size = 512
    device: Annotated[torch.device, PlainValidator(_device)] = _CPU
    device_map: Any = None
    dtype: Annotated[torch.dtype, PlainValidator(_dtype)] = torch.float32
    quantization: Quantization | None = None
    batch_size: Size = 8

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the vectors, as JSON values."""
        model, revision = self._pinned()
        identity = {
            "model": model,
            "revision": revision,
            "pooling": self.pooling,
            "layer": self.layer,
            "skip_first": self.skip_first,
            "max_length": self.max_length,
            "dtype": str(self.dtype).removeprefix("torch."),
            "schema": _SCHEMA,
        }
        # Only where they are used, so that embeddings stored before these options stay valid.
        if self.layers > 1:
            identity["layers"] = self.layers
        if self.quantization is not None:
            identity["quantization"] = self.quantization
        return identity

    def _pinned(self) -> tuple[str, str]:
        """Return the model's public name and the version or hash of its weights."""
        raise NotImplementedError

    def _source(self) -> tuple[str, dict[str, Any]]:
        """Return the model and the options for ``from_pretrained``."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, texts: Sequence[str], *, progress: bool = True) -> Tensor:
        """Return the raw pooled embeddings of ``texts``.

        Args:
            texts: the prompts.

        Keyword Args:
            progress (bool): display a progress bar on a terminal after two seconds.

        Returns:
            ``[n, D]`` float32 on the CPU, D being the model's width.

        Raises:
            PromptError: if a prompt is empty, of one token or too long, if the model cannot be
                loaded or does not fit in memory, or if an embedding is not finite.
        """
        check_texts(texts)
        tokenizer, model, layer = self._load()
        ids = [tokenizer(text)["input_ids"] for text in texts]
        self._check_lengths(texts, ids, model.config)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # for little padding
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        bar = tqdm(batches, "Embedding prompts", delay=2, disable=None if progress else True)
        pooled = [self._forward(model, layer, [ids[i] for i in batch]).cpu() for batch in bar]
        table = torch.cat(pooled)[torch.tensor(order).argsort()]
        bad = (~table.isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise PromptError(
                f"{self.name} gives a non-finite embedding for {texts[bad[0]][:40]!r} in "
                f"{self.dtype}: use float32 or bfloat16, or check the weights"
            )
        return table

    def _forward(self, model: Any, layer: int, ids: list[list[int]]) -> Tensor:
        """Run and pool one batch, padded here so that the model needs no padding token."""
        device = model.get_input_embeddings().weight.device
        tokens = [torch.tensor(row) for row in ids]
        padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True).to(device)
        lengths = torch.tensor([len(row) for row in ids], device=device)
        mask = torch.arange(padded.shape[1], device=device) < lengths[:, None]
        states = model(input_ids=padded, attention_mask=mask.long(), output_hidden_states=True)
        # With a device map, layers may be on several devices.
        read = [s.to(device) for s in states.hidden_states[layer - self.layers + 1 : layer + 1]]
        hidden = read[0] if len(read) == 1 else torch.stack([s.float() for s in read]).mean(0)
        return pool(hidden, mask, self.pooling, skip_first=self.skip_first)

    def _check_lengths(self, texts: Sequence[str], ids: list[list[int]], config: Any) -> None:
        positions = getattr(config, "max_position_embeddings", None)
        limit = min(self.max_length, positions or self.max_length)
        for text, row in zip(texts, ids, strict=True):
            if len(row) < 2:
                raise PromptError(
                    f"the prompt {text!r} is a single token, and the first one carries no meaning: "
                    "describe the task in a few words"
                )
            if len(row) > limit:
                remedy = "shorten it or raise max_length"
                if positions is not None and len(row) > positions:
                    remedy = f"shorten it, as {self.name} reads {positions} at most"
                raise PromptError(
                    f"the prompt {text[:40]!r}... has {len(row)} tokens and the limit is {limit}: "
                    f"{remedy}"
                )

    def _load(self) -> tuple[Any, Any, int]:
        """Return the tokenizer, the model without unused layers, and the number of ``layer``."""
        purpose = f"embedding a new prompt with {self.name}"
        transformers = import_optional("transformers", purpose, "llm", PromptError)
        needed = {"device_map": ["accelerate"], "quantization": ["accelerate", "bitsandbytes"]}
        for option, packages in needed.items():
            for package in packages if getattr(self, option) is not None else ():
                import_optional(package, f"{option} of {self.name}", "quant", PromptError)
        source, options = self._source()
        options["trust_remote_code"] = False  # never run a model's own code, never ask for it
        with explained_loading(self.name), quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(source, **options)
            kind, kinds = transformers.AutoModel, transformers.MODEL_MAPPING
            if config.is_encoder_decoder:  # only the encoder reads the prompt
                kind = transformers.AutoModelForTextEncoding
                kinds = transformers.MODEL_FOR_TEXT_ENCODING_MAPPING
            is_text_only = getattr(config, "text_config", None) is None
            if not is_text_only or type(config) not in kinds:
                raise PromptError(
                    f"{self.name} is of kind {config.model_type!r}, whose text encoder cannot be "
                    "read on its own: use a language model of text only"
                )
            layer = self._cut(config)
            spread = self.device_map is not None or self.quantization is not None
            if not spread:
                self._check_fits(kind, config)
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
            options |= {"config": config, "dtype": self.dtype, **self._placement()}
            model, report = kind.from_pretrained(source, output_loading_info=True, **options)
        # transformers initialises missing weights at random; a pooling head is not read.
        missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
        if missing:
            raise PromptError(
                f"the files of {self.name} lack {len(missing)} weights, the first is {missing[0]}: "
                "get complete files, saved without an adapter's or wrapper's prefix"
            )
        return tokenizer, (model if spread else model.to(self.device)).eval(), layer

    def _check_fits(self, kind: Any, config: Any) -> None:
        """Refuse a model whose weights need more than the free memory of the device."""
        if self.device.type == "cpu":
            free = available_memory()
        elif self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0]
        else:
            return
        with torch.device("meta"):
            skeleton = kind.from_config(config, dtype=self.dtype)
        needed = sum(p.numel() * p.element_size() for p in skeleton.parameters())
        if needed > free:
            raise PromptError(
                f"{self.name} needs {needed / 1e9:.1f} GB for its weights and {self.device} has "
                f"{free / 1e9:.1f} GB free: use a smaller model such as 'smollm2', or bfloat16"
            )

    def _placement(self) -> dict[str, Any]:
        """Options of ``from_pretrained`` for devices and compression."""
        placement: dict[str, Any] = {}
        if self.quantization is not None:
            from transformers import BitsAndBytesConfig

            is_4bit = self.quantization == "4bit"
            placement["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=is_4bit, load_in_8bit=not is_4bit, bnb_4bit_compute_dtype=self.dtype
            )
            placement["device_map"] = {"": str(self.device)}
        if self.device_map is not None:
            placement["device_map"] = self.device_map
        return placement

    def _cut(self, config: Any) -> int:
        """Remove unused layers from ``config`` and return the number of the layer to read."""
        count = config.num_hidden_layers
        named = {"middle": count // 2, "last": count}
        layer = named[self.layer] if isinstance(self.layer, str) else self.layer
        if not 1 <= layer <= count:
            raise PromptError(f"layer {layer} is out of range: {self.name} has {count} layers")
        if self.layers > layer:
            raise PromptError(f"there are no {self.layers} layers up to layer {layer}: read fewer")
        # The last state that a model returns has passed its final norm, so one more layer is
        # loaded: its input is the state to read.
        loaded = min(layer + 1, count)
        config.num_hidden_layers = loaded
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:loaded]
        return layer


def check_texts(texts: Sequence[str]) -> None:
    """Refuse an empty list and empty prompts."""
    if isinstance(texts, str):
        raise TypeError("texts must be a sequence of strings, not one string")
    if not texts:
        raise PromptError("there is no prompt to embed: the list of texts is empty")
    for i, text in enumerate(texts):
        if not text.strip():
            raise PromptError(f"prompt {i} is empty: describe the task in a few words")


def explained_loading(model: str) -> AbstractContextManager[None]:
    """Turn every failure to find, reach or read a model into one line."""
    what = f"cannot load the language model {model}"
    return explain_hub_errors(what, PromptError, remedy=HUB_REMEDY)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and its reports of unused weights and vocabularies."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
