"""Behaviour cloning, TD3+BC, IQL and CQL on TorchRL's losses, on this package's networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, TensorDictSequential
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.modules import ValueOperator
from torchrl.modules.distributions.utils import rsample_and_log_prob
from torchrl.objectives import BCLoss, CQLLoss, IQLLoss, LossModule, TD3BCLoss

from llmdpd_torchrl.modules.actors.direct import GaussianActor
from llmdpd_torchrl.utils.settings import Count, NonNegative, Positive, Size

#: TorchRL's names of what TD3+BC logs, and this library's.
_METRICS = {"bc_loss": "bc", "pred_value": "q_value", "target_value": "target_value"}
#: The likelihood of a squashed Gaussian has no bound at -1 and 1, where many actions are.
_INSIDE = 1.0 - 1e-3


def _apply(
    loss: LossModule,
    forward: Callable[[TensorDictBase], TensorDictBase],
    tensordict: TensorDictBase,
) -> tuple[TensorDictBase, TensorDictBase]:
    """TorchRL's losses of a batch, and the copy that they were computed of.

    Its numbers are of the networks' type, and its flags are bool. The batch gets the priorities.
    """
    data, keys = tensordict.copy(), loss.tensor_keys
    dtype = next(loss.parameters()).dtype
    flags = [unravel_key(("next", key)) for key in (keys.done, keys.terminated)]
    for key in map(unravel_key, loss.in_keys):
        value = data.get(key, None)
        if value is not None and (key in flags or value.is_floating_point()):
            data.set(key, value.to(torch.bool if key in flags else dtype))
    losses = forward(data)
    tensordict.set(keys.priority, data.get(keys.priority))
    return losses, data


class BehaviourCloning(BCLoss):
    """TorchRL's :class:`~torchrl.objectives.BCLoss` behind a prompt encoder, if there is one.

    Args:
        prompt_network: see :class:`~llmdpd_torchrl.objectives.LLMDPDLoss`; ``None`` for none.
        actor_network: deterministic.

    Examples:
        >>> import torch
        >>> from llmdpd_torchrl.modules import NetworkConfig, make_networks
        >>> config = NetworkConfig(prompt="none", actor="deterministic", hidden=[8])
        >>> loss = BehaviourCloning(None, make_networks(config).actor)
        >>> batch = TensorDict({"observation": torch.randn(4, 39), "action": torch.rand(4, 4)}, [4])
        >>> sorted(loss(batch).keys())
        ['bc', 'loss_actor']
    """

    @dataclass
    class _AcceptedKeys(BCLoss._AcceptedKeys):
        expert_action: NestedKey | None = None  # what the actor imitates; None: ``action``

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
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
        """The loss of a batch, and the same detached, to log."""
        keys = self.tensor_keys
        if keys.expert_action is not None:
            tensordict = tensordict.copy().set(keys.action, tensordict[keys.expert_action])
        loss = super().forward(tensordict)["loss_bc"]
        return TensorDict({"loss_actor": loss, "bc": loss.detach()})


class TD3BC(TD3BCLoss):
    """TorchRL's :class:`~torchrl.objectives.TD3BCLoss`; the actor is updated every second batch.

    Args:
        actor_network: deterministic, without a prompt.
        qvalue_network: two critics.
        actor_every: batches per update of the actor (TD3's policy delay).
        alpha, policy_noise, noise_clip, deactivate_vmap: see TorchRL's.

    Examples:
        >>> from llmdpd_torchrl.modules import NetworkConfig, make_networks
        >>> config = NetworkConfig(prompt="none", actor="deterministic", hidden=[8])
        >>> networks = make_networks(config)
        >>> TD3BC(networks.actor, networks.qvalues, alpha=1.0).alpha
        1.0
    """

    batches: Tensor

    def __init__(
        self,
        actor_network: TensorDictModule,
        qvalue_network: Sequence[TensorDictModule],
        *,
        actor_every: Size = 2,
        alpha: NonNegative = 2.5,
        policy_noise: NonNegative = 0.2,
        noise_clip: NonNegative = 0.5,
        deactivate_vmap: bool = False,
    ) -> None:
        super().__init__(
            actor_network,
            list(qvalue_network),
            bounds=(-1.0, 1.0),
            alpha=alpha,
            policy_noise=policy_noise,
            noise_clip=noise_clip,
            loss_function="l2",
            deactivate_vmap=deactivate_vmap,
        )
        self.out_keys = ["loss_actor", "loss_qvalue", *_METRICS.values()]
        self.actor_every = actor_every
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The losses of a batch; the actor's has no gradient in batches that do not update it."""
        losses, _ = _apply(self, super().forward, tensordict)
        found = {name: losses[key].detach().mean() for key, name in _METRICS.items()}
        self.batches += 1
        actor = losses["loss_actor"]
        found["loss_actor"] = actor.detach() if self.batches % self.actor_every else actor
        return TensorDict({**found, "loss_qvalue": losses["loss_qvalue"]})


class IQL(IQLLoss):
    """TorchRL's :class:`~torchrl.objectives.IQLLoss` with a state value of the actor's shape.

    Args:
        actor_network: a Gaussian whose deviation does not depend on the state, without a prompt.
        qvalue_network: two critics.
        temperature: inverse temperature of the advantage; the paper's is 3 on locomotion.
        expectile: of the value regression; the paper's is 0.7 there.
        deactivate_vmap: evaluate the critics in a loop.

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
        temperature: Positive = 3.0,
        expectile: Annotated[float, Field(gt=0, lt=1)] = 0.7,
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
            loss_function="l2",
            deactivate_vmap=deactivate_vmap,
        )
        self.out_keys = ["loss_actor", "loss_qvalue", "loss_value", "bc"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The losses of a batch; ``bc`` is the data's mean negative log-likelihood."""
        losses, _ = _apply(self, super().forward, tensordict)
        # TorchRL's name for the likelihood of the data's actions.
        bc = losses.pop("entropy")
        return TensorDict({**losses, "bc": bc})


class CQL(CQLLoss):
    """TorchRL's :class:`~torchrl.objectives.CQLLoss`: SAC whose critics stay low off the data.

    The conservative term is our own, because TorchRL's departs from the paper in two ways: it
    values the actions that the policy takes in the next state there instead of here, and takes the
    log-sum-exp over one action of each source, the mean of which over the samples is less.

    Args:
        actor_network: a squashed Gaussian, without a prompt.
        qvalue_network: two critics.
        cloning_updates: batches of behaviour cloning before the actor follows the critics.
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
        cloning_updates: Count = 1000,
        min_q_weight: NonNegative = 5.0,
        num_random: Size = 10,
        alpha_init: Positive = 1.0,
        temperature: Positive = 1.0,
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
        """The losses of a batch; the actor's is cloning at first, and then the critics'."""
        losses, data = _apply(self, super().forward, tensordict)
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
        own, log_own = self._sample(tensordict)
        following, log_following = self._sample(tensordict.get("next"))
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
    def _sample(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
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
