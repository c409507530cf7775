"""A frozen language model of the Hugging Face format that turns prompts into vectors.

By default a prompt's embedding is the mean over its tokens of one middle layer's hidden state,
without the first token. The first token is an attention sink: its norm is some hundred times the
others', and a mean that includes it tells the prompt's length and little else. What is returned is
raw; centring and scaling by the training prompts' statistics belong to the trainable head.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from llmdpd_torchrl.prompts.hub import explain_loading_error, quiet_transformers, resolve_commit
from llmdpd_torchrl.prompts.weights import check_memory, folder_sha256
from llmdpd_torchrl.utils.errors import PromptError, first_line

__all__ = [
    "POOLINGS",
    "QUANTIZATIONS",
    "HuggingFaceEncoder",
    "LanguageModelEncoder",
    "check_texts",
    "pool",
]

POOLINGS = ("mean", "last_token")
"""How the hidden states of a prompt's tokens become one vector."""

QUANTIZATIONS = ("8bit", "4bit")
"""How the weights can be compressed, by the package bitsandbytes."""

_SCHEMA = 1  # raise it when the same identity would give other vectors
_MIDDLE = "middle"
_LAST = "last"
_DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
_MAX_LENGTH = 512
_BATCH_SIZE = 8


def pool(hidden: Tensor, mask: Tensor, how: str = "mean", *, skip_first: bool = True) -> Tensor:
    """Make one vector of the hidden states of each text's tokens.

    Args:
        hidden: hidden states, ``[n, L, D]``, padded on the right.
        mask: true where a token is, ``[n, L]`` bool.
        how: one of :data:`POOLINGS`.
        skip_first: leave the first token out of the mean.

    Returns:
        ``[n, D]`` float32.

    Examples:
        >>> hidden = torch.tensor([[[9.0], [1.0], [3.0], [7.0]]])
        >>> mask = torch.tensor([[True, True, True, False]])
        >>> pool(hidden, mask), pool(hidden, mask, "last_token")
        (tensor([[2.]]), tensor([[3.]]))
    """
    if how == "last_token":
        return hidden[torch.arange(len(hidden)), mask.sum(1) - 1].float()
    start = int(skip_first)
    weight = mask[:, start:, None].float()
    return (hidden[:, start:].float() * weight).sum(1) / weight.sum(1)


class LanguageModelEncoder:
    """Loads, runs and pools a transformers model; subclasses say which one it is.

    Only the layers up to ``layer`` are loaded, and only while :meth:`encode` runs. For the
    arguments see :class:`HuggingFaceEncoder`.

    Examples:
        >>> issubclass(HuggingFaceEncoder, LanguageModelEncoder)
        True
    """

    def __init__(
        self,
        name: str,
        *,
        layer: int | str = _MIDDLE,
        layers: int = 1,
        pooling: str = "mean",
        skip_first: bool = True,
        max_length: int = _MAX_LENGTH,
        device: torch.device | str = "cpu",
        device_map: str | Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
        quantization: str | None = None,
        batch_size: int = _BATCH_SIZE,
    ) -> None:
        if layer not in (_MIDDLE, _LAST) and not (isinstance(layer, int) and layer >= 1):
            raise PromptError(
                f"layer must be a number from 1 on, {_MIDDLE!r} or {_LAST!r}, got {layer!r}"
            )
        for option, value in (
            ("layers", layers), ("max_length", max_length), ("batch_size", batch_size)
        ):  # fmt: skip
            if not isinstance(value, int) or value < 1:
                raise PromptError(f"{option} is {value!r}: it must be a whole number from 1 on")
        if not isinstance(skip_first, bool):
            raise PromptError(f"skip_first is {skip_first!r}: use true or false")
        if isinstance(layer, int) and layers > layer:
            raise PromptError(f"there are no {layers} layers up to layer {layer}: read fewer")
        if pooling not in POOLINGS:
            raise PromptError(f"unknown pooling {pooling!r}: use one of {', '.join(POOLINGS)}")
        if quantization is not None and quantization not in QUANTIZATIONS:
            raise PromptError(
                f"unknown quantization {quantization!r}: use one of {', '.join(QUANTIZATIONS)}, or "
                "none"
            )
        self.name = name
        self.layer = layer
        self.layers = layers
        self.pooling = pooling
        self.skip_first = skip_first
        self.max_length = max_length
        self.device = _device(device)
        self.device_map = device_map
        self.dtype = dtype
        self.quantization = quantization
        self.batch_size = batch_size

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Model, weights, layer, pooling, precision and length limit."""
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
        # Named where they are used only: embeddings that were stored before keep their names.
        if self.layers > 1:
            identity["layers"] = self.layers
        if self.quantization is not None:
            identity["quantization"] = self.quantization
        return identity

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
        device = model.get_input_embeddings().weight.device
        tokens = [torch.tensor(row) for row in ids]
        padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True).to(device)
        lengths = torch.tensor([len(row) for row in ids], device=device)
        mask = torch.arange(padded.shape[1], device=device) < lengths[:, None]
        states = model(input_ids=padded, attention_mask=mask.long(), output_hidden_states=True)
        # With a device map, layers may lie on several devices.
        read = [s.to(device) for s in states.hidden_states[layer - self.layers + 1 : layer + 1]]
        hidden = read[0] if len(read) == 1 else torch.stack([s.float() for s in read]).mean(0)
        return pool(hidden, mask, self.pooling, skip_first=self.skip_first)

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
            from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer
        except ImportError as error:
            raise PromptError(
                f"embedding a new prompt with {self.name} needs the package transformers "
                f'({error}): pip install "llmdpd_torchrl[llm]"'
            ) from error
        self._check_packages()
        source, options = self._source()
        with explain_loading_error(self.name), quiet_transformers():
            config = AutoConfig.from_pretrained(source, **options)
            layer = self._cut(config)
            # Of a model that also decodes, only the encoder reads the prompt.
            kind = AutoModelForTextEncoding if config.is_encoder_decoder else AutoModel
            spread = self.device_map is not None or self.quantization is not None
            if not spread:
                check_memory(self.name, kind, config, self.dtype, self.device)
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            model = kind.from_pretrained(
                source, config=config, dtype=self.dtype, **options, **self._placement()
            )
        return tokenizer, (model if spread else model.to(self.device)).eval(), layer

    def _placement(self) -> dict[str, Any]:
        """What ``from_pretrained`` is told of devices and compression."""
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

    def _check_packages(self) -> None:
        for option, packages in (
            ("device_map", ("accelerate",)),
            ("quantization", ("accelerate", "bitsandbytes")),
        ):
            missing = [name for name in packages if importlib.util.find_spec(name) is None]
            if getattr(self, option) is not None and missing:
                raise PromptError(
                    f"{option} of {self.name} needs {' and '.join(missing)}: "
                    'pip install "llmdpd_torchrl[quant]", or leave it out'
                )

    def _cut(self, config: Any) -> int:
        """Let ``config`` describe no more layers than are needed; return the layer to read."""
        count = config.num_hidden_layers
        named = {_MIDDLE: count // 2, _LAST: count}
        layer = named[self.layer] if isinstance(self.layer, str) else self.layer
        if not 1 <= layer <= count:
            raise PromptError(f"layer {layer} is out of range: {self.name} has {count} layers")
        if self.layers > layer:
            raise PromptError(f"there are no {self.layers} layers up to layer {layer}: read fewer")
        # The last state that a model returns has passed its final norm, so one layer more is kept:
        # its input is the state that we want.
        kept = min(layer + 1, count)
        config.num_hidden_layers = kept
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:kept]
        return layer


class HuggingFaceEncoder(LanguageModelEncoder):
    """A language model in the Hugging Face format: a local folder, or a model of the Hub.

    Only the layers up to ``layer`` are loaded, and only while :meth:`encode` runs. The model needs
    no padding token. A Hub model is pinned to one commit: the one given, else the one in the local
    Hub cache, else the newest one; ``HF_HUB_OFFLINE=1`` is honoured.

    Args:
        model: a folder, or a Hub id ``"owner/name"``.

    Keyword Args:
        revision (str): branch, tag or commit of a Hub model. Default: ``"main"``.
        layer (int, "middle" or "last"): after how many layers the hidden state is read, from 1.
            Default: ``"middle"``, half of them. After the last it has passed the final norm.
        layers (int): the states of so many layers, ending with ``layer``, are averaged. Default: 1.
            The last layer's has passed the final norm and may be of another scale than the rest.
        pooling (str): one of :data:`POOLINGS`. Default: ``"mean"``.
        skip_first (bool): leave the first token out of the mean. Default: true; false for models
            whose first token is no attention sink, BERT's kin.
        max_length (int): the most tokens a prompt may have; a longer one is an error, never cut.
        device (torch.device or str): where the model runs. Default: CUDA if there is one.
        device_map (str or mapping): spread the model over devices, ``"auto"`` say, as transformers
            does, whatever ``device`` says; needs accelerate.
        dtype (torch.dtype or str): of weights and activations. Default: bfloat16 on CUDA and
            float32 elsewhere; never float16, in which some models overflow.
        quantization (str): one of :data:`QUANTIZATIONS`; needs bitsandbytes. Default: none.
        batch_size (int): prompts per forward pass. It does not change the result.

    Raises:
        PromptError: if a local folder holds no model, or an option is none of those.

    Examples:
        >>> encoder = HuggingFaceEncoder("allenai/OLMo-1B-hf", device="cpu", pooling="last_token")
        >>> table = encoder.encode(["Open the door.", "Close the door."])  # doctest: +SKIP
        >>> table.shape  # doctest: +SKIP
        torch.Size([2, 2048])
    """

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str = "main",
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        **options: Any,
    ) -> None:
        device = _device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if isinstance(dtype, str):
            if dtype not in _DTYPES:
                raise PromptError(f"unknown dtype {dtype!r}: use one of {', '.join(_DTYPES)}")
            dtype = _DTYPES[dtype]
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise PromptError(f"unknown dtype {dtype!r}: use one of {', '.join(_DTYPES)}")
        default = torch.bfloat16 if device.type == "cuda" else torch.float32
        super().__init__(str(model), device=device, dtype=dtype or default, **options)
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
            return "local folder", folder_sha256(self.folder)
        return self.name, self._commit

    def _source(self) -> tuple[str, dict[str, Any]]:
        if self.folder is not None:
            return str(self.folder), {"local_files_only": True}
        return self.name, {"revision": self._commit}


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        first = first_line(error)
        raise PromptError(f"unknown device {device!r}: {first}") from None


def check_texts(texts: Sequence[str]) -> None:
    """Refuse an empty list and empty prompts, before anything is loaded."""
    if isinstance(texts, str):
        raise TypeError("texts must be a sequence of strings, not one string")
    if not texts:
        raise PromptError("there is no prompt to embed: the list of texts is empty")
    for i, text in enumerate(texts):
        if not text.strip():
            raise PromptError(f"prompt {i} is empty: describe the task in a few words")
