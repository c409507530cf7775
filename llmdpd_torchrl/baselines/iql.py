"""Implicit Q-learning (Kostrikov et al. 2022), on TorchRL's loss."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.modules import ValueOperator
from torchrl.objectives import IQLLoss

from llmdpd_torchrl.modules.actors.direct import GaussianActor

__all__ = ["IQL"]


class IQL(IQLLoss):
    """TorchRL's :class:`~torchrl.objectives.IQLLoss` with a state value of the actor's shape.

    Args:
        actor_network: a Gaussian whose deviation does not depend on the state, without a prompt.
        qvalue_network: two critics.
        temperature: of the advantage, inverse: the paper's 3 on locomotion.
        expectile: the paper's 0.7 there.
        loss_function: of the critics.
        deactivate_vmap: run the critics one after the other.

    Examples:
        >>> from llmdpd_torchrl.modules import NetworkConfig, make_networks
        >>> networks = make_networks(NetworkConfig(prompt="none", actor="gaussian", hidden=[8]))
        >>> IQL(networks.actor, networks.qvalues).out_keys
        ['loss_actor', 'loss_qvalue', 'loss_value', 'bc']
    """

    def __init__(
        self,
        actor_network: GaussianActor,
        qvalue_network: Sequence[TensorDictModule],
        *,
        temperature: float = 3.0,
        expectile: float = 0.7,
        loss_function: str = "l2",
        deactivate_vmap: bool = False,
    ) -> None:
        value = ValueOperator(actor_network.network.like(1), in_keys=list(actor_network[0].in_keys))
        super().__init__(
            actor_network,
            list(qvalue_network),
            value,
            num_qvalue_nets=len(qvalue_network),
            temperature=temperature,
            expectile=expectile,
            loss_function=loss_function,
            deactivate_vmap=deactivate_vmap,
        )
        self.out_keys = ["loss_actor", "loss_qvalue", "loss_value", "bc"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The losses of a batch; ``bc`` is the data's mean negative log-likelihood."""
        losses = super().forward(tensordict.copy())
        # TorchRL calls so what is the likelihood of the data's actions.
        bc = losses.pop("entropy")
        return TensorDict({**losses, "bc": bc})
