"""The objective of LLM-Driven Policy Diffusion; Diffusion-QL is its prompt-free case."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, dispatch
from tensordict.utils import NestedKey, expand_as_right, unravel_key
from torch import Tensor
from torchrl.envs.utils import ExplorationType
from torchrl.objectives.common import LossModule
from torchrl.objectives.utils import (
    ValueEstimators,
    _cache_values,
    _vmap_func,
    dispatch_value_estimator,
)
from torchrl.objectives.value import ValueEstimatorBase

from llmdpd_torchrl.errors import ConfigError, DataError
from llmdpd_torchrl.objectives.process import DiffusionProcess, diffusion_process

__all__ = [
    "GUIDANCE_MODES",
    "PROMPT_GRADIENTS",
    "Q_NORMALIZATIONS",
    "DiffusionQLLoss",
    "LLMDPDLoss",
]

#: How the action that the critics judge is made.
GUIDANCE_MODES = ("chain", "one_step")
#: What a value is divided by in the guidance term.
Q_NORMALIZATIONS = ("cross", "own", "none")
#: The terms whose gradient may reach the prompt encoder.
PROMPT_GRADIENTS = ("diffusion", "qvalue", "guidance")


class _Noised(NamedTuple):
    """One noised forward pass of the denoiser, shared by L_d and one-step guidance."""

    condition: Tensor
    step: Tensor
    noisy: Tensor
    output: Tensor
    squared_error: Tensor


class LLMDPDLoss(LossModule):
    r"""Prompt-conditioned diffusion behaviour cloning with Q guidance, and the critics' TD loss.

    From `"LLM-Driven Policy Diffusion" <https://arxiv.org/abs/2509.00347>`_. With z the embedding
    of the task's prompt,

    .. math::
        L_d &= E_{k, \epsilon, (s, a)} \|\epsilon - \epsilon_\theta(a_k, k, s, z)\|^2 \\
        L_r &= E_{s, a^0 \sim \pi_\theta(\cdot|s, z)} Q_i(s, a^0, z)
               \;/\; \mathrm{stopgrad}\, E|Q_j(s, a^0, z)| \\
        L_{actor} &= L_d - \lambda L_r \\
        L_{qvalue} &= \sum_j E\,(Q_j(s, a, z) - y)^2, \quad
        y = r + \gamma (1 - terminated) \min_j Q'_j(s', a', z), \; a' \sim \pi'_{\theta'}(s', z).

    The squared norm is averaged over the action's dimensions, as in Diffusion-QL. z is encoded once
    per forward and serves actor, critics and both target networks; the prompt of s' is that of s.

    The gradient that reaches the prompt encoder comes from the terms named in ``prompt_gradient``.
    The z that the critics read in L_r is always detached: an encoder could otherwise raise Q by
    changing what Q is told instead of what the policy does.

    Args:
        prompt_network (TensorDictModule or None): the prompt encoder. ``None`` if there is no
            prompt or if its embedding is in the data already.
        actor_network (TensorDictModule): :class:`~llmdpd_torchrl.modules.DiffusionActor`, or
            TorchRL's.
        qvalue_network (list of TensorDictModule): the critics, usually two. A list, because TorchRL
            draws new weights for copies of a single one.

    Keyword Args:
        lmbda (float or Tensor): λ ≥ 0, a buffer: assign to ``loss.lmbda`` to schedule it. While it
            is 0 the actor is trained by pure behaviour cloning, bit for bit, and L_r is not
            computed.
        guidance (str): ``"chain"`` differentiates Q through all reverse steps (Diffusion-QL).
            ``"one_step"`` judges the clean action behind L_d's own noised forward pass (EDP, Kang
            et al. 2023), without another run of the denoiser.
        q_normalization (str): ``"cross"`` divides Q_i, i random, by another critic's mean
            magnitude; ``"own"`` by its own; ``"none"`` by nothing.
        prompt_gradient (sequence of str, optional): some of :data:`PROMPT_GRADIENTS`. Defaults to
            ``("diffusion", "qvalue")``; with ``"one_step"`` guidance, ``"guidance"`` shares the
            forward pass of ``"diffusion"`` and so must be given with it, and is by default.
        max_q_backup (int): candidates a' per next state, of which each target critic's best counts.
            0 and 1 mean a single one.
        target_sampling_steps (int, optional): reverse steps of a', if fewer than the actor's.
        reduction (str): ``"none"`` | ``"mean"`` | ``"sum"``.
        deactivate_vmap (bool): run the critics one after the other instead of under vmap.
        use_prioritized_weights (bool or "auto"): weigh rows by ``priority_weight``.

    γ and the estimator are set by :meth:`make_value_estimator` (TD(0), γ = 0.99 by default).

    Besides the two losses the output holds detached scalars: ``bc`` (L_d), ``guidance`` (L_r, 0
    while λ is 0), ``lmbda``, ``q_value`` and ``target_value`` (batch means). They do not start with
    "loss", since trainers sum what does. Priorities are written to ``td_error`` in the input.

    Raises:
        ConfigError: on an unknown name or combination.
        DataError: if the batch lacks a key.

    Examples:
        >>> from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
        >>> prompt = TensorDictModule(
        ...     torch.nn.Linear(6, 5), in_keys=[("prompt", "text")], out_keys=["prompt_embedding"]
        ... )
        >>> actor = DiffusionActor(action_dim=2, condition_dim=3 + 5)
        >>> loss = LLMDPDLoss(prompt, actor, make_qvalue_networks(3, 2, 5), lmbda=0.1)
        >>> data = TensorDict(
        ...     {
        ...         "observation": torch.randn(4, 3),
        ...         "action": torch.rand(4, 2) * 2 - 1,
        ...         ("prompt", "text"): torch.randn(4, 6),
        ...         ("next", "observation"): torch.randn(4, 3),
        ...         ("next", "reward"): torch.randn(4, 1),
        ...         ("next", "done"): torch.zeros(4, 1, dtype=torch.bool),
        ...         ("next", "terminated"): torch.zeros(4, 1, dtype=torch.bool),
        ...     },
        ...     [4],
        ... )
        >>> sorted(loss(data).keys())
        ['bc', 'guidance', 'lmbda', 'loss_actor', 'loss_qvalue', 'q_value', 'target_value']

    Without TensorDicts, the input keys are keyword arguments, joined by underscores where nested:

    Examples:
        >>> _ = loss.select_out_keys("loss_actor", "loss_qvalue")
        >>> loss_actor, loss_qvalue = loss(
        ...     observation=torch.randn(4, 3),
        ...     action=torch.rand(4, 2) * 2 - 1,
        ...     prompt_text=torch.randn(4, 6),
        ...     next_observation=torch.randn(4, 3),
        ...     next_reward=torch.randn(4, 1),
        ...     next_done=torch.zeros(4, 1, dtype=torch.bool),
        ...     next_terminated=torch.zeros(4, 1, dtype=torch.bool),
        ... )
        >>> (loss_actor + loss_qvalue).backward()
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
    _schedulable_buffers = frozenset({"lmbda"})
    out_keys = [  # noqa: RUF012 (TorchRL's convention; select_out_keys sets it per instance)
        "loss_actor",
        "loss_qvalue",
        "bc",
        "guidance",
        "lmbda",
        "q_value",
        "target_value",
    ]

    prompt_network: TensorDictModule | None
    prompt_network_params: TensorDictParams | None
    target_prompt_network_params: TensorDictParams
    actor_network: TensorDictModule
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    qvalue_network: TensorDictModule
    qvalue_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams
    lmbda: Tensor

    def __init__(
        self,
        prompt_network: TensorDictModule | None,
        actor_network: TensorDictModule,
        qvalue_network: Sequence[TensorDictModule],
        *,
        lmbda: float | Tensor = 1.0,
        guidance: str = "chain",
        q_normalization: str = "cross",
        prompt_gradient: Sequence[str] | None = None,
        max_q_backup: int = 1,
        target_sampling_steps: int | None = None,
        reduction: str = "mean",
        deactivate_vmap: bool = False,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        super().__init__()
        if not isinstance(qvalue_network, Sequence):
            raise TypeError(
                f"qvalue_network must be a list of critics, got {type(qvalue_network).__name__}"
            )
        _check_names("guidance", [guidance], GUIDANCE_MODES)
        _check_names("q_normalization", [q_normalization], Q_NORMALIZATIONS)
        if q_normalization == "cross" and len(qvalue_network) < 2:
            raise ConfigError('q_normalization="cross" needs two critics: add one, or use "own"')
        if prompt_gradient is None:
            prompt_gradient = PROMPT_GRADIENTS[: 3 if guidance == "one_step" else 2]
        _check_names("prompt_gradient", prompt_gradient, PROMPT_GRADIENTS)
        if (
            prompt_network is not None
            and guidance == "one_step"
            and ("diffusion" in prompt_gradient) != ("guidance" in prompt_gradient)
        ):
            raise ConfigError(
                'with guidance="one_step", prompt_gradient must hold both "diffusion" and '
                '"guidance", or neither: the two terms share one forward pass'
            )
        if float(lmbda) < 0 or max_q_backup < 0:
            raise ConfigError(
                f"lmbda and max_q_backup can not be negative, got {float(lmbda)} and {max_q_backup}"
            )

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
        self.guidance = guidance
        self.q_normalization = q_normalization
        self.prompt_gradient = frozenset(prompt_gradient)
        self.num_target_actions = max(max_q_backup, 1)
        self.target_sampling_steps = target_sampling_steps
        self.reduction = reduction
        self.deactivate_vmap = deactivate_vmap
        self.use_prioritized_weights = use_prioritized_weights
        device = self._default_device
        self.register_coeff_buffer("lmbda", lmbda, device=device, dtype=torch.get_default_dtype())
        self._set_in_keys()
        self._make_vmap()
        self._default_value_estimator()  # now: its gamma is part of the state_dict

    # ------------------------------------------------------------------ keys and estimator

    def _make_vmap(self) -> None:
        self._vmap_qvalue_network = _vmap_func(
            self.qvalue_network,
            (None, 0),
            randomness=self.vmap_randomness,
            pseudo_vmap=self.deactivate_vmap,
        )

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
        following += [keys.reward, keys.done, keys.terminated]
        self._in_keys = [key for key in read if key not in made]
        self._in_keys += [unravel_key(("next", key)) for key in following]

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
        """Choose the estimator of y and its ``gamma``.

        GAE and V-trace, which need a state value and the behaviour's likelihood, are refused with
        :class:`NotImplementedError`.
        """
        if value_type is None:
            value_type = self.default_value_estimator
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
            value_network=None,  # the next value is put into the data below
            **hyperparams,
        )

    @property
    def _process(self) -> DiffusionProcess:
        # Not an attribute: a module among the attributes would be registered, or reset, twice.
        return diffusion_process(self.actor_network)

    # ------------------------------------------------------------------ lambda

    @property
    def guided(self) -> bool:
        """Whether λ is not 0, so that L_r takes part.

        The buffer is looked at only when it has changed: asking a device for a value at every
        update would stall it. A compiled loss can not look, so it always computes L_r.
        """
        if torch.compiler.is_compiling():
            return True
        lmbda = self.lmbda
        seen = self.__dict__.get("_lmbda_seen")
        if seen is None or seen[0] is not lmbda or seen[1] != lmbda._version:
            seen = self.__dict__["_lmbda_seen"] = (lmbda, lmbda._version, bool(lmbda != 0))
        return seen[2]

    # ------------------------------------------------------------------ public terms

    def diffusion_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """L_d alone.

        Returns:
            the reduced loss, and metadata with the detached ``"bc"``.
        """
        data = self._with_prompt(tensordict)
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            noised = self._noised(data)
        bc = self._reduce_elements(noised.squared_error, data)
        self._forget(tensordict, data)
        return bc, {"bc": bc.detach()}

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """L_d - λ L_r.

        Returns:
            the reduced loss, and metadata with the detached ``"bc"``, ``"guidance"`` and
            ``"lmbda"``.
        """
        data = self._with_prompt(tensordict)
        out = self._actor_terms(data)
        self._forget(tensordict, data)
        return out

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the critics' squared TD errors.

        Returns:
            the reduced loss, and metadata with the detached ``"td_error"`` (squared, the critics'
            largest, per row), ``"q_value"`` and ``"target_value"``.
        """
        data = self._with_prompt(tensordict)
        out = self._qvalue_terms(data)
        self._forget(tensordict, data)
        return out

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute both losses with one encoding of the prompt; see ``in_keys`` and ``out_keys``."""
        data = self._with_prompt(tensordict)
        loss_actor, actor_metadata = self._actor_terms(data)
        loss_qvalue, qvalue_metadata = self._qvalue_terms(data)
        tensordict.set(self.tensor_keys.priority, qvalue_metadata.pop("td_error"))
        out = TensorDict(
            {
                "loss_actor": loss_actor,
                "loss_qvalue": loss_qvalue,
                **actor_metadata,
                **qvalue_metadata,
            }
        )
        self._forget(tensordict, data, out)
        return out

    # ------------------------------------------------------------------ the actor's terms

    def _actor_terms(self, data: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        guided = self.guided
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            # L_d draws its random numbers first, so that guidance can not change them.
            noised = self._noised(data)
            proposal = self._proposal(data, noised) if guided else None
        loss = bc = self._reduce_elements(noised.squared_error, data)
        guidance = torch.zeros_like(bc)
        if proposal is not None:
            weights = self._maybe_get_priority_weight(data)
            guidance = self._reduce_loss(self._merit(data, proposal), data, weights=weights)
            loss = bc - self.lmbda * guidance
        return loss, {
            "bc": bc.detach(),
            "guidance": guidance.detach(),
            "lmbda": self.lmbda.clone(),
        }

    def _noised(self, data: TensorDictBase) -> _Noised:
        process = self._process
        action = self._read(data, self.tensor_keys.action)
        condition = self._condition(data, attached="diffusion" in self.prompt_gradient)
        step = torch.randint(0, process.num_steps, action.shape[:-1], device=action.device)
        noisy, noise = process.add_noise(action, step)
        output = process.denoise(noisy, condition, step)
        target = process.target(action, noise)
        squared_error = torch.nn.functional.mse_loss(output, target, reduction="none")
        return _Noised(condition, step, noisy, output, squared_error)

    def _proposal(self, data: TensorDictBase, noised: _Noised) -> Tensor:
        """The policy's action, as a differentiable function of the actor's parameters."""
        if self.guidance == "one_step":
            return self._process.predict_clean(noised.noisy, noised.step, noised.output)
        condition = noised.condition
        attached = "guidance" in self.prompt_gradient
        if attached != ("diffusion" in self.prompt_gradient):
            condition = self._condition(data, attached=attached)
        return self._process.sample(condition)

    def _merit(self, data: TensorDictBase, action: Tensor) -> Tensor:
        """Normalised value of ``action`` per row, by a critic drawn at random: [*]."""
        values = self._values(self._cached_detached_qvalue_params, data, action, attached=False)
        # Shuffling on the device picks i and j without reading a number back from it.
        order = torch.randperm(self.num_qvalue_nets, device=values.device)
        values = values.index_select(0, order)
        if self.q_normalization == "none":
            return values[0]
        scale = values[1 if self.q_normalization == "cross" else 0].detach().abs().mean()
        return values[0] / scale.clamp_min(torch.finfo(scale.dtype).eps)

    # ------------------------------------------------------------------ the critics' terms

    def _qvalue_terms(self, data: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        data = data.copy()
        with torch.no_grad():
            next_value = self._next_value(data)
        data.set(("next", self.tensor_keys.state_action_value), next_value.unsqueeze(-1))
        target = self.value_estimator.value_estimate(data).squeeze(-1).detach()
        action = self._read(data, self.tensor_keys.action)
        values = self._values(
            self.qvalue_network_params, data, action, attached="qvalue" in self.prompt_gradient
        )
        squared_error = (values - target).square()
        weights = self._maybe_get_priority_weight(data)
        loss = self._reduce_loss(squared_error.sum(0), data, weights=weights)
        return loss, {
            "td_error": squared_error.detach().amax(0),
            "q_value": values.detach().mean(),
            "target_value": target.mean(),
        }

    def _next_value(self, data: TensorDictBase) -> Tensor:
        """min_j Q'_j(s', a', z), or min_j max_n over ``num_target_actions`` candidates: [*]."""
        copies = self.num_target_actions
        with self.target_actor_network_params.to_module(
            self.actor_network, preserve_module_state=False
        ):
            condition = self._condition(data, following=True)
            if copies > 1:
                condition = condition.expand(copies, *condition.shape)
            action = self._process.sample(condition, num_steps=self.target_sampling_steps)
        values = self._values(self.target_qvalue_network_params, data, action, following=True)
        if copies > 1:
            values = values.amax(1)
        return values.amin(0)

    @property
    @_cache_values
    def _cached_detached_qvalue_params(self) -> TensorDictBase:
        return self.qvalue_network_params.data  # .detach() would outlive a cast of the loss

    # ------------------------------------------------------------------ shared pieces

    def _with_prompt(self, tensordict: TensorDictBase) -> TensorDictBase:
        """A shallow copy of the input with z in it."""
        data = tensordict.copy()
        params = self.prompt_network_params
        if self.prompt_network is not None and params is not None:
            with params.to_module(self.prompt_network, preserve_module_state=False):
                data = self.prompt_network(data)
        return data

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
        value = data.get(key, default=None)
        if value is None:
            raise DataError(
                f"the batch has no {key!r}, which {type(self).__name__} reads: add it to the data, "
                "or rename it with set_keys or the networks' in_keys"
            )
        return value.detach() if is_prompt and not attached else value

    def _condition(
        self, data: TensorDictBase, *, following: bool = False, attached: bool = True
    ) -> Tensor:
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
    ) -> Tensor:
        """All critics' values of ``action``: [N, *], * being ``action``'s batch."""
        inputs = {self.tensor_keys.action: action}
        for key in self.qvalue_network.in_keys:
            if key == self.tensor_keys.action:
                continue
            value = self._read(data, key, following=following, attached=attached)
            if following and self.num_target_actions > 1:
                value = value.expand(self.num_target_actions, *value.shape)
            inputs[key] = value
        batch = TensorDict(inputs, batch_size=action.shape[:-1])
        values = self._vmap_qvalue_network(batch, params)
        return values.get(self.tensor_keys.state_action_value).squeeze(-1)

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


class DiffusionQLLoss(LLMDPDLoss):
    r"""Diffusion-QL (Wang et al. 2023): :class:`LLMDPDLoss` without a prompt.

    Args:
        actor_network (TensorDictModule): a diffusion actor with ``in_keys=["observation"]``.
        qvalue_network (list of TensorDictModule): two critics.

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


def _check_names(setting: str, names: Iterable[str], choices: Sequence[str]) -> None:
    for name in names:
        if name not in choices:
            raise ConfigError(f"unknown {setting} {name!r}: choose from {', '.join(choices)}")


def _is_below(key: NestedKey, root: NestedKey) -> bool:
    path = (key,) if isinstance(key, str) else key
    prefix = (root,) if isinstance(root, str) else root
    return path[: len(prefix)] == prefix
