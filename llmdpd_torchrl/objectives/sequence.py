"""The base of losses of policies that read sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, dispatch
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.envs.utils import ExplorationType
from torchrl.objectives.common import LossModule

from llmdpd_torchrl.objectives.llmdpd import REDUCTIONS
from llmdpd_torchrl.utils.errors import ConfigError, DataError


class SequenceLoss(LossModule):
    """The error of a sequence of actions, averaged over the valid steps of a row.

    Subclasses define the error, :meth:`_errors`, and the keys that they read beside those of the
    actor, :attr:`data_keys`. The output has ``loss_actor`` and, detached, ``bc``: the same number,
    under the name that the logs of all algorithms share. Floating-point entries are cast to the
    actor's precision.

    Args:
        actor_network: the module to be trained.

    Keyword Args:
        reduction (str): ``"none"`` | ``"mean"`` | ``"sum"``, over rows.

    Raises:
        ConfigError: on an unknown reduction.
        DataError: if the batch lacks a key.

    Examples:
        >>> import torch
        >>> class Still(SequenceLoss):
        ...     data_keys = ("plan", "plan_mask")
        ...     def _errors(self, data):
        ...         plan = self.actor_network(data)["plan"]
        ...         return (plan - data["future", "action"]).square(), data["future", "mask"]
        >>> module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Unflatten(-1, (4, 2)))
        >>> loss = Still(TensorDictModule(module, in_keys=["observation"], out_keys=["plan"]))
        >>> future = {"action": torch.zeros(5, 4, 2), "mask": torch.ones(5, 4).bool()}
        >>> batch = TensorDict({"observation": torch.randn(5, 3), "future": future}, [5])
        >>> sorted(loss(batch).keys())
        ['bc', 'loss_actor']
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that :meth:`set_keys` can rename.

        Attributes:
            action: the present action [*, A].
            history_action, history_mask: those of the steps before, [*, H, A] and [*, H].
            plan, plan_mask: the next actions [*, F, A] and whether they exist, [*, F].
            priority_weight: the rows' importance weights.
        """

        action: NestedKey = "action"
        history_action: NestedKey = ("history", "action")
        history_mask: NestedKey = ("history", "mask")
        plan: NestedKey = ("future", "action")
        plan_mask: NestedKey = ("future", "mask")
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    default_value_estimator = None
    deterministic_sampling_mode = ExplorationType.RANDOM
    #: Fields of the accepted keys that a subclass reads.
    data_keys: tuple[str, ...] = ()
    out_keys = ["loss_actor", "bc"]  # noqa: RUF012 (TorchRL's convention)

    actor_network: TensorDictModule
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: TensorDictModule,
        *,
        reduction: Literal["none", "mean", "sum"] = "mean",
    ) -> None:
        if reduction not in REDUCTIONS:
            raise ConfigError(f"reduction is {reduction!r}: use {' or '.join(REDUCTIONS)}")
        super().__init__()
        self.convert_to_functional(actor_network, "actor_network")
        self.reduction = reduction
        self._set_in_keys()

    def _set_in_keys(self) -> None:
        keys = [getattr(self.tensor_keys, name) for name in self.data_keys]
        self.in_keys = list(dict.fromkeys([*keys, *self.actor_network.in_keys]))

    def _forward_value_estimator_keys(self, **kwargs: object) -> None:
        self._set_in_keys()  # the hook that set_keys ends with

    def _errors(self, data: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Squared errors [*, n, A] and the mask [*, n] of those that count."""
        raise NotImplementedError

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the loss; see ``in_keys`` and ``out_keys``."""
        data = tensordict.copy()
        dtype = next(self.actor_network_params.parameters()).dtype
        for key in self.in_keys:
            value = data.get(key, None)
            if value is None:
                raise DataError(
                    f"the batch has no {key!r}, which {type(self).__name__} reads: add it to the "
                    "data (HistoryTransform, TrajectoryPromptTransform), or rename it with set_keys"
                )
            if value.is_floating_point():
                data.set(key, value.to(dtype))
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            errors, mask = self._errors(data)
        weight = mask.to(errors.dtype)
        # A row without valid steps counts as 0, not as NaN.
        row = (errors.mean(-1) * weight).sum(-1) / weight.sum(-1).clamp_min(1.0)
        loss = self._reduce_loss(row, data, weights=self._maybe_get_priority_weight(data))
        self._clear_weakrefs(tensordict, data, "actor_network_params")
        return TensorDict({"loss_actor": loss, "bc": loss.detach()})
