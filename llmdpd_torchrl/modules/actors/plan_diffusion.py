"""Diffusion over the next actions together; the first is taken, then a new plan is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias, cast

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.modules import SafeModule

from llmdpd_torchrl.modules.conditioning import ObservationFeatures
from llmdpd_torchrl.modules.denoiser import SinusoidalTimeEmbedding, make_mlp
from llmdpd_torchrl.modules.diffusion import DiffusionModule

#: Keys and values of some tokens, [B, heads, n, width / heads] each.
KeysValues: TypeAlias = tuple[Tensor, Tensor]


class PrefixBlock(nn.Module):
    """A transformer block whose tokens also read a prefix that does not read them.

    Normalisation before attention and MLP, GELU, an inner layer four times as wide, as in GPT-2
    (Radford et al. 2019), but without its causal mask. The prefix's keys and values
    are computed once per sample, because a diffusion denoises many times under one condition.
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

        ``mask`` ``[B, m + n]`` is true where a token may be read; without it, all may.
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


class PlanConditioner(nn.Module):
    """One vector of all that a plan depends on: what a :class:`DiffusionModule` hands on.

    Args:
        features: features of observations; used as they are, not trained.
        return_scale: divisor of returns.

    Shapes: the prompt's observation [*, L, O], action [*, L, A] and mask [*, L], the history's
    observation [*, H, O], return-to-go [*, H, 1] and mask [*, H], to [*, C]: L times features,
    action and mask, H times features and mask, the present return-to-go, and 1, that it is there.
    """

    def __init__(self, features: ObservationFeatures, return_scale: float = 1000.0) -> None:
        super().__init__()
        self.observation_module = features
        self.return_scale = return_scale

    def forward(
        self,
        prompt_observation: Tensor,
        prompt_action: Tensor,
        prompt_mask: Tensor,
        observation: Tensor,
        return_to_go: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Flatten and concatenate."""
        present = return_to_go[..., -1, :] / self.return_scale
        parts = [
            self.observation_module(prompt_observation),
            prompt_action,
            prompt_mask.unsqueeze(-1).to(present.dtype),
        ]
        prompt = torch.cat(parts, dim=-1).flatten(-2)
        parts = [self.observation_module(observation), mask.unsqueeze(-1).to(present.dtype)]
        history = torch.cat(parts, dim=-1).flatten(-2)
        return torch.cat([prompt, history, present, torch.ones_like(present)], dim=-1)


class _Prepared(NamedTuple):
    """What plans are denoised under at one step.

    If they are guided, twice as many rows: all with the return, then all without.
    """

    memory: list[KeysValues]
    mask: Tensor
    returns: Tensor
    time: Tensor


class PlanDenoiser(nn.Module):
    """A transformer over the noisy actions of a plan, with prompt and history as a prefix.

    A token a step: the prompt's of observation and action, the history's of observation, the plan's
    of a noisy action, to which the embeddings of diffusion step and return-to-go are added. Prompt
    and history are read once a sample. Samples are guided by the return (Ho & Salimans 2022): the
    output is u + w (c - u), with the return for c and without it for u.

    Args:
        observation_features: width of an observation's features.
        action_dim, prompt_steps, history_steps, horizon: A, L, H and F.
        width, layers, heads: sizes of the transformer.
        guidance: w. Only samples are guided, training is not.

    Shapes: ``[*, F A + C + 1]`` to ``[*, F A]``, C as in :class:`PlanConditioner`.
    """

    def __init__(
        self,
        observation_features: int,
        action_dim: int,
        prompt_steps: int,
        history_steps: int,
        horizon: int,
        *,
        width: int = 64,
        layers: int = 2,
        heads: int = 1,
        guidance: float = 1.2,
    ) -> None:
        super().__init__()
        self.action_dim, self.horizon, self.guidance = action_dim, horizon, guidance
        step, state = observation_features + action_dim + 1, observation_features + 1
        self._steps = (prompt_steps, history_steps)
        self._widths = [prompt_steps * step, history_steps * state, 1, 1]
        self.condition_dim = sum(self._widths)
        self.embed_prompt = nn.Linear(step, width)
        self.embed_history = nn.Linear(state, width)
        self.embed_action = nn.Linear(action_dim, width)
        self.embed_return = nn.Linear(1, width)
        self.no_return = nn.Parameter(torch.zeros(width))
        self.embed_time = nn.Sequential(
            SinusoidalTimeEmbedding(width), *make_mlp(width, (width,), width)
        )
        length = prompt_steps + history_steps + horizon
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.ModuleList(PrefixBlock(width, heads) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, action_dim))

    def forward(self, inputs: Tensor, prepared: _Prepared | None = None) -> Tensor:
        """Denoise: in training from ``inputs`` alone, in sampling noisy plans as ``prepared``."""
        if prepared is not None:
            return self._guided(inputs, prepared)
        shape, size = inputs.shape[:-1], self.horizon * self.action_dim
        parts = inputs.reshape(-1, inputs.shape[-1]).split([size, self.condition_dim, 1], dim=-1)
        noisy, condition, step = parts
        memory, mask, returns = self._read(condition)
        output = self._denoise(noisy, memory, mask, returns, self.embed_time(step))
        return output.reshape(*shape, size)

    def precondition(self, condition: Tensor, path: Sequence[int]) -> list[_Prepared]:
        """Read the condition ``[*, C]`` once, for all steps that a sample visits."""
        memory, mask, returns = self._read(condition.reshape(-1, self.condition_dim))
        if self.guidance != 1.0:  # with the return, and without: one pass for both
            memory = [(keys.repeat(2, 1, 1, 1), values.repeat(2, 1, 1, 1))
                      for keys, values in memory]  # fmt: skip
            mask = mask.repeat(2, 1)
            returns = torch.cat([returns, self.no_return.expand_as(returns)])
        # Filled on the device: a list copied to it could not be captured in a CUDA graph.
        steps = torch.stack([condition.new_full((1,), step) for step in path])
        times = self.embed_time(steps)
        return [_Prepared(memory, mask, returns, time) for time in times]

    def hide_return(self, condition: Tensor, hidden: Tensor) -> Tensor:
        """The condition ``[*, C]`` without its return where ``hidden`` [*] is true."""
        rest, returns = condition.split([self.condition_dim - 2, 2], dim=-1)
        return torch.cat([rest, torch.where(hidden.unsqueeze(-1), 0.0, returns)], dim=-1)

    def _read(self, condition: Tensor) -> tuple[list[KeysValues], Tensor, Tensor]:
        """Of ``[B, C]``: the prefix's memory in each block, the mask [B, L + H + F], the return."""
        parts = condition.split(self._widths, dim=-1)
        prompt = parts[0].unflatten(-1, (self._steps[0], -1))
        history = parts[1].unflatten(-1, (self._steps[1], -1))
        tokens = torch.cat([self.embed_prompt(prompt), self.embed_history(history)], dim=-2)
        tokens = tokens + self.position[: sum(self._steps)]
        there = torch.cat([prompt[..., -1], history[..., -1]], dim=-1) > 0
        memory = []
        for number, block in enumerate(self.blocks):
            memory.append(cast(PrefixBlock, block).keys_values(tokens))
            if number < len(self.blocks) - 1:  # the last block's output is not read
                tokens = block(tokens, None, there)
        to_go, is_there = parts[2:]
        returns = torch.where(is_there > 0, self.embed_return(to_go), self.no_return)
        mask = torch.cat([there, there.new_ones(len(there), self.horizon)], dim=-1)
        return memory, mask, returns

    def _denoise(
        self, noisy: Tensor, memory: list[KeysValues], mask: Tensor, returns: Tensor, time: Tensor
    ) -> Tensor:
        """Output ``[B, F A]`` of noisy plans ``[B, F A]``; return ``[B, width]``."""
        tokens = self.embed_action(noisy.unflatten(-1, (self.horizon, self.action_dim)))
        tokens = tokens + self.position[sum(self._steps) :] + (returns + time).unsqueeze(-2)
        for block, keys_values in zip(self.blocks, memory, strict=True):
            tokens = block(tokens, keys_values, mask)
        return self.head(tokens).flatten(-2)

    def _guided(self, noisy: Tensor, prepared: _Prepared) -> Tensor:
        memory, mask, returns, time = prepared
        rows = noisy.reshape(-1, noisy.shape[-1])
        passes = 1 if self.guidance == 1.0 else 2
        output = self._denoise(rows.repeat(passes, 1), memory, mask, returns, time)
        if passes == 2:
            conditional, unconditional = output.chunk(2)
            output = unconditional + self.guidance * (conditional - unconditional)
        return output.reshape(noisy.shape)


class PlanDiffusionActor(SafeModule):
    """Denoise the next F actions together and take the first, at every step.

    It reads what :class:`~llmdpd_torchrl.transforms.HistoryTransform` and
    :class:`~llmdpd_torchrl.transforms.TrajectoryPromptTransform` in mode ``"tensor"`` write.

    Args:
        plans: a diffusion of F A values, under a :class:`PlanConditioner`.
        action_dim: A.

    Examples:
        >>> from tensordict import TensorDict
        >>> from llmdpd_torchrl.modules import NetworkConfig, SequenceConfig, make_networks
        >>> config = NetworkConfig(
        ...     prompt="trajectory", conditioning="sequence", actor="plan_diffusion", action_dim=2,
        ...     observation_fields={"state": (0, 3)}, observation_keep=["state"],
        ...     trajectory_length=4, sequence=SequenceConfig(history=2, horizon=8, width=16))
        >>> actor = make_networks(config).actor
        >>> def steps(n):
        ...     return {"observation": torch.randn(6, n, 3), "action": torch.rand(6, n, 2),
        ...             "return_to_go": torch.rand(6, n, 1), "mask": torch.ones(6, n).bool()}
        >>> state = TensorDict({"prompt": {"trajectory": steps(4)}, "history": steps(2)}, [6])
        >>> actor(state)["action"].shape
        torch.Size([6, 2])
    """

    module: DiffusionModule

    def __init__(self, plans: DiffusionModule, action_dim: int) -> None:
        keys: list[NestedKey] = [
            ("prompt", "trajectory", name) for name in ("observation", "action", "mask")
        ]
        keys += [("history", name) for name in ("observation", "return_to_go", "mask")]
        super().__init__(plans, keys, ["action"])
        self.action_dim = action_dim

    def forward(
        self, tensordict: TensorDictBase, *, generator: torch.Generator | None = None
    ) -> TensorDictBase:
        """Write the first action of a plan, sampled with ``generator`` unless deterministic."""
        inputs = (tensordict.get(key) for key in self.in_keys)
        plan = self.module(*inputs, generator=generator)
        return tensordict.set(self.out_keys[0], plan[..., : self.action_dim])
