"""The transformer that reads a trajectory prompt: the paper's, for pooled conditioning."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import nn

from llmdpd_torchrl.modules.denoiser import make_mlp

#: Meta-World's rewards lie in [0, 10]; those of other environments are read in the same unit.
_REWARD_SCALE = 10.0


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

    Shapes: a TensorDict [*, L] of observation [*, L, O], action [*, L, A], reward [*, L, 1] and
    mask [*, L] to [*, features].

    Examples:
        >>> from tensordict import TensorDict
        >>> from llmdpd_torchrl.modules import ObservationFeatures
        >>> features = ObservationFeatures({"state": (0, 3)}, keep=["state"])
        >>> encoder = TrajectoryEncoder(features, 2, length=4, features=8, width=8, heads=2)
        >>> steps = {"observation": torch.randn(5, 4, 3), "action": torch.rand(5, 4, 2)}
        >>> steps |= {"reward": torch.rand(5, 4, 1), "mask": torch.ones(5, 4, dtype=torch.bool)}
        >>> encoder(TensorDict(steps, [5, 4])).shape
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

    def forward(self, trajectory: TensorDictBase) -> torch.Tensor:
        """Features of a trajectory."""
        mask = trajectory["mask"]
        shape, length = mask.shape[:-1], mask.shape[-1]
        mask = mask.reshape(-1, length)
        features = self.observation_module(trajectory["observation"])
        reward = trajectory["reward"] / _REWARD_SCALE
        inputs = torch.cat([features, trajectory["action"], reward], dim=-1)
        tokens = self.token(inputs.reshape(-1, length, inputs.shape[-1]))
        tokens = self.transformer(tokens + self.position, src_key_padding_mask=~mask)
        weight = mask.unsqueeze(-1).to(tokens.dtype)
        pooled = (tokens * weight).sum(-2) / weight.sum(-2)
        return self.head(pooled).reshape(*shape, -1)
