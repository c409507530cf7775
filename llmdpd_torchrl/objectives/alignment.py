"""Text and trajectory prompts of one task, brought together in their features."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.nn.functional import normalize

from llmdpd_torchrl.utils.errors import ConfigError

__all__ = ["aligned_width", "alignment_loss", "batch_alignment"]


def alignment_loss(
    text: Tensor,
    trajectory: Tensor,
    task: Tensor,
    present: Tensor,
    *,
    temperature: float = 0.1,
) -> Tensor:
    r"""Contrastive loss between the features of texts and of trajectories, both ways.

    With s the cosine similarity over the temperature and T(i) the rows of i's task,

    .. math::
        -\frac12 \log \frac{\sum_{j \in T(i)} e^{s(h_i, g_j)}}{\sum_j e^{s(h_i, g_j)}}
        -\frac12 \log \frac{\sum_{j \in T(i)} e^{s(h_j, g_i)}}{\sum_j e^{s(h_j, g_i)}},

    averaged over the rows i that are present: InfoNCE (van den Oord et al. 2018) with all pairs of
    a task as positives.

    Args:
        text: h_ψ's features, [B, F].
        trajectory: g_φ's, [B, F].
        task: what makes two rows a pair, int64 [B].
        present: rows that have both prompts, bool [B]; the others take no part.
        temperature: above 0.

    Returns:
        a scalar; 0 if no row is present.

    Examples:
        >>> import torch
        >>> features = torch.eye(3)
        >>> task, present = torch.arange(3), torch.ones(3, dtype=torch.bool)
        >>> bool(alignment_loss(features, features, task, present) < 1e-3)
        True
    """
    similarity = normalize(text, dim=-1) @ normalize(trajectory, dim=-1).mT / temperature
    # Finite, so that a row without partners has a gradient of 0 and not NaN.
    similarity = similarity.masked_fill(~(present[:, None] & present), -1e4)
    others = similarity.masked_fill(task[:, None] != task, -1e4)
    each = sum(similarity.logsumexp(side) - others.logsumexp(side) for side in (0, 1)) / 2
    return (each * present).sum() / present.sum().clamp_min(1)


def batch_alignment(
    data: TensorDictBase, rows: Sequence[NestedKey], embedding: NestedKey, width: int
) -> Tensor:
    """:func:`alignment_loss` of a batch: of its rows of tables, and of z split at ``width``."""
    text_row, trajectory_row = (data[key].reshape(-1) for key in rows)
    text, trajectory = data[embedding].flatten(0, -2).tensor_split([width], dim=-1)
    return alignment_loss(text, trajectory, text_row, (text_row >= 0) & (trajectory_row >= 0))


def aligned_width(prompt_network: nn.Module | None) -> int:
    """F: the width of both parts of a prompt network's z.

    Raises:
        ConfigError: if it has not both a text and a trajectory part, reads no rows of tables, or
            the parts differ in width.
    """
    encoder = getattr(prompt_network, "encoder", None)
    text, trajectory = (getattr(encoder, name, None) for name in ("text", "trajectory"))
    if text is None or trajectory is None or not getattr(prompt_network, "indexed", False):
        raise ConfigError(
            "alignment needs a PromptNetwork with tables and both a text and a trajectory part: "
            "use conditioning=pooled and prompt=both, or set loss.alignment=0"
        )
    if text.features != trajectory.features:
        raise ConfigError(
            f"alignment compares text features ({text.features}) with trajectory features "
            f"({trajectory.features}): make them equally wide"
        )
    return int(text.features)
