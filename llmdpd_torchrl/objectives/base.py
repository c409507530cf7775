"""What surrounds the equations: networks, keys, the prompt's route, the value estimator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey, expand_as_right, unravel_key
from torch import Tensor
from torchrl.envs.utils import ExplorationType
from torchrl.modules import ValueOperator
from torchrl.objectives.common import LossModule
from torchrl.objectives.utils import (
    ValueEstimators,
    _cache_values,
    _vmap_func,
    dispatch_value_estimator,
)
from torchrl.objectives.value import ValueEstimatorBase

from llmdpd_torchrl.objectives.checks import (
    check_action,
    check_bounds,
    check_columns,
    check_discount,
    check_finite,
    check_losses,
    check_names,
)
from llmdpd_torchrl.objectives.process import DiffusionProcess, diffusion_process
from llmdpd_torchrl.utils.errors import ConfigError, DataError

__all__ = ["PromptedActorCriticLoss"]

#: How a loss's rows become its value.
REDUCTIONS = ("none", "mean", "sum")


class PromptedActorCriticLoss(LossModule):
    """A prompt encoder, a diffusion actor and two or more critics, as functional networks.

    Subclasses state the losses. This class makes the networks functional, with targets for actor
    and critics, and tells subclasses how to read a batch: :meth:`_prepare` checks it and encodes
    the prompt, :meth:`_read` gets an entry of s or s', :meth:`_condition` and :meth:`_values` are
    what actor and critics see and say.

    The prompt belongs to the task: its entries and their embedding are read at the root of the
    batch for s and for s'.

    Args:
        prompt_network (TensorDictModule or None): see :class:`LLMDPDLoss`, as for all arguments.
        actor_network (TensorDictModule): a diffusion actor.
        qvalue_network (list of TensorDictModule): two critics or more.

    Keyword Args:
        reduction (str): ``"none"`` | ``"mean"`` | ``"sum"``.
        deactivate_vmap (bool): run the critics one after the other.
        use_prioritized_weights (bool or "auto"): weigh rows by ``priority_weight``.
        check_inputs (bool or "auto"): look for values that can not be right.

    Raises:
        ConfigError: on fewer than two critics or an unknown reduction.
        TypeError: if ``qvalue_network`` is no list or ``actor_network`` no diffusion actor.

    Examples:
        >>> from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
        >>> actor = DiffusionActor(action_dim=2, condition_dim=3, in_keys=["observation"])
        >>> loss = PromptedActorCriticLoss(None, actor, make_qvalue_networks(3, 2))
        >>> loss.in_keys[:3]
        ['action', 'observation', ('next', 'observation')]
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that :meth:`set_keys` can rename.

        Attributes:
            action: the data's action, also the key under which the critics read one.
            prompt: root of the raw prompt's entries. They, like the embedding, belong to the task,
                so s' has none of its own: they are read at the root for s and s' alike.
            prompt_embedding: z, where the data holds it and no prompt network makes it.
            state_action_value: the critics' output.
            priority: where the priorities are written.
            priority_weight: the rows' importance weights.
            reward, done, terminated: read under ``"next"``.
        """

        action: NestedKey = "action"
        prompt: NestedKey = "prompt"
        prompt_embedding: NestedKey = "prompt_embedding"
        state_action_value: NestedKey = "state_action_value"
        priority: NestedKey = "td_error"
        priority_weight: NestedKey = "priority_weight"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    default_value_estimator = ValueEstimators.TD0
    SUPPORTED_VALUE_ESTIMATORS = (
        ValueEstimators.TD0,
        ValueEstimators.TD1,
        ValueEstimators.TDLambda,
    )
    # The losses' default, DETERMINISTIC, would start every row's chain from the same latent.
    deterministic_sampling_mode = ExplorationType.RANDOM

    prompt_network: TensorDictModule | None
    prompt_network_params: TensorDictParams | None
    target_prompt_network_params: TensorDictParams
    actor_network: TensorDictModule
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    qvalue_network: TensorDictModule
    qvalue_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams

    def __init__(
        self,
        prompt_network: TensorDictModule | None,
        actor_network: TensorDictModule,
        qvalue_network: Sequence[TensorDictModule],
        *,
        reduction: str = "mean",
        deactivate_vmap: bool = False,
        use_prioritized_weights: str | bool = "auto",
        check_inputs: str | bool = "auto",
    ) -> None:
        super().__init__()
        if not isinstance(qvalue_network, Sequence):
            raise TypeError(
                f"qvalue_network must be a list of critics, got {type(qvalue_network).__name__}"
            )
        if len(qvalue_network) < 2:
            raise ConfigError(
                f"qvalue_network has too few critics ({len(qvalue_network)}): clipped double Q "
                "needs two or more, which make_qvalue_networks builds"
            )
        check_names("reduction", [reduction], REDUCTIONS)
        if check_inputs not in ("auto", True, False):
            raise ConfigError(f'check_inputs is {check_inputs!r}: choose "auto", True or False')
        diffusion_process(actor_network)  # refuse any other actor here, not at the first batch
        if prompt_network is None:
            self.prompt_network = self.prompt_network_params = None
        else:
            self.convert_to_functional(prompt_network, "prompt_network")
        self.convert_to_functional(actor_network, "actor_network", create_target_params=True)
        self.convert_to_functional(
            list(qvalue_network), "qvalue_network", len(qvalue_network), create_target_params=True
        )
        self.num_qvalue_nets = len(qvalue_network)
        self.reduction = reduction
        self.deactivate_vmap = deactivate_vmap
        self.use_prioritized_weights = use_prioritized_weights
        self.check_inputs = check_inputs
        self._set_in_keys()
        self._make_vmap()
        self._default_value_estimator()  # now: its gamma is part of the state_dict

    def _make_vmap(self) -> None:
        self._vmap_qvalue_network = _vmap_func(
            self.qvalue_network,
            (None, 0),
            randomness=self.vmap_randomness,
        )

    @property
    def _process(self) -> DiffusionProcess:
        # Not an attribute: a module among the attributes would be registered, or reset, twice.
        return diffusion_process(self.actor_network)

    @property
    @_cache_values
    def _cached_detached_qvalue_params(self) -> TensorDictBase:
        return self.qvalue_network_params.data  # .detach() would outlive a cast of the loss

    # ------------------------------------------------------------------ keys and estimator

    def _set_in_keys(self) -> None:
        keys = self.tensor_keys
        made: list[NestedKey] = []
        read: list[NestedKey] = [keys.action, *self.actor_network.in_keys]
        read += [key for key in self.qvalue_network.in_keys if key not in read]
        if self.prompt_network is not None:
            made = list(self.prompt_network.out_keys)
            read += [key for key in self.prompt_network.in_keys if key not in read]
        self._prompt_keys = frozenset(
            key
            for key in read
            if key in made or key == keys.prompt_embedding or _is_below(key, keys.prompt)
        )
        following = [
            key
            for key in dict.fromkeys([*self.actor_network.in_keys, *self.qvalue_network.in_keys])
            if key not in self._prompt_keys and key != keys.action
        ]
        flags = [keys.reward, keys.done, keys.terminated]
        self._column_keys = [unravel_key(("next", key)) for key in flags]
        self._root_keys = [key for key in read if key not in made]
        self._next_keys = [unravel_key(("next", key)) for key in following] + self._column_keys
        self._in_keys = self._root_keys + self._next_keys

    @property
    def in_keys(self) -> list[NestedKey]:
        """Keys the loss reads: the data's, what the networks need, and their successors."""
        return self._in_keys

    @in_keys.setter
    def in_keys(self, values: list[NestedKey]) -> None:
        self._in_keys = values

    def _value_estimator_keys(self) -> dict[str, NestedKey]:
        return {
            "value": self.tensor_keys.state_action_value,
            "reward": self.tensor_keys.reward,
            "done": self.tensor_keys.done,
            "terminated": self.tensor_keys.terminated,
        }

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        if self._value_estimator is not None:
            self._value_estimator.set_keys(**self._value_estimator_keys())
        self._set_in_keys()

    def make_value_estimator(
        self,
        value_type: ValueEstimators | ValueEstimatorBase | type | None = None,
        **hyperparams: Any,
    ) -> None:
        """Choose the estimator of y and its ``gamma``, a number in [0, 1].

        GAE and V-trace, which need a state value and the behaviour's likelihood, are refused with
        :class:`NotImplementedError`.

        Raises:
            ConfigError: if ``gamma`` is not in [0, 1].
        """
        if value_type is None:
            value_type = self.default_value_estimator
        gamma = hyperparams.get("gamma", getattr(value_type, "gamma", None))
        if gamma is not None:
            check_discount(gamma)
        if isinstance(value_type, ValueEstimatorBase) or (
            isinstance(value_type, type) and issubclass(value_type, ValueEstimatorBase)
        ):
            LossModule.make_value_estimator(self, value_type, **hyperparams)
            self._forward_value_estimator_keys()
            return
        dispatch_value_estimator(
            self,
            value_type,
            supported=self.SUPPORTED_VALUE_ESTIMATORS,
            tensor_keys=self._value_estimator_keys(),
            value_network=None,  # the next value is put into the data by the subclass
            **hyperparams,
        )

    # ------------------------------------------------------------------ the batch

    def _prepare(self, tensordict: TensorDictBase, *, following: bool = True) -> TensorDictBase:
        """A shallow copy of the checked input with z in it; ``following`` says if s' is read."""
        self._check_batch(tensordict, following=following)
        data = tensordict.copy()
        params = self.prompt_network_params
        if self.prompt_network is not None and params is not None:
            with params.to_module(self.prompt_network, preserve_module_state=False):
                data = self.prompt_network(data)
        return data

    def _check_batch(self, data: TensorDictBase, *, following: bool) -> None:
        keys = self._root_keys + self._next_keys if following else self._root_keys
        # What a prompt network makes of a missing entry is its own affair.
        optional = self._prompt_keys if self.prompt_network is not None else ()
        batch = {key: data.get(key) if key in optional else self._get(data, key) for key in keys}
        action = batch[self.tensor_keys.action]
        check_action(self.tensor_keys.action, action, self._process.action_dim)
        if following:
            check_columns({key: batch[key] for key in self._column_keys}, action.shape[:-1])
        if not self._looks_at_values(action):
            return
        for key, value in batch.items():
            if isinstance(value, Tensor):
                check_finite(key, value)
        bounds = self._process.action_bounds
        if bounds is not None:
            check_bounds(self.tensor_keys.action, action, bounds)

    def _check_losses(self, **losses: Tensor) -> None:
        if any(self._looks_at_values(loss) for loss in losses.values()):
            check_losses(**losses)

    def _looks_at_values(self, tensor: Tensor) -> bool:
        """Whether values may be looked at: a graph can not, and a device would have to wait."""
        if torch.compiler.is_compiling():
            return False
        if self.check_inputs == "auto":
            return tensor.device.type == "cpu"
        return bool(self.check_inputs)

    def _get(self, data: TensorDictBase, key: NestedKey) -> Tensor:
        value = data.get(key, default=None)
        if value is None:
            raise DataError(
                f"the batch has no {key!r}, which {type(self).__name__} reads: add it to the data, "
                "or rename it with set_keys or the networks' in_keys"
            )
        return value

    def _read(
        self,
        data: TensorDictBase,
        key: NestedKey,
        *,
        following: bool = False,
        attached: bool = True,
    ) -> Tensor:
        """Get ``key`` of s, or of s' if ``following``; what belongs to the prompt has only one."""
        is_prompt = key in self._prompt_keys
        if following and not is_prompt:
            key = unravel_key(("next", key))
        value = self._get(data, key)
        return value.detach() if is_prompt and not attached else value

    def _condition(
        self, data: TensorDictBase, *, following: bool = False, attached: bool = True
    ) -> Tensor:
        """What the actor sees: [*, C]."""
        inputs = [
            self._read(data, key, following=following, attached=attached)
            for key in self.actor_network.in_keys
        ]
        return self._process.condition(*inputs)

    def _values(
        self,
        params: TensorDictBase,
        data: TensorDictBase,
        action: Tensor,
        *,
        following: bool = False,
        attached: bool = True,
        copies: int = 1,
    ) -> Tensor:
        """Values of ``action`` [*, A] by the N critics in ``params``: [N, *].

        With ``copies`` above 1 each state has that many actions: [copies, *, A].
        """
        inputs = {self.tensor_keys.action: action}
        for key in self.qvalue_network.in_keys:
            if key == self.tensor_keys.action:
                continue
            value = self._read(data, key, following=following, attached=attached)
            inputs[key] = value if copies == 1 else value.expand(copies, *value.shape)
        batch = TensorDict(inputs, batch_size=action.shape[:-1])
        if not self.deactivate_vmap:
            values = self._vmap_qvalue_network(batch, params)
            return values.get(self.tensor_keys.state_action_value).squeeze(-1)
        # Not TorchRL's pseudo-vmap: it edits the registry of pytree nodes in every call, which
        # costs a millisecond and makes a compiled loss compile anew each time.
        return torch.stack([self._value(batch, part) for part in params.unbind(0)]).squeeze(-1)

    def _value(self, batch: TensorDictBase, params: TensorDictBase) -> Tensor:
        """Values of one critic: [*, 1]."""
        network = self.qvalue_network
        with params.to_module(network, preserve_module_state=False):
            if self._is_plain(network):
                # Like the actor's, the inner module is called directly: packing its one output into
                # a TensorDict takes longer than a small layer.
                return network.module(*(batch.get(key) for key in network.in_keys))
            return network(batch.copy()).get(self._value_key)

    def _is_plain(self, network: TensorDictModule) -> bool:
        """Whether calling ``network`` is calling its inner module on its ``in_keys``."""
        return (
            type(network) in (TensorDictModule, ValueOperator)
            and network.out_keys == [self._value_key]
            and network.method is None
            and network._kwargs is None
        )

    @property
    def _value_key(self) -> NestedKey:
        return self.tensor_keys.state_action_value

    # ------------------------------------------------------------------ the output

    def _reduce_elements(self, elements: Tensor, data: TensorDictBase) -> Tensor:
        """Reduce [*, A]: the mean over all entries, or over A and then as ``reduction`` says."""
        weights = self._maybe_get_priority_weight(data)
        if self.reduction != "mean":
            return self._reduce_loss(elements.mean(-1), data, weights=weights)
        if weights is not None:
            weights = expand_as_right(weights, elements)
        return self._reduce_loss(elements, data, weights=weights)

    def _forget(self, *tensordicts: TensorDictBase) -> None:
        """Drop weak references that torch.compile can not rebuild."""
        self._clear_weakrefs(
            *tensordicts,
            "prompt_network_params",
            "actor_network_params",
            "qvalue_network_params",
            "target_actor_network_params",
            "target_qvalue_network_params",
        )


def _is_below(key: NestedKey, root: NestedKey) -> bool:
    path = (key,) if isinstance(key, str) else key
    prefix = (root,) if isinstance(root, str) else root
    return path[: len(prefix)] == prefix
