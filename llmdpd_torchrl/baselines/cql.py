"""Conservative Q-learning (Kumar et al. 2020), on TorchRL's loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.modules.distributions.utils import rsample_and_log_prob
from torchrl.objectives import CQLLoss

from llmdpd_torchrl.modules.actors.direct import GaussianActor

__all__ = ["CQL"]

#: The likelihood of a squashed Gaussian has no bound at -1 and 1, where many actions are.
_INSIDE = 1.0 - 1e-3


class CQL(CQLLoss):
    """TorchRL's :class:`~torchrl.objectives.CQLLoss`: SAC whose critics stay low off the data.

    The conservative term is our own, because TorchRL's departs from the paper in two ways: it
    values the actions that the policy takes in the next state there instead of here, and takes the
    log-sum-exp over one action of each source, the mean of which over the samples is less.

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

    def cql_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict]:
        """CQL(H), equation 4 with the sampling of the paper's appendix F.

        All actions, N each of the uniform distribution, of the policy here and of the policy in
        the next state, are valued *here*, and their 3 N values go into one log-sum-exp.
        """
        keys = self.tensor_keys
        own, log_own = self._drawn(tensordict)
        following, log_following = self._drawn(tensordict.get("next"))
        uniform = torch.empty_like(own).uniform_(-1.0, 1.0)
        log_uniform = torch.full_like(log_own, -own.shape[-1] * math.log(2.0))
        actions = torch.cat([uniform, own, following])  # [3 N, B, A]
        log_densities = torch.cat([log_uniform, log_own, log_following])
        shape = (self.num_qvalue_nets, *log_densities.shape)
        offered = tensordict.select(*self.actor_network.in_keys).expand(shape)
        offered = offered.set(keys.action, actions.expand(*shape, -1))
        offered = self._vmap_qvalue_network00(offered, self.qvalue_network_params)
        values = offered.get(keys.state_action_value).squeeze(-1) - log_densities  # [2, 3 N, B]
        above = self.temperature * torch.logsumexp(values / self.temperature, dim=1)
        of_data = torch.stack([tensordict.get(keys.pred_q1), tensordict.get(keys.pred_q2)])
        gaps = self.min_q_weight * (above - of_data.squeeze(-1))
        tensordict.set(keys.cql_q1_loss, gaps[0])
        tensordict.set(keys.cql_q2_loss, gaps[1])
        return self._reduce_loss(gaps.sum(0), tensordict=tensordict), {}

    @torch.no_grad()
    def _drawn(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Actions [N, B, A] of the policy in these states, and their log-densities [N, B]."""
        with self.actor_network_params.to_module(self.actor_network):
            distribution = self.actor_network.get_dist(tensordict)
        return rsample_and_log_prob(distribution, (self.num_random,))

    def actor_bc_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict]:
        """TorchRL's, with actions inside the range."""
        data = tensordict.copy()
        action = data.get(self.tensor_keys.action)
        return super().actor_bc_loss(
            data.set(self.tensor_keys.action, action.clamp(-_INSIDE, _INSIDE))
        )
