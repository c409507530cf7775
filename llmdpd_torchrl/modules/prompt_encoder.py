"""The trainable part of the prompt: z = [h_ψ(text); g_φ(trajectory)]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import nn

from llmdpd_torchrl.modules.denoiser import make_mlp
from llmdpd_torchrl.prompts.tables import PromptTables

#: Of a trajectory's steps, in the order in which the encoder reads them.
_STEP_KEYS = ("observation", "action", "reward", "mask")
#: Meta-World's rewards lie in [0, 10]; those of other environments are read in the same unit.
_REWARD_SCALE = 10.0


class TextHead(nn.Module):
    """h_ψ: an MLP on the centred embedding of a frozen language model.

    Raw language-model embeddings of any two prompts are nearly parallel (mean cosine .95 and more),
    so the mean over the training prompts is subtracted and the result divided by one RMS.

    Args:
        training_embeddings: ``[T, D]`` embeddings of the training tasks' prompts.
        features: width of the output.
        activation: of the hidden layer, 128 wide.

    Shapes: ``[*, D]`` to ``[*, features]``.

    Examples:
        >>> embeddings = torch.randn(10, 576)
        >>> TextHead(embeddings, features=32)(embeddings[:2]).shape
        torch.Size([2, 32])
    """

    mean: torch.Tensor
    rms: torch.Tensor

    def __init__(
        self,
        training_embeddings: torch.Tensor,
        features: int = 32,
        activation: str = "mish",
    ) -> None:
        super().__init__()
        mean = training_embeddings.mean(0)
        rms = (training_embeddings - mean).pow(2).mean().sqrt()
        self.register_buffer("mean", mean)
        # One training task has no spread around its own mean.
        self.register_buffer("rms", rms if rms > 0 else torch.ones_like(rms))
        self.features = features
        self.network = make_mlp(training_embeddings.shape[-1], (128,), features, activation)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """Features of a text embedding."""
        return self.network((embedding - self.mean) / self.rms)


class TrajectoryEncoder(nn.Module):
    """g_φ: a transformer over the steps of a trajectory, averaged over the steps that are there.

    Args:
        observation_module: maps observations to standardised features; must have
            ``out_features``. It is used as it is and not trained.
        action_dim: A.
        length: L, the number of steps of a prompt.
        features: width of the output.
        width: of the tokens.
        layers: of the transformer.
        heads: of the attention.
        activation: of the head.

    Shapes: observation [*, L, O], action [*, L, A], reward [*, L, 1], mask [*, L] to
    [*, features].

    Examples:
        >>> from llmdpd_torchrl.modules.conditioning import ObservationFeatures
        >>> features = ObservationFeatures({"state": (0, 3)}, keep=["state"])
        >>> encoder = TrajectoryEncoder(features, 2, length=4, features=8, width=8, heads=2)
        >>> steps = torch.randn(5, 4, 3), torch.rand(5, 4, 2), torch.rand(5, 4, 1)
        >>> encoder(*steps, torch.ones(5, 4, dtype=torch.bool)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        observation_module: nn.Module,
        action_dim: int,
        length: int,
        features: int = 32,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        activation: str = "mish",
    ) -> None:
        super().__init__()
        self.features = features
        self.observation_module = observation_module
        observation_features = int(observation_module.out_features)  # type: ignore[arg-type]
        self.token = nn.Linear(observation_features + action_dim + 1, width)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(
            layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.head = make_mlp(width, (width,), features, activation)

    def forward(
        self,
        observation: torch.Tensor,
        action: torch.Tensor,
        reward: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Features of a trajectory."""
        shape, length = mask.shape[:-1], mask.shape[-1]
        mask = mask.reshape(-1, length)
        steps = [self.observation_module(observation), action, reward / _REWARD_SCALE]
        inputs = torch.cat(steps, dim=-1)
        tokens = self.token(inputs.reshape(-1, length, inputs.shape[-1]))
        tokens = self.transformer(tokens + self.position, src_key_padding_mask=~mask)
        weight = mask.unsqueeze(-1).to(tokens.dtype)
        pooled = (tokens * weight).sum(-2) / weight.sum(-2)
        return self.head(pooled).reshape(*shape, -1)


class PromptEncoder(nn.Module):
    """z = [h_ψ(e_text); g_φ(trajectory)], with either part left out for an ablation.

    Args:
        text: h_ψ, or ``None``.
        trajectory: g_φ, or ``None``.

    Raises:
        ValueError: if both are ``None``: without prompts there is no encoder.

    Examples:
        >>> PromptEncoder(TextHead(torch.randn(10, 576), features=32), None).embedding_dim
        32
    """

    def __init__(self, text: TextHead | None, trajectory: TrajectoryEncoder | None) -> None:
        super().__init__()
        if text is None and trajectory is None:
            raise ValueError("a prompt encoder needs a text head, a trajectory encoder, or both")
        self.text = text
        self.trajectory = trajectory

    @property
    def reference(self) -> torch.Tensor:
        """A tensor on the encoder's device and of its floating-point type."""
        if self.text is not None:
            return self.text.mean
        assert self.trajectory is not None
        return self.trajectory.position

    @property
    def embedding_dim(self) -> int:
        """d_z, the width of z."""
        parts = [part for part in (self.text, self.trajectory) if part is not None]
        return sum(part.features for part in parts)

    def forward(
        self,
        text: torch.Tensor | None = None,
        trajectory: TensorDictBase | None = None,
        *,
        has_text: torch.Tensor | None = None,
        has_trajectory: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """z of text embeddings ``[*, D]`` and prompts ``[*, L]``, ``[*, d_z]``.

        Where ``has_text`` or ``has_trajectory`` [*] (bool) is false, that prompt's part of z is 0:
        what is given for it there is not read.
        """
        parts = []
        if self.text is not None:
            assert text is not None
            parts.append(_only_where(has_text, self.text(text)))
        if self.trajectory is not None:
            assert trajectory is not None
            parts.append(_only_where(has_trajectory, self.encode_trajectory(trajectory)))
        return torch.cat(parts, dim=-1)

    def encode_trajectory(self, trajectory: TensorDictBase) -> torch.Tensor:
        """g_φ of prompts ``[*, L]``."""
        assert self.trajectory is not None
        return self.trajectory(*(trajectory[name] for name in _STEP_KEYS))


def _only_where(present: torch.Tensor | None, features: torch.Tensor) -> torch.Tensor:
    return features if present is None else torch.where(present.unsqueeze(-1), features, 0.0)


class PromptNetwork(TensorDictModuleBase):
    """Encode the prompts of a batch, each distinct prompt once.

    The transforms write row numbers (mode ``index``) into the batch, which point into the tables
    held here: B transitions of T tasks cost a few encodings per task instead of B. Row -1
    means no prompt: its part of z is 0. Without tables the prompts themselves are read (mode
    ``tensor``).

    The tables are data: they are neither parameters nor buffers of this module, so that they enter
    no ``state_dict`` and no copy of the parameters. They follow the encoder to its device and
    floating-point type.

    Args:
        encoder: the trainable part.
        tables: the prompts that rows point into (mode ``index``).

    z is written to ``"prompt_embedding"`` [*, d_z].
    ``in_keys`` are ``("prompt", "text_index")`` and ``("prompt", "trajectory_index")`` [*, 1], or
    ``("prompt", "text")`` [*, D] and the entries of ``("prompt", "trajectory")``, less those of a
    part that the encoder does not have.

    Raises:
        ValueError: if a table is missing for a part that the encoder has.

    Examples:
        >>> from tensordict import TensorDict
        >>> table = torch.randn(10, 576)
        >>> encoder = PromptEncoder(TextHead(table, features=32), None)
        >>> network = PromptNetwork(encoder, PromptTables(text=table))
        >>> rows = torch.tensor([[3], [7], [3]])
        >>> batch = TensorDict({"prompt": {"text_index": rows}}, [3])
        >>> network(batch)["prompt_embedding"].shape
        torch.Size([3, 32])
    """

    def __init__(self, encoder: PromptEncoder, tables: PromptTables | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.in_keys: list[NestedKey] = []
        self.out_keys = ["prompt_embedding"]
        if encoder.text is not None:
            if tables is not None and tables.text is None:
                raise ValueError("the encoder has a text head: give PromptTables with texts")
            self.in_keys.append(("prompt", "text" if tables is None else "text_index"))
        if encoder.trajectory is not None and tables is None:
            self.in_keys += [("prompt", "trajectory", name) for name in _STEP_KEYS]
        elif encoder.trajectory is not None:
            if tables is not None and tables.trajectories is None:
                raise ValueError(
                    "the encoder reads trajectories: give PromptTables with trajectories"
                )
            self.in_keys.append(("prompt", "trajectory_index"))
        # In a tuple, so that they are not registered. LossModule makes parameters and buffers of
        # its networks its own state, and keeps the network itself where .to() does not reach it.
        self._tables = () if tables is None else (tables.shallow_copy(),)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write z."""
        if self._tables:
            z = self._encode_indexed(tensordict, *self._tables)
        else:
            prompts = (tensordict.get(("prompt", name), None) for name in ("text", "trajectory"))
            z = self.encoder(*prompts)
        return tensordict.set("prompt_embedding", z)

    def _encode_indexed(self, tensordict: TensorDictBase, tables: PromptTables) -> torch.Tensor:
        tables.follow(self.encoder.reference)
        # Each table by itself: of the pairs, dropout alone would make several times as many.
        parts = []
        if self.encoder.text is not None:
            row = tensordict.get(("prompt", "text_index"))
            parts.append(_encode_rows(self.encoder.text, tables.text, row))
        if self.encoder.trajectory is not None:
            row = tensordict.get(("prompt", "trajectory_index"))
            assert tables.trajectories is not None
            prompts = tables.trajectories.prompts
            parts.append(_encode_rows(self.encoder.encode_trajectory, prompts, row))
        return torch.cat(parts, dim=-1)


def _encode_rows(encode: Callable[[Any], torch.Tensor], table: Any, row: torch.Tensor) -> Any:
    """Features [*, F] of rows [*, 1] of a table, each distinct one encoded once; 0 for row -1."""
    distinct, inverse = torch.unique(row.squeeze(-1).clamp_min(0), return_inverse=True)
    return torch.where(row >= 0, encode(table[distinct])[inverse], 0.0)
