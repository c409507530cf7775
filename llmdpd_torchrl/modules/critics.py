"""Critics Q(s, a, z)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.modules import ValueOperator
from torchrl.objectives import two_hot_decode

from llmdpd_torchrl.modules.denoiser import make_mlp
from llmdpd_torchrl.utils.errors import ConfigError


class QValueNetwork(nn.Module):
    """An MLP over the concatenated observation, action and, where there is one, prompt embedding.

    Args:
        in_features (int): summed width of the inputs, the observation's after
            ``observation_module``, or of the action and what the ``conditioner`` makes.
        hidden (sequence of int): widths of the hidden layers.
        activation (str): one of :data:`~llmdpd_torchrl.modules.ACTIVATIONS`.
        observation_module (nn.Module, optional): applied to the observation first, for instance a
            normaliser.
        conditioner (nn.Module, optional): maps all inputs but the action to one vector, like an
            actor's; instead of ``observation_module``.
        layer_norm (bool): normalise each hidden layer, which keeps values of actions that are not
            in the data near those that are (Ball et al. 2023).
        bins (Tensor, optional): ascending values ``[n]``; the network then writes logits over them,
            and the value is their mean, which cannot leave the range (Farebrother et al. 2024).

    Examples:
        >>> critic = QValueNetwork(39 + 4 + 16)
        >>> critic(torch.randn(2, 39), torch.randn(2, 4), torch.randn(2, 16)).shape
        torch.Size([2, 1])
    """

    bins: Tensor | None

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (256, 256, 256),
        activation: str = "mish",
        observation_module: nn.Module | None = None,
        conditioner: nn.Module | None = None,
        *,
        layer_norm: bool = False,
        bins: Tensor | None = None,
    ) -> None:
        super().__init__()
        if conditioner is not None and observation_module is not None:
            raise ConfigError("give a critic a conditioner or an observation_module, not both")
        self.in_features = in_features
        self.observation_module = observation_module
        self.conditioner = conditioner
        width = 1 if bins is None else len(bins)
        self.mlp = make_mlp(in_features, hidden, width, activation, layer_norm=layer_norm)
        self.register_buffer("bins", bins)

    def forward(
        self, observation: Tensor, action: Tensor, *others: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the values, [*, 1], and with bins the logits, [*, n].

        Raises:
            ConfigError: if the inputs are not ``in_features`` wide together.
        """
        if self.conditioner is not None:
            observation, others = self.conditioner(observation, *others), ()
        elif self.observation_module is not None:
            observation = self.observation_module(observation)
        inputs = (observation, action, *others)
        widths = [value.shape[-1] for value in inputs]
        if sum(widths) != self.in_features:
            raise ConfigError(
                f"the critic was built for inputs of width {self.in_features}, but gets "
                f"{' + '.join(map(str, widths))} = {sum(widths)}: make its dimensions the data's"
            )
        output = self.mlp(torch.cat(inputs, dim=-1))
        if self.bins is None:
            return output
        return two_hot_decode(output, self.bins).unsqueeze(-1), output


def make_qvalue_networks(
    observation_dim: int,
    action_dim: int,
    prompt_dim: int = 0,
    *,
    num: int = 2,
    hidden: Sequence[int] = (256, 256, 256),
    activation: str = "mish",
    observation_module: nn.Module | None = None,
    conditioner: nn.Module | None = None,
    condition_keys: Sequence[NestedKey] = (),
    layer_norm: bool = False,
    bins: Tensor | None = None,
) -> list[TensorDictModule]:
    """Build ``num`` independently initialised critics for :class:`LLMDPDLoss`.

    Args:
        observation_dim (int): width of the observation, after ``observation_module``.
        action_dim (int): width of the action.
        prompt_dim (int): width of the prompt embedding; 0 for critics that read no prompt.

    Keyword Args:
        num (int): number of critics.
        hidden, activation, layer_norm, bins: see :class:`QValueNetwork`.
        observation_module (nn.Module, optional): each critic gets its own copy.
        conditioner (nn.Module, optional): each critic gets its own copy, see
            :class:`QValueNetwork`. ``observation_dim`` is then the width of its output.
        condition_keys (sequence of NestedKey): entries that the conditioner reads besides the
            observation.

    Returns:
        modules from ``observation``, ``action`` (and ``prompt_embedding``) to
        ``state_action_value`` [*, 1]; with bins also to ``state_action_logits`` [*, n].

    Examples:
        >>> [critic.out_keys for critic in make_qvalue_networks(39, 4, 16)]
        [['state_action_value'], ['state_action_value']]
    """
    in_keys: list[NestedKey] = ["observation", "action", *condition_keys]
    if prompt_dim:
        in_keys.append("prompt_embedding")
    in_features = observation_dim + action_dim + prompt_dim
    out_keys = ["state_action_value"] + ["state_action_logits"] * (bins is not None)
    return [
        ValueOperator(
            QValueNetwork(
                in_features,
                hidden,
                activation,
                copy.deepcopy(observation_module),
                copy.deepcopy(conditioner),
                layer_norm=layer_norm,
                bins=None if bins is None else bins.clone(),
            ),
            in_keys=in_keys,
            out_keys=out_keys,
        )
        for _ in range(num)
    ]


def share_critics(critics: Sequence[TensorDictModule], params: TensorDictBase) -> None:
    """Make the critics' parameters views of a loss's stacked ones, which updates change in place.

    Args:
        critics: that a policy acts by.
        params: the loss's, a row for each critic, such as ``loss.target_qvalue_network_params``.

    Examples:
        >>> from llmdpd_torchrl.modules import DiffusionActor
        >>> from llmdpd_torchrl.objectives import DiffusionQLLoss
        >>> critics = make_qvalue_networks(3, 2, hidden=(8,))
        >>> loss = DiffusionQLLoss(DiffusionActor(2, 3, in_keys=["observation"]), critics)
        >>> share_critics(critics, loss.target_qvalue_network_params)
        >>> _ = loss.target_qvalue_network_params.data.zero_()
        >>> max(p.abs().max().item() for p in critics[1].parameters())
        0.0
    """
    for critic, values in zip(critics, params.data.unbind(0), strict=True):
        for name, _ in list(critic.named_parameters()):
            path, _, leaf = name.rpartition(".")
            view = nn.Parameter(values[tuple(name.split("."))], requires_grad=False)
            critic.get_submodule(path).register_parameter(leaf, view)
