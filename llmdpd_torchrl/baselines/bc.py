"""Behaviour cloning: the mean squared error of one action, on TorchRL's loss."""

from __future__ import annotations

from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.objectives import BCLoss

__all__ = ["BehaviourCloning"]


class BehaviourCloning(BCLoss):
    """TorchRL's :class:`~torchrl.objectives.BCLoss` behind a prompt encoder, if there is one.

    Args:
        prompt_network: see :class:`~llmdpd_torchrl.objectives.LLMDPDLoss`; ``None`` for none.
        actor_network: one that writes an action without drawing it.

    Examples:
        >>> import torch
        >>> from llmdpd_torchrl.modules import NetworkConfig, make_networks
        >>> config = NetworkConfig(prompt="none", actor="deterministic", hidden=[8])
        >>> loss = BehaviourCloning(None, make_networks(config).actor)
        >>> batch = TensorDict({"observation": torch.randn(4, 39), "action": torch.rand(4, 4)}, [4])
        >>> sorted(loss(batch).keys())
        ['bc', 'loss_actor']
    """

    actor_network: TensorDictModule
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(
        self, prompt_network: TensorDictModule | None, actor_network: TensorDictModule
    ) -> None:
        if prompt_network is not None:
            actor_network = TensorDictSequential(prompt_network, actor_network)
        super().__init__(actor_network, loss_function="l2")
        self.out_keys = ["loss_actor", "bc"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The loss of a batch, and it again as a number to log."""
        loss = super().forward(tensordict)["loss_bc"]
        return TensorDict({"loss_actor": loss, "bc": loss.detach()})
