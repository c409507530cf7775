"""GPT-2's block over tokens of which the first need be read only once."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PrefixBlock"]

#: Keys and values of some tokens, [B, heads, n, width / heads] each.
KeysValues: TypeAlias = tuple[Tensor, Tensor]


class PrefixBlock(nn.Module):
    """A transformer block whose tokens also read a prefix that does not read them.

    Normalisation before attention and MLP, GELU, an inner layer four times as wide, as in GPT-2
    (Radford et al. 2019), but without its causal mask. What the prefix tells, its keys and values,
    is computed once, however often the other tokens change: a diffusion denoises many times under
    one condition.

    Args:
        width: of the tokens.
        heads: of the attention.

    Examples:
        >>> block = PrefixBlock(8, 2)
        >>> prefix, tokens = torch.randn(5, 3, 8), torch.randn(5, 4, 8)
        >>> memory = block.keys_values(prefix)
        >>> block(tokens, memory).shape
        torch.Size([5, 4, 8])
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def keys_values(self, tokens: Tensor) -> KeysValues:
        """What other tokens may read of these ``[B, n, width]``."""
        return self._keys_values(self.attention_norm(tokens))

    def forward(
        self, tokens: Tensor, memory: KeysValues | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Let ``tokens`` ``[B, n, width]`` read one another, and the memory of m others.

        Args:
            tokens: what is changed.
            memory: of a prefix.
            mask: ``[B, m + n]`` bool, true where a token may be read; ``None``: all may.
        """
        normed = self.attention_norm(tokens)
        keys, values = self._keys_values(normed)
        if memory is not None:
            keys = torch.cat([memory[0], keys], dim=-2)
            values = torch.cat([memory[1], values], dim=-2)
        read = F.scaled_dot_product_attention(
            self._split(self.query(normed)),
            keys,
            values,
            attn_mask=None if mask is None else mask[:, None, None, :],
        )
        tokens = tokens + self.attention_out(read.transpose(1, 2).flatten(-2))
        return tokens + self.mlp(tokens)

    def _keys_values(self, normed: Tensor) -> KeysValues:
        keys, values = self.key_value(normed).chunk(2, dim=-1)
        return self._split(keys), self._split(values)

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)
