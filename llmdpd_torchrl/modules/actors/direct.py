"""Actors that need no diffusion: one pass of an MLP gives the action, or a distribution of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.nn.probabilistic import interaction_type
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.envs.utils import ExplorationType
from torchrl.modules import IndependentNormal, ProbabilisticActor, SafeModule, TanhNormal

from llmdpd_torchrl.modules.denoiser import make_mlp

_LOG_STD = (-5.0, 2.0)


class DirectNetwork(nn.Module):
    """An MLP on what a conditioner [*, condition_dim] makes of its inputs, to [*, out_features]."""

    def __init__(
        self,
        conditioner: nn.Module,
        condition_dim: int,
        out_features: int,
        hidden: Sequence[int] = (256, 256, 256),
        activation: str = "mish",
    ) -> None:
        super().__init__()
        self.conditioner = conditioner
        self.condition_dim = condition_dim
        self.hidden, self.activation = tuple(hidden), activation
        self.mlp = make_mlp(condition_dim, hidden, out_features, activation)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map the conditioner's inputs to ``[*, out_features]``."""
        return self.mlp(self.conditioner(*inputs))

    def like(self, out_features: int) -> DirectNetwork:
        """Another network on the same inputs, with its own weights, such as a state value."""
        conditioner = copy.deepcopy(self.conditioner)
        return DirectNetwork(
            conditioner, self.condition_dim, out_features, self.hidden, self.activation
        )


class _Squashed(nn.Module):
    """tanh of a network's output: an action in [-1, 1]."""

    def __init__(self, network: DirectNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.network(*inputs).tanh()


class DeterministicActor(SafeModule):
    """One action in [-1, 1] for what is observed.

    Args:
        network: maps its inputs to the A entries of the action, before tanh.
        in_keys: entries that the network reads.
        spec: spec of the action.

    Examples:
        >>> from tensordict import TensorDict
        >>> from llmdpd_torchrl.modules import NetworkConfig, make_networks
        >>> config = NetworkConfig(prompt="none", actor="deterministic", hidden=[8])
        >>> actor = make_networks(config).actor
        >>> actor(TensorDict({"observation": torch.randn(4, 39)}, [4]))["action"].shape
        torch.Size([4, 4])
    """

    module: _Squashed

    def __init__(
        self,
        network: DirectNetwork,
        in_keys: Sequence[NestedKey],
        *,
        spec: TensorSpec | None = None,
    ) -> None:
        super().__init__(_Squashed(network), list(in_keys), ["action"], spec=spec)

    @property
    def network(self) -> DirectNetwork:
        """Before tanh."""
        return self.module.network

    def forward(
        self, tensordict: TensorDictBase, *, generator: torch.Generator | None = None
    ) -> TensorDictBase:
        """Write the action. ``generator`` is not used; callers pass it to any policy."""
        return super().forward(tensordict)


class _GaussianHead(nn.Module):
    """Location and scale, [*, A] each, from a network's output."""

    def __init__(self, network: DirectNetwork, action_dim: int, squashed: bool) -> None:
        super().__init__()
        self.network = network
        self.squashed = squashed
        if not squashed:
            self.log_std = nn.Parameter(torch.zeros(action_dim, dtype=torch.float32))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        output = self.network(*inputs)
        if self.squashed:
            loc, log_std = output.chunk(2, dim=-1)
        else:
            loc, log_std = output.tanh(), self.log_std.expand_as(output)
        return loc, log_std.clamp(*_LOG_STD).exp()


class GaussianActor(ProbabilisticActor):
    """A Gaussian over the action, of which IQL and CQL take likelihoods and samples.

    Args:
        network: maps its inputs to A locations and, if ``squashed``, A log deviations.
        in_keys: entries that the network reads.
        action_dim: A.
        squashed: tanh of a Gaussian (CQL, Kumar et al. 2020); else a Gaussian around tanh of the
            network with one deviation per dimension (IQL, Kostrikov et al. 2022, appendix B).
        spec: spec of the action.

    Examples:
        >>> from tensordict import TensorDict
        >>> from llmdpd_torchrl.modules import NetworkConfig, make_networks
        >>> config = NetworkConfig(prompt="none", actor="tanh_gaussian", hidden=[8])
        >>> actor = make_networks(config).actor
        >>> actor(TensorDict({"observation": torch.randn(4, 39)}, [4]))["action"].shape
        torch.Size([4, 4])
    """

    def __init__(
        self,
        network: DirectNetwork,
        in_keys: Sequence[NestedKey],
        action_dim: int,
        *,
        squashed: bool,
        spec: TensorSpec | None = None,
    ) -> None:
        head = _GaussianHead(network, action_dim, squashed)
        super().__init__(
            TensorDictModule(head, list(in_keys), ["loc", "scale"]),
            in_keys=["loc", "scale"],
            distribution_class=TanhNormal if squashed else IndependentNormal,
            default_interaction_type=ExplorationType.DETERMINISTIC,
            spec=spec,
        )

    @property
    def network(self) -> DirectNetwork:
        """Below the distribution."""
        return self[0].module.network

    def forward(
        self,
        tensordict: TensorDictBase,
        *args: Any,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> TensorDictBase:
        """Write the action, sampled with ``generator`` if one is given, ``loc`` and ``scale``.

        A sample beyond [-1, 1] is clipped.
        """
        if generator is None or interaction_type() is not ExplorationType.RANDOM:
            return super().forward(tensordict, *args, **kwargs)
        tensordict = self.get_dist_params(tensordict)
        loc, scale = tensordict["loc"], tensordict["scale"]
        noise = torch.randn(loc.shape, generator=generator, dtype=loc.dtype, device=loc.device)
        action = loc + scale * noise
        squashed = self[0].module.squashed
        return tensordict.set("action", action.tanh() if squashed else action.clamp(-1.0, 1.0))
