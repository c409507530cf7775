"""TD3+BC (Fujimoto and Gu 2021), on TorchRL's loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.objectives import TD3BCLoss

__all__ = ["TD3BC"]

#: TorchRL's names of what is logged, and this library's.
_METRICS = {"bc_loss": "bc", "pred_value": "q_value", "target_value": "target_value"}


class TD3BC(TD3BCLoss):
    """TorchRL's :class:`~torchrl.objectives.TD3BCLoss`, the actor's turn at every second batch.

    Args:
        actor_network: deterministic, without a prompt.
        qvalue_network: two critics.
        actor_every: batches from one of the actor's turns to the next (TD3's policy delay).
        alpha, policy_noise, noise_clip, loss_function, deactivate_vmap: see TorchRL's.

    Examples:
        >>> from llmdpd_torchrl.modules import NetworkConfig, make_networks
        >>> config = NetworkConfig(prompt="none", actor="deterministic", hidden=[8])
        >>> networks = make_networks(config)
        >>> TD3BC(networks.actor, networks.qvalues, alpha=1.0).alpha
        1.0
    """

    batches: torch.Tensor

    def __init__(
        self,
        actor_network: TensorDictModule,
        qvalue_network: Sequence[TensorDictModule],
        *,
        actor_every: int = 2,
        alpha: float = 2.5,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        loss_function: str = "l2",
        deactivate_vmap: bool = False,
    ) -> None:
        super().__init__(
            actor_network,
            list(qvalue_network),
            bounds=(-1.0, 1.0),
            alpha=alpha,
            policy_noise=policy_noise,
            noise_clip=noise_clip,
            loss_function=loss_function,
            deactivate_vmap=deactivate_vmap,
        )
        self.out_keys = ["loss_actor", "loss_qvalue", *_METRICS.values()]
        self.actor_every = actor_every
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The losses of a batch; the actor's has no gradient when it is not its turn."""
        losses = super().forward(tensordict)
        found = {name: losses[key].detach().mean() for key, name in _METRICS.items()}
        self.batches += 1
        actor = losses["loss_actor"]
        found["loss_actor"] = actor.detach() if self.batches % self.actor_every else actor
        return TensorDict({**found, "loss_qvalue": losses["loss_qvalue"]})
