"""Conservative Q-learning (Kumar et al. 2020), on TorchRL's loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.objectives import CQLLoss

from llmdpd_torchrl.modules.direct import GaussianActor

__all__ = ["CQL"]

#: The likelihood of a squashed Gaussian has no bound at -1 and 1, where many actions are.
_INSIDE = 1.0 - 1e-3


class CQL(CQLLoss):
    """TorchRL's :class:`~torchrl.objectives.CQLLoss`: SAC whose critics stay low off the data.

    TorchRL's log-sum-exp is over the three sources of actions (uniform, the policy's here, the
    policy's in the next state) one sample each, and averages over the samples, where the paper's is
    over all samples together.

    Args:
        actor_network: a squashed Gaussian, without a prompt.
        qvalue_network: two critics.
        cloning_updates: so many batches the actor clones before it follows the critics.
        min_q_weight, num_random, alpha_init, temperature, deactivate_vmap: see TorchRL's.

    Examples:
        >>> from llmdpd_torchrl.modules import NetworkConfig, make_networks
        >>> config = NetworkConfig(prompt="none", actor="tanh_gaussian", hidden=[8])
        >>> networks = make_networks(config)
        >>> CQL(networks.actor, networks.qvalues, min_q_weight=5.0).min_q_weight
        5.0
    """

    batches: Tensor

    def __init__(
        self,
        actor_network: GaussianActor,
        qvalue_network: Sequence[TensorDictModule],
        *,
        cloning_updates: int = 1000,
        min_q_weight: float = 5.0,
        num_random: int = 10,
        alpha_init: float = 1.0,
        temperature: float = 1.0,
        deactivate_vmap: bool = False,
    ) -> None:
        super().__init__(
            actor_network,
            list(qvalue_network),
            loss_function="l2",
            min_q_weight=min_q_weight,
            num_random=num_random,
            alpha_init=alpha_init,
            temperature=temperature,
            deactivate_vmap=deactivate_vmap,
        )
        self.out_keys = ["loss_actor", "loss_qvalue", "loss_cql", "loss_alpha", "alpha",
                         "entropy", "q_value"]  # fmt: skip
        self.cloning_updates = cloning_updates
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The losses of a batch; of the actor's two, the one whose turn it is."""
        data = tensordict.copy()
        losses = super().forward(data)
        cloning = losses.pop("loss_actor_bc")
        if self.batches < self.cloning_updates:
            losses["loss_actor"] = cloning
        self.batches += 1
        losses["q_value"] = data.get(self.tensor_keys.pred_q1).detach().mean()
        losses["alpha"] = losses["alpha"].detach()
        return losses

    def actor_bc_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict]:
        """TorchRL's, with actions inside the range."""
        data = tensordict.copy()
        action = data.get(self.tensor_keys.action)
        return super().actor_bc_loss(
            data.set(self.tensor_keys.action, action.clamp(-_INSIDE, _INSIDE))
        )
