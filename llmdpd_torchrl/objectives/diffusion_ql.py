"""Diffusion-QL: the objective of LLM-Driven Policy Diffusion where there is no prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensordict.nn import TensorDictModule

from llmdpd_torchrl.objectives.llmdpd import LLMDPDLoss

__all__ = ["DiffusionQLLoss"]


class DiffusionQLLoss(LLMDPDLoss):
    r"""Diffusion-QL (Wang et al. 2023): :class:`LLMDPDLoss` without a prompt.

    Args:
        actor_network (TensorDictModule): a diffusion actor with ``in_keys=["observation"]``.
        qvalue_network (list of TensorDictModule): two critics or more.

    Keyword Args:
        **kwargs: those of :class:`LLMDPDLoss`; ``lmbda`` is the paper's η.

    Examples:
        >>> from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
        >>> actor = DiffusionActor(action_dim=2, condition_dim=3, in_keys=["observation"])
        >>> loss = DiffusionQLLoss(actor, make_qvalue_networks(3, 2), lmbda=1.0)
        >>> loss.in_keys[:3]
        ['action', 'observation', ('next', 'observation')]
    """

    def __init__(
        self,
        actor_network: TensorDictModule,
        qvalue_network: Sequence[TensorDictModule],
        **kwargs: Any,
    ) -> None:
        super().__init__(None, actor_network, qvalue_network, **kwargs)
