"""An actor that makes an action of a latent in one step, distilled from a diffusion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.modules import MLP, SafeModule

from llmdpd_torchrl.modules.diffusion import is_deterministic


class _OneStep(nn.Module):
    """The network behind the conditioner that it shares with its diffusion."""

    def __init__(self, network: MLP, conditioner: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.conditioner = conditioner

    def forward(self, *inputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        condition = self.conditioner(*inputs)
        shape = (*condition.shape[:-1], self.network.out_features)
        if is_deterministic():
            latent = condition.new_zeros(shape)
        else:
            like = {"dtype": condition.dtype, "device": condition.device}
            latent = torch.randn(shape, generator=generator, **like)
        return self.network(condition, latent).clamp(-1.0, 1.0)


class OneStepActor(SafeModule):
    """What :class:`~llmdpd_torchrl.objectives.guidance.DistilledGuidance` trains, as an actor.

    Deterministic, it makes its action of a latent of zeros.

    Args:
        network: from condition ``[*, C]`` and latent ``[*, A]`` to an action; the loss trains it.
        conditioner: of the diffusion that it was distilled from.
        in_keys: as that's.
        spec: of the action, which is clipped to [-1, 1].

    Examples:
        >>> from tensordict import TensorDict
        >>> from llmdpd_torchrl.modules.denoiser import make_mlp
        >>> actor = OneStepActor(make_mlp(3 + 2, [8], 2), nn.Identity(), ["observation"])
        >>> actor(TensorDict({"observation": torch.randn(5, 3)}, [5]))["action"].shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        network: MLP,
        conditioner: nn.Module,
        in_keys: Sequence[NestedKey],
        *,
        spec: TensorSpec | None = None,
    ) -> None:
        super().__init__(_OneStep(network, conditioner), list(in_keys), ["action"], spec=spec)
