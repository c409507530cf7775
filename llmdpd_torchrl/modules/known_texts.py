"""Which of the trained tasks a text names, in whatever words, if any."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

#: Of similarities, in the softmax over the tasks.
_TEMPERATURE = 0.05
#: A text is known if it is at least as similar to a task, and more likely that one's than all
#: others' together. Chosen on the texts of development tasks: random letters, other languages and
#: other subjects stay below, a task's own line in other letters above.
_LEAST_SIMILARITY, _LEAST_WEIGHT = 0.27, 0.5


class KnownTexts(nn.Module):
    """The embeddings of the trained tasks' texts, in several styles, and how near others are.

    A language model's embeddings tell a text's style (its length, its form) more than its task. So
    a text is compared, by cosine, with those of one style less that style's mean: the style whose
    mean it is nearest to, in units of the farthest of its texts.

    Args:
        texts: ``[G, T, D]`` of G styles, the first one being the full texts that the networks read,
            and T trained tasks.

    Shapes: embeddings ``[*, D]`` to weights ``[*, T]`` that add up to 1, or to 0 where a text names
    none of the tasks.

    Examples:
        >>> known = KnownTexts(torch.eye(4)[None])
        >>> known(torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])).round()
        tensor([[0., 1., 0., 0.],
                [0., 0., 0., 0.]])
    """

    texts: Tensor

    def __init__(self, texts: Tensor) -> None:
        super().__init__()
        self.register_buffer("texts", texts.clone())

    def similarity(self, embedding: Tensor) -> Tensor:
        """Cosines ``[*, T]`` with the tasks' texts of the nearest style."""
        # A single task needs no comparison.
        mean = self.texts.mean(1) * (self.texts.shape[1] > 1)  # [G, D]
        own = self.texts - mean.unsqueeze(1)  # [G, T, D]
        offsets = embedding.unsqueeze(-2) - mean  # [*, G, D]
        distance = offsets.norm(dim=-1) / own.norm(dim=-1).amax(-1)
        style = distance.argmin(-1, keepdim=True).unsqueeze(-1)
        found = torch.einsum("...gd,gtd->...gt", normalize(offsets, dim=-1), normalize(own, dim=-1))
        return found.take_along_dim(style, dim=-2).squeeze(-2)

    def forward(self, embedding: Tensor) -> Tensor:
        """How much of each task a text is."""
        similarity = self.similarity(embedding)
        weights = (similarity / _TEMPERATURE).softmax(-1)
        is_known = (similarity.amax(-1) >= _LEAST_SIMILARITY) & (weights.amax(-1) > _LEAST_WEIGHT)
        return weights * is_known.unsqueeze(-1)
