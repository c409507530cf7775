"""How alike prompts are in the eyes of a language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from llmdpd_torchrl.prompts.embedding_cache import embed_texts
from llmdpd_torchrl.prompts.encoders import TextEncoder
from llmdpd_torchrl.prompts.text import TextPrompt, load_text_prompts

__all__ = ["centred_similarity", "nearest_tasks"]


def centred_similarity(
    queries: Tensor, references: Tensor, query_mean: Tensor | None = None
) -> Tensor:
    """Return the cosine of every query with every reference, after subtracting means.

    Raw embeddings of a language model share one large component, which makes any two texts look the
    same (cosines of 0.95 and more); the mean over the references removes it. Texts of another style
    share another component: short free descriptions lie farther from the labelled prompts than
    these lie from one another. Give such queries the mean of their own kind.

    Args:
        queries: ``[m, D]``.
        references: ``[n, D]``, n > 1.
        query_mean: subtracted from the queries, ``[D]``. Default: the references' mean.

    Returns:
        ``[m, n]`` in [-1, 1].

    Examples:
        >>> import torch
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

    The text is centred on the mean of the prompts' paraphrases, which are free descriptions as it
    is; where there are none, on the mean of the prompts.

    Args:
        text: any description of a task.

    Keyword Args:
        encoder (str or TextEncoder): the language model, or its name.
        prompts (mapping): the tasks to choose from. Default: the built-in ones.
        count (int): how many to return.

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
