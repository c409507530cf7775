"""Embeddings of prompts and their similarity; each embedding is computed once.

They are looked up in the package data, then in the user's cache, then computed by the language
model. One file holds all embeddings of one encoder, ``<root>/<identity>/embeddings.safetensors``,
named by the SHA-256 of the encoder's identity and the exact text. It is replaced atomically under a
lock, so that readers need no lock and any number of processes may add to it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor
from torch.nn.functional import normalize

from llmdpd_torchrl.prompts.encoders import TextEncoder, make_text_encoder
from llmdpd_torchrl.prompts.language_model import check_texts
from llmdpd_torchrl.prompts.text import TextPrompt, load_text_prompts
from llmdpd_torchrl.utils.cache import cache_root, locked_folder
from llmdpd_torchrl.utils.errors import PromptError
from llmdpd_torchrl.utils.files import write_json, write_tensors

_FILE = "embeddings.safetensors"


def text_embedding_table(
    task_names: Sequence[str],
    encoder: str | Mapping[str, Any] | TextEncoder = "smollm2",
    prompts: Mapping[str, TextPrompt] | None = None,
    variant: int | None = None,
) -> Tensor:
    """Return the text embeddings of tasks, one row per name, to be indexed by ``task_id``.

    Args:
        task_names: the tasks, in the order of the rows.
        encoder: an encoder or its name. Default: SmolLM2, whose embeddings of the built-in prompts
            come with the package.
        prompts: the tasks' prompts. Default: the built-in ones.
        variant: embed this paraphrase (from 0) instead of the prompt.

    Returns:
        ``[T, D]`` float32, not centred.

    Raises:
        PromptError: if a task has no prompt, or its prompt cannot be embedded.

    Examples:
        >>> text_embedding_table(["door-open-v3", "door-close-v3"]).shape
        torch.Size([2, 576])
    """
    known = load_text_prompts() if prompts is None else prompts
    missing = [name for name in task_names if name not in known]
    if missing:
        raise PromptError(
            f"there is no text prompt for the task {missing[0]!r}: add it to a prompt file "
            f"(there are prompts for {len(known)} tasks, such as {next(iter(known), 'none')!r})"
        )
    return embed_texts([known[name].variant(variant) for name in task_names], encoder)


def wordings_table(
    task_names: Sequence[str],
    encoder: str | Mapping[str, Any] | TextEncoder = "smollm2",
    prompts: Mapping[str, TextPrompt] | None = None,
) -> Tensor | None:
    """The mean embedding of each task's short wordings, a row a task.

    Returns:
        ``[T, D]`` float32; ``None`` if a task has no wordings.

    Raises:
        PromptError: if a text cannot be embedded.

    Examples:
        >>> wordings_table(["door-open-v3", "door-close-v3"]).shape
        torch.Size([2, 576])
    """
    known = load_text_prompts() if prompts is None else prompts
    wordings = [known[name].wordings for name in task_names]
    if not all(wordings):
        return None
    model = encoder if isinstance(encoder, TextEncoder) else make_text_encoder(encoder)
    stored = read_package_data(model.identity)
    found = [stored.get(mean_name(model.identity, texts)) for texts in wordings]
    missing = [texts for texts, row in zip(wordings, found, strict=True) if row is None]
    if missing:
        embedded = embed_texts([text for texts in missing for text in texts], model)
        parts = iter(embedded.split([len(texts) for texts in missing]))
        found = [next(parts).mean(0) if row is None else row for row in found]
    return torch.stack([row for row in found if row is not None])


def embed_texts(
    texts: Sequence[str],
    encoder: str | Mapping[str, Any] | TextEncoder = "smollm2",
    *,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> Tensor:
    """Return the raw embeddings of ``texts``, computing only those that are not stored yet.

    Args:
        texts: the prompts. Equal ones are computed once.
        encoder: an encoder, or an argument of :func:`make_text_encoder`.

    Keyword Args:
        cache_dir (str or Path): root of the cache. Default: ``embeddings`` in :func:`cache_root`.
        progress (bool): display a progress bar for long work.

    Returns:
        ``[n, D]`` float32 on the CPU.

    Raises:
        PromptError: if the encoder is unknown, a text is empty, or the model is needed and not
            available.

    Examples:
        >>> prompt = load_text_prompts()["reach-v3"]
        >>> embed_texts([prompt.render(), prompt.paraphrases[0]]).shape
        torch.Size([2, 576])
    """
    check_texts(texts)
    model = encoder if isinstance(encoder, TextEncoder) else make_text_encoder(encoder)
    identity = model.identity
    names = {text: entry_name(identity, text) for text in texts}
    found = read_package_data(identity)
    wanted = {text: name for text, name in names.items() if name not in found}
    if wanted:
        root = cache_root() / "embeddings" if cache_dir is None else Path(cache_dir)
        folder = hashlib.sha256(_canonical(identity).encode()).hexdigest()[:16]
        found |= _from_cache(root / folder, model, wanted, progress)
    return torch.stack([found[names[text]] for text in texts])


def entry_name(identity: Mapping[str, Any], text: str) -> str:
    """Return the name under which an encoder's embedding of ``text`` is stored."""
    return hashlib.sha256(f"{_canonical(identity)}\n{text}".encode()).hexdigest()


def mean_name(identity: Mapping[str, Any], texts: Sequence[str]) -> str:
    """Return the name under which the mean of an encoder's embeddings of ``texts`` is stored."""
    return entry_name(identity, "\n".join(("mean of", *texts)))


def read_package_data(identity: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the embeddings ``[D]``, by entry name, that come with the package; none for most."""
    folder = resources.files(__package__) / "embeddings"
    about = json.loads((folder / "smollm2.json").read_text())
    if about["identity"] != identity:
        return {}
    return load((folder / "smollm2.safetensors").read_bytes())


def centred_similarity(
    queries: Tensor, references: Tensor, query_mean: Tensor | None = None
) -> Tensor:
    """Return the cosine of every query with every reference, after subtracting means.

    Raw embeddings of a language model share one large component, which makes all texts similar
    (cosines of 0.95 and more); subtracting the references' mean removes it. Texts of another style,
    such as short free descriptions, share another component: give such queries the mean of their
    own style.

    Args:
        queries: ``[m, D]``.
        references: ``[n, D]``, n > 1.
        query_mean: subtracted from the queries, ``[D]``. Default: the references' mean.

    Returns:
        ``[m, n]`` in [-1, 1].

    Examples:
        >>> references = torch.tensor([[10.0, 1.0], [10.0, -1.0]])
        >>> centred_similarity(torch.tensor([[10.0, 5.0]]), references)
        tensor([[ 1., -1.]])
    """
    mean = references.mean(0)
    centred = queries - (mean if query_mean is None else query_mean)
    return normalize(centred, dim=-1) @ normalize(references - mean, dim=-1).T


def nearest_tasks(
    text: str,
    *,
    encoder: str | Mapping[str, Any] | TextEncoder = "smollm2",
    prompts: Mapping[str, TextPrompt] | None = None,
    count: int = 5,
) -> list[tuple[str, float]]:
    """Return the tasks whose prompts are nearest to ``text``, with their similarity, best first.

    The text is centred by the mean of the prompts' paraphrases, which are free descriptions like
    it; without paraphrases, by the mean of the prompts.

    Args:
        text: any description of a task.

    Keyword Args:
        encoder (str or TextEncoder): the language model, or its name.
        prompts (mapping): the tasks to choose from. Default: the built-in ones.
        count (int): number of tasks to return.

    Examples:
        >>> paraphrase = load_text_prompts()["soccer-v3"].paraphrases[0]
        >>> nearest_tasks(paraphrase, count=1)[0][0]
        'soccer-v3'
    """
    known = load_text_prompts() if prompts is None else prompts
    names = list(known)
    paraphrases = [paraphrase for name in names for paraphrase in known[name].paraphrases]
    rendered = [known[name].render() for name in names]
    query, references, free = embed_texts([text, *rendered, *paraphrases], encoder).split(
        [1, len(rendered), len(paraphrases)]
    )
    similarity = centred_similarity(query, references, free.mean(0) if paraphrases else None)[0]
    values, indices = similarity.topk(min(count, len(names)))
    return [(names[i], float(v)) for i, v in zip(indices.tolist(), values, strict=True)]


def _from_cache(
    folder: Path, model: TextEncoder, wanted: Mapping[str, str], progress: bool
) -> dict[str, Tensor]:
    """Return the user cache's entries, after adding those of ``wanted`` that it lacks."""
    path = folder / _FILE
    stored = _read(path)
    if stored is not None and set(wanted.values()) <= stored.keys():
        return stored
    # The lock is held while the model runs: of many processes that start at once, one loads it and
    # the others read its results. An unwritable cache is noticed before the work.
    with locked_folder(folder):
        stored = _read(path)
        if stored is None:
            aside = path.with_suffix(".corrupt")
            path.replace(aside)
            warnings.warn(
                f"the embedding cache {path} is damaged; moved to {aside.name} and rebuilt",
                stacklevel=4,
            )
            stored = {}
        missing = [text for text, name in wanted.items() if name not in stored]
        if missing:
            vectors = model.encode(missing, progress=progress)
            if vectors.shape[:-1] != (len(missing),) or vectors.dtype != torch.float32:
                raise TypeError(
                    f"an encoder must return float32 [{len(missing)}, D], got "
                    f"{vectors.dtype} {list(vectors.shape)}"
                )
            stored |= dict(zip((wanted[text] for text in missing), vectors, strict=True))
            write_tensors(path, stored)
            write_json(folder / "identity.json", model.identity)  # for human readers
    return stored


def _read(path: Path) -> dict[str, Tensor] | None:
    """Return the file's entries, none if there is no file, and ``None`` if it is damaged."""
    try:
        entries = load(path.read_bytes())
    except FileNotFoundError:
        return {}
    except SafetensorError:
        return None
    except OSError as error:
        raise PromptError(
            f"cannot read the embedding cache {path} ({error.strerror}); set LLMDPD_CACHE to "
            "another folder"
        ) from error
    shapes = {entry.shape for entry in entries.values()}
    is_valid = all(
        e.ndim == 1 and e.dtype == torch.float32 and e.isfinite().all() for e in entries.values()
    )
    return entries if is_valid and len(shapes) <= 1 else None


def _canonical(identity: Mapping[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True, allow_nan=False)
